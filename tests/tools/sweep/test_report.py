"""The table of a sweep is in order, and its picture and the importance come from the study."""

import csv

from PIL import Image

from tools.sweep.plan import Plan
from tools.sweep.report import failures, ranked, report, table, write_csv
from tools.sweep.study import FAILED, FINISHED, INTERRUPTED, PRUNED, Run, Trial

TRIALS = [
    Trial(0, {"lr": "0.1", "optim": "sgd"}, [Run(0, FAILED, 4, "it diverged"), Run(1, FAILED, -9)]),
    Trial(1, {"lr": "0.01", "optim": "sgd"}, [Run(0, FINISHED, 0, value=0.5), Run(1, FINISHED, 0, value=0.7)]),
    Trial(2, {"lr": "0.0012345678", "optim": "adam"}, [Run(0, FINISHED, 0, value=0.9), Run(1, INTERRUPTED, 143)]),
    Trial(3, {"lr": "1e-4", "optim": "adam"}, [Run(0, PRUNED, 143, value=0.95), Run(1, PRUNED)]),
]
PLAN = Plan("TrainerVanilla", "accuracy", "max", {"lr": None, "optim": None})


def test_the_best_mean_comes_first_and_unfinished_trials_last():
    assert [trial.number for trial in ranked(TRIALS, "max")] == [2, 1, 0, 3]
    assert [trial.number for trial in ranked(TRIALS, "min")] == [1, 2, 0, 3]


def test_the_table_and_its_file_agree(tmp_path):
    lines = [line.split() for line in table(TRIALS, PLAN)]
    assert lines[1] == ["002", "0.001235", "adam", "0.9000", "1/2", "interrupted"]
    assert lines[2] == ["001", "0.01", "sgd", "0.6000", "0.1414", "2/2", "finished"]
    write_csv(tmp_path / "table.csv", TRIALS, PLAN)
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["002", "001", "000", "003"]
    assert rows[0]["lr"] == "0.0012345678" and rows[0]["seed 0"] == "0.9" and rows[0]["seed 1"] == rows[0]["sd"] == ""
    assert failures(TRIALS)[0] == "000 seed=0 failed with status 4: it diverged" and len(failures(TRIALS)) == 2


def test_the_picture_has_a_panel_for_each_option_and_importance_needs_enough_trials(make_study, tmp_path, capsys):
    study = make_study(trials=20)
    while trial := study.next_trial():
        trial.runs[0] = Run(0, FINISHED, value=float(trial.settings["lr"]))
        study.record(trial)
        if trial.number in (8, 19):
            assert report(tmp_path, study)
            assert ("\nImportance: lr " in capsys.readouterr().out) == (trial.number == 19)
    picture = Image.open(tmp_path / "sweep.png")
    assert picture.width > 900 and picture.convert("L").getextrema()[0] < 100


def test_an_option_without_effect_in_a_trial_leaves_its_cell_and_its_panel_empty(make_study, tmp_path, capsys):
    def effective(settings):
        return {"optim": "sgd"} if settings["optim"] == "sgd" else settings

    study = make_study(trials=12, effective=effective)
    while trial := study.next_trial():
        trial.runs[0] = Run(0, FINISHED, value=0.1 * trial.number)
        study.record(trial)
    assert report(tmp_path, study) and "Importance: optim " in capsys.readouterr().out
    assert (tmp_path / "sweep.png").exists()
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert {row["optim"] for row in rows if row["lr"] == row["n"] == ""} == {"sgd"}
    assert {row["optim"] for row in rows if row["lr"] and row["n"]} == {"adamW"}
