"""The report of a run shows what its files hold, and nothing in them can become markup or code."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest

from engine.checkpoints.file import save_checkpoint
from engine.runs.lock import DirectoryLock
from tools import report
from utils.errors import UserError

BAD = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
ROWS = "epoch,update,train/loss,val/loss,val/accuracy,lr,time/train,time/data_wait,time/val,time/save\n"
OPTIONS = {"proj_name": "Vanilla", "n_epoch": 3, "monitor": "accuracy", "monitor_mode": "auto", "lr": 0.25, "seed": 7}


class Page(html.parser.HTMLParser):
    """The tags of a page, and the text within each kind of them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open = tag

    def handle_data(self, data):
        if data.strip():
            self.texts.setdefault(self.open, []).append(data)


def make_run(path, options=(), rows=("1,10,0.9,0.8,0.5,0.1,6,1,1,1", "2,20,0.7,nan,0.75,0.1,6,1,1,1"), **record):
    path.mkdir(parents=True)
    name = f"Vanilla_{path.name}"
    (path / f"config_{name}.json").write_text(json.dumps(OPTIONS | dict(options)))
    (path / "metrics.csv").write_text(ROWS + "\n".join(rows) + "\n")
    provenance = {"run_name": name, "command": "python trainer_vanilla.py --lr 0.25", "git_commit": "a" * 40}
    (path / "provenance.json").write_text(json.dumps(provenance | record))
    return path


def page_of(run, *flags):
    report.main([str(run), *map(str, flags)])
    text = (run / "report.html").read_text()
    return Page(text), text


def test_it_shows_options_best_epoch_curves_shares_and_commands(tmp_path, monkeypatch):
    run = make_run(tmp_path / "17")
    (run / "finished.json").write_text('{"epoch": 3, "update": 30}')
    monkeypatch.chdir(tmp_path)
    page, text = page_of(run)
    curves = json.loads(page.texts["script"][0])
    assert curves["epochs"] == [1, 2] and curves["best"] == 2
    lines = {line["name"]: line["values"] for panel in curves["panels"] for line in panel["lines"]}
    assert lines["val/accuracy"] == [0.5, 0.75] and lines["val/loss"] == [0.8, None]  # NaN is a gap
    assert page.texts["b"][:2] == ["0.75", "2 of 3"]
    assert re.search(r"<code>lr</code></td><td>0.25</td><td class=\"soft\">0.001<", text)
    assert '<code>n_epoch</code></td><td>3</td><td class="soft">12<' in text and "<code>monitor</code></td><td>" in text
    assert {"updates 62.5 %", "waiting for data 12.5 %", "validation 12.5 %"} <= set(page.texts["span"])
    commands = page.texts["pre"]
    assert commands[:3] == [
        "python trainer_vanilla.py --resume 17", "python eval_vanilla.py 17", "python predict.py 17 FILE_OR_DIR",
    ]  # fmt: skip
    assert commands[3] == f"git checkout {'a' * 40}\npython trainer_vanilla.py --lr 0.25 --seed 7"
    assert "http-equiv=\"refresh\"" not in text and (run / "curves.png").exists()
    assert re.findall(r"(?:src|href)=\"(?!data:)", text) == []  # it needs no other file


def test_nothing_in_a_run_becomes_markup(tmp_path):
    hostile = {"description": BAD, "class_names": [BAD, "b"], "monitor": BAD, BAD: 1}
    run = make_run(tmp_path / "18", hostile, command=f"python {BAD}\x1b[31m", versions={BAD: BAD}, git_diff=BAD)
    (run / "metrics.csv").write_text(f'epoch,"val/{BAD.replace(chr(34), chr(34) * 2)}"\n1,0.5\n')
    evaluation = run / "test" / "19"
    evaluation.mkdir(parents=True)
    result = {"what": BAD, "n": 2, "results": {BAD: 1.0}, "per_class": {BAD: {BAD: 1, "f1": None}}, "intervals": 3}
    (evaluation / "results.json").write_text(json.dumps(result))
    (evaluation / "predictions.csv").write_text('target,prediction\n"{0}","{0}"\n'.format(BAD.replace('"', '""')))
    (evaluation / "mistakes.png").write_text(BAD)  # no picture
    page, text = page_of(run)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 3 and "img" not in tags and text.count("</script>") == 3
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert json.loads(page.texts["script"][0])["panels"][0]["title"] == BAD
    assert BAD in "".join(page.texts["p"]) and r"\x1b" in text and "\x1b" not in text
    assert "Confusion matrix" in text


