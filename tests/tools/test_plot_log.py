"""The curves of runs are read from metrics.csv and drawn."""

import pytest
from PIL import Image

from tools.plot_log import plot_runs, read_metrics
from utils.errors import UserError

CSV = "epoch,update,train/loss,val/loss,val/accuracy,lr\n1,10,0.9,,,0.1\n2,20,0.5,0.6,0.8,0.05\n"


def make_parent(directory):
    directory.mkdir()
    return directory


def make_run(directory, text=CSV):
    directory.mkdir()
    (directory / "metrics.csv").write_text(text)
    return directory


def test_an_empty_cell_gives_no_point(tmp_path):
    points = read_metrics(make_run(tmp_path / "run"))
    assert points["train/loss"] == [(1, 0.9), (2, 0.5)] and points["val/loss"] == [(2, 0.6)]


def test_a_panel_for_each_metric_and_a_curve_for_each_run(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("a", "b")]
    plot_runs(runs[:1], tmp_path / "one.png")
    plot_runs(runs, tmp_path / "two.png")
    one, two = (Image.open(tmp_path / name) for name in ("one.png", "two.png"))
    assert one.width == two.width == 840 and one.height >= 320  # loss and accuracy
    assert one.tobytes() != two.tobytes()


def test_many_runs_and_metrics_wrap_and_one_legend_tells_the_runs_apart(tmp_path, monkeypatch):
    names = ("loss", "a", "b", "c")
    text = f"epoch,{','.join(f'val/{name}' for name in names)}\n1,1,2,3,4\n2,2,3,4,5\n"
    runs = [make_run(make_parent(tmp_path / f"{i:02d}-seed0") / "17", text) for i in range(12)]
    legends = []
    monkeypatch.setattr("matplotlib.figure.Figure.legend", lambda self, lines, texts, **_: legends.append(texts))
    plot_runs(runs, tmp_path / "many.png")
    assert Image.open(tmp_path / "many.png").width == 3 * 420
    assert legends[0][:4] == ["train", "val", "00-seed0/17", "01-seed0/17"] and len(legends[0]) == 14
    plot_runs([*runs[:1], *runs[:1]], tmp_path / "one.png", ["a"])
    assert Image.open(tmp_path / "one.png").width == 420 and legends[1] == ["train", "val"]


def test_a_metric_that_no_run_has_is_named(tmp_path):
    with pytest.raises(UserError, match=r"'los' is none of loss, accuracy .did you mean 'loss'"):
        plot_runs([make_run(tmp_path / "run")], tmp_path / "x.png", ["los"])


@pytest.mark.parametrize("text", [None, "", "epoch,train/loss\n", "something else\n1\n", "epoch,train/loss\nx,1\n"])
def test_what_cannot_be_read_is_named(tmp_path, text):
    run = tmp_path / "run" if text is None else make_run(tmp_path / "run", text)
    with pytest.raises(UserError, match="run"):
        read_metrics(run)


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(UserError, match="Cannot write the picture"):
        plot_runs([make_run(tmp_path / "run")], tmp_path / "gone" / "curves.png")
