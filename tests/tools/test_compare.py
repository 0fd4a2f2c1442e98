"""Runs are compared on one page: numbers, deviation over seeds, curves over each other, options that differ."""

import json
import re

import pytest

from tools import compare
from utils.errors import UserError

BAD = "</script><script>document.title='taken'</script>"


def make_run(path, rows, **options):
    path.mkdir(parents=True)
    config = {"n_epoch": 3, "monitor": "accuracy", "lr": 0.1, "seed": 0, "description": str(path), **options}
    (path / f"config_Vanilla_{path.name}.json").write_text(json.dumps(config))
    (path / "metrics.csv").write_text(f"epoch,val/accuracy,time/train\n{rows}")
    return path


def test_the_page_has_the_numbers_curves_and_differences(tmp_path):
    runs = [
        make_run(tmp_path / "a" / "1", "1,0.5,2\n2,0.75,2\n3,0.7,2\n"),
        make_run(tmp_path / "a" / "2", "1,0.5,2\n2,0.25,2\n", seed=1),
        make_run(tmp_path / "b" / "3", "", lr=BAD),
    ]
    output = tmp_path / "compare.html"
    compare.main([*map(str, runs), "--output", str(output)])
    text = output.read_text()
    assert text.count("</script>") == 3 and not re.findall(r"(?:src|href)=", text)  # it needs no other file
    rows = [re.findall(r'data-value="([^"]*)"', row) for row in re.findall("<tr><td data.*", text)]
    assert [row[0] for row in rows] == ["a/1", "a/2", "b/3"]
    assert list(map(float, rows[0][2:8])) == pytest.approx([0.75, 2, 0.7, 0.625, 0.1767767, 6])
    assert list(map(float, rows[1][2:8])) == pytest.approx([0.5, 1, 0.25, 0.625, 0.1767767, 4])
    assert rows[2][2:8] == ["", "", "", "", "", "0"] and "&lt;script" in rows[2][8]
    assert re.findall(r"<tr><td><code>(\w+)", text) == ["lr", "seed"]  # not the description
    curves = json.loads(re.search(r'id="curves">(.*?)</script>', text)[1])
    lines = {line["name"]: line["values"] for line in curves["panels"][0]["lines"]}
    assert curves["epochs"] == [1, 2, 3] and lines == {
        "a/1": [0.5, 0.75, 0.7], "a/2": [0.5, 0.25, None], "b/3": [None, None, None],
    }  # fmt: skip


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="is no directory of a run"):
        compare.main([str(tmp_path), "--output", str(tmp_path / "compare.html")])
    assert not (tmp_path / "compare.html").exists()
