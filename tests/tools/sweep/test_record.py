"""The record of a sweep comes back as it was, and nothing else is taken for one."""

import pytest

from tools.sweep.record import FAILED, FINISHED, Run, Trial, best_of, last_line, load_trials, read_curve, save_trials
from utils.errors import UserError

TRIALS = [Trial(0, {"lr": "1e-3"}, [Run(0, FINISHED, 0, "", 0.5, 2, 1.5), Run(1)]), Trial(1, {"lr": "1"}, [Run(0)], 7)]


def test_a_record_comes_back(tmp_path):
    save_trials(tmp_path / "trials.json", TRIALS)
    assert load_trials(tmp_path / "trials.json") == TRIALS


@pytest.mark.parametrize(
    ("old", "new"),
    [("", ""), ('"waiting"', '"asleep"'), ('"1e-3"', "1"), ('"number": 1', '"number": 2'), ('"seed": 1', '"seed": "1"'),
     ('"value": 0.5', '"value": "x"'), ('"runs"', '"walks"'), ('"epochs": 2', '"epochs": null')],
)  # fmt: skip
def test_a_damaged_record_is_refused(tmp_path, old, new):
    path = tmp_path / "trials.json"
    save_trials(path, TRIALS)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1) if old else text[:-9])
    with pytest.raises(UserError, match=r"trials.json is not the record of a sweep"):
        load_trials(path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(UserError, match="Is this the directory of a sweep"):
        load_trials(tmp_path / "trials.json")


def test_the_curve_is_that_of_the_newest_run_without_epochs_that_were_not_validated(tmp_path):
    assert read_curve(tmp_path, "accuracy") == []
    for name, text in (("1", "epoch,val/accuracy\n1,0.1\n"), ("2", "epoch,val/accuracy\n1,\n2,0.5\n3,nan\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(text)
    assert read_curve(tmp_path, "accuracy") == [(2, 0.5)]
    (tmp_path / "2" / "metrics.csv").write_text("no,numbers\nx,y\n")
    with pytest.raises(UserError, match="is not what a run has written"):
        read_curve(tmp_path, "accuracy")


def test_the_best_is_finite():
    values = [0.5, float("nan"), float("inf"), 0.2]
    assert (best_of(values, "max"), best_of(values, "min"), best_of([float("nan")], "max")) == (0.5, 0.2, None)


def test_the_last_line_has_something_in_it(tmp_path):
    (tmp_path / "output.txt").write_text("x" * 9000 + "\nfirst\nlast  \n\n")
    assert last_line(tmp_path / "output.txt") == "last"
    assert last_line(tmp_path / "nowhere") == ""


def test_the_state_of_a_trial_is_that_of_the_run_that_is_least_far():
    assert [trial.state for trial in TRIALS] == ["waiting", "waiting"]
    assert Trial(0, {}, [Run(0, FINISHED), Run(1, FAILED)]).state == FAILED
    assert TRIALS[0].mean == 0.5 and TRIALS[0].deviation is None and TRIALS[1].mean is None
