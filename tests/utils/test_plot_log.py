"""The curves of runs are read from metrics.csv and drawn."""

import pytest
from PIL import Image

from utils.errors import UserError
from utils.plot_log import plot_runs, read_metrics

CSV = "epoch,update,train/loss,val/loss,val/accuracy,lr\n1,10,0.9,,,0.1\n2,20,0.5,0.6,0.8,0.05\n"


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
    assert one.size == two.size == (840, 320)  # loss and accuracy
    assert one.tobytes() != two.tobytes()


@pytest.mark.parametrize("text", [None, "", "epoch,train/loss\n", "something else\n1\n", "epoch,train/loss\nx,1\n"])
def test_what_cannot_be_read_is_named(tmp_path, text):
    run = tmp_path / "run" if text is None else make_run(tmp_path / "run", text)
    with pytest.raises(UserError, match="run"):
        read_metrics(run)


def test_a_picture_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(UserError, match="Cannot write the picture"):
        plot_runs([make_run(tmp_path / "run")], tmp_path / "gone" / "curves.png")