def test_an_evaluation_of_the_run_is_shown_with_its_matrix_and_pictures(tmp_path, monkeypatch):
    run = make_run(tmp_path / "17")
    for number, model in ((1, run / "Vanilla_best_ckpt.pth"), (2, tmp_path / "other" / "Vanilla_best_ckpt.pth")):
        directory = tmp_path / "test_viz" / str(number)
        directory.mkdir(parents=True)
        scores = {name: {"actual": 2, "f1": 0.5} for name in ("cat", "dog")}
        result = {"what": f"{model} on the test part", "n": 4, "results": {"accuracy": number / 4}, "per_class": scores}
        (directory / "results.json").write_text(json.dumps(result | {"intervals": {"accuracy": [0.1, 0.4]}}))
        (directory / "predictions.csv").write_text("target,prediction\ncat,cat\ncat,dog\ndog,dog\n,dog\n")
        shutil.copy("img/vanilla_mistakes.png", directory / "mistakes.png")
    monkeypatch.chdir(tmp_path)
    page, text = page_of(run)
    assert re.search(r"<td>accuracy</td><td class=\"right\">0.25</td><td>0.1 to 0.4</td>", text)
    shares = [attributes["style"].split()[1] for _, attributes in page.tags if "--share" in attributes.get("style", "")]
    assert shares == ["0.500", "0.500", "0.000", "1.000"]
    assert [tag for tag, _ in page.tags].count("img") == 1
    assert "on the test part" in text
    assert "0.5</td><td>0.1 to 0.4" in page_of(run, "--evaluation", tmp_path / "test_viz" / "2")[1]


def test_the_status_of_a_run(tmp_path):
    run = make_run(tmp_path / "17")
    log = run / "Vanilla_17_log.txt"
    ends = {
        "crashed": "2026-11-30 10:00:00,000 ERROR Stopped by ValueError after update 3.\n",
        "interrupted": "2026-11-30 10:00:00,000 ERROR Stopped by Ctrl-C after update 1,003.\n",
    }
    for status, line in ends.items():
        log.write_text(line)
        assert f">{status}</span>" in page_of(run)[1]
    with log.open("a") as file:
        file.write("2026-11-30 10:01:00,000 INFO Resumed Results/17 after update 3\n")
    assert ">crashed</span>" in page_of(run)[1]  # killed after it was resumed
    with log.open("a") as file:
        file.write("2026-11-30 10:02:00,000 INFO Finished after 20 updates. Best val/accuracy: 0.7500\n")
    assert ">stopped early</span>" in page_of(run)[1]  # by an earlier version, after epoch 2 of 3
    for epoch, status in ((2, "stopped early"), (3, "finished")):
        (run / "finished.json").write_text(json.dumps({"epoch": epoch, "update": 1}))
        assert f">{status}</span>" in page_of(run)[1]


def test_the_page_of_a_run_that_lives_refreshes(tmp_path, fresh_python):
    run = make_run(tmp_path / "17")
    with DirectoryLock(run):
        done = fresh_python("-m", "tools.report", run)
    assert done.returncode == 0, done.stderr
    text = (run / "report.html").read_text()
    assert '<meta http-equiv="refresh" content="15">' in text and ">running</span>" in text


def test_what_is_no_run_is_named_and_latest_is_found(tmp_path, capsys):
    with pytest.raises(UserError, match=r"is no directory of a run"):
        report.main([str(tmp_path)])
    with pytest.raises(UserError, match=r"there is no run below"):
        report.main([str(tmp_path / "latest")])
    make_run(tmp_path / "a" / "9")
    run = make_run(tmp_path / "b" / "10", rows=())
    save_checkpoint({"progress": {"epoch": 1, "update": 1}}, run / "Vanilla_last_ckpt.pth")
    report.main([str(tmp_path / "latest")])
    assert "has no epoch yet" in capsys.readouterr().out and (run / "report.html").exists()
    report.main([str(run / "Vanilla_last_ckpt.pth")])


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="needs a browser: apt-get install chromium")
def test_a_browser_draws_the_curves_and_runs_nothing_else(tmp_path):
    run = make_run(tmp_path / "17", {"description": BAD})
    page_of(run)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path}/b"]
    done = subprocess.run(
        [BROWSER, *flags, "--dump-dom", (run / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert "<title>Vanilla_17</title>" in done.stdout
    assert done.stdout.count("<canvas") == 3 and "val/accuracy" in done.stdout
