"""The table of a sweep is in order, and its picture shows what was tried."""

import csv

from PIL import Image

from tools.sweep.record import FAILED, FINISHED, INTERRUPTED, PRUNED, Run, Trial
from tools.sweep.report import failures, plot, ranked, table, write_csv

TRIALS = [
    Trial(0, {"lr": "0.1", "optim": "sgd"}, [Run(0, FAILED, 4, "it diverged"), Run(1, FAILED, -9)]),
    Trial(1, {"lr": "0.01", "optim": "sgd"}, [Run(0, FINISHED, 0, value=0.5), Run(1, FINISHED, 0, value=0.7)]),
    Trial(2, {"lr": "0.0012345678", "optim": "adam"}, [Run(0, FINISHED, 0, value=0.9), Run(1, INTERRUPTED, 143)]),
    Trial(3, {"lr": "1e-4", "optim": "adam"}, [Run(0, PRUNED, 143, value=0.95), Run(1, PRUNED)]),
]


def test_the_best_mean_comes_first_and_what_did_not_finish_last():
    assert [trial.number for trial in ranked(TRIALS, "max")] == [2, 1, 0, 3]
    assert [trial.number for trial in ranked(TRIALS, "min")] == [1, 2, 0, 3]


def test_the_table_and_its_file_say_the_same(tmp_path):
    lines = [line.split() for line in table(TRIALS, "accuracy", "max").splitlines()]
    assert lines[1] == ["002", "0.001235", "adam", "0.9000", "1/2", "interrupted"]
    assert lines[2] == ["001", "0.01", "sgd", "0.6000", "0.1414", "2/2", "finished"]
    write_csv(tmp_path / "table.csv", TRIALS, "accuracy", "max")
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["002", "001", "000", "003"]
    assert rows[0]["lr"] == "0.0012345678" and rows[0]["seed 0"] == "0.9" and rows[0]["seed 1"] == rows[0]["sd"] == ""


def test_failures_are_told_with_status_and_last_line():
    assert failures(TRIALS)[0] == "000 seed=0 failed with status 4: it diverged"
    assert len(failures(TRIALS)) == 2


def test_the_picture_has_a_panel_for_each_option_that_varies(tmp_path):
    assert plot(tmp_path / "two.png", TRIALS, "accuracy", "max")
    assert plot(tmp_path / "one.png", TRIALS[2:], "accuracy", "max")  # adam alone
    two, one = (Image.open(tmp_path / name) for name in ("two.png", "one.png"))
    assert (two.width, one.width) == (840, 420) and two.convert("L").getextrema()[0] < 100
    assert not plot(tmp_path / "none.png", TRIALS[:1], "accuracy", "max") and not (tmp_path / "none.png").exists()
