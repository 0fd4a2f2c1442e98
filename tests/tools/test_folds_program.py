"""python -m tools.folds: each sample of train and val is predicted once, by a network that was not trained on it."""

import csv
import json
import os
import statistics

import pytest

from tests import fork_server
from tools import folds
from utils.errors import UserError

SMALL = ["--train_val_sample_rate", "60", "--batch_size", "30", "--n_epoch", "1", "--gpu_devices", "cpu"]


@pytest.fixture
def runs(monkeypatch, root):
    """The commands that were run: in processes that are forked off one that has imported torch."""
    commands = []

    def run(command):
        commands.append(command)
        return fork_server.run(command[1:], root, os.environ | {"OMP_NUM_THREADS": "1"}, 120).returncode

    monkeypatch.setattr(folds, "run", run)
    monkeypatch.chdir(root)
    return commands


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_scores_are_those_of_the_predictions_and_a_finished_fold_is_kept(tmp_path, runs, capsys):
    command = ["trainer_vanilla.py", *SMALL, "--output_dir", str(tmp_path)]
    folds.main(["--folds", "2", *command])
    (directory,) = (tmp_path / "folds").iterdir()
    rows = read(directory / "out_of_fold.csv")
    assert len({row["name"] for row in rows}) == len(rows) == 60
    for number in (1, 2):  # each run was trained on what the other has validated on
        (split,) = directory.glob(f"fold_{number}/*/split.json")
        trained_on = set(json.loads(split.read_text())["train"])
        assert trained_on == {row["name"] for row in rows if row["fold"] != str(number)}
    scores = {row["metric"]: row for row in read(directory / "scores.csv")}
    right = [
        statistics.fmean(row["target"] == row["prediction"] for row in rows if row["fold"] == fold) for fold in "12"
    ]
    expected = [*right, statistics.fmean(right), statistics.stdev(right)]
    found = [scores["accuracy"][name] for name in ("fold 1", "fold 2", "mean", "sd")]
    assert found == [f"{value:.4f}" for value in expected]
    assert f"mean    sd\nloss      {scores['loss']['fold 1']}" in capsys.readouterr().out
    seeds = {text for run in runs for text in run if text.startswith("--seed=")}
    assert len(runs) == 2 and len(seeds) == 1

    folds.main(["--folds", "2", "--resume", str(directory), *command])
    assert len(runs) == 2
    with pytest.raises(UserError, match="begun with another command"):
        folds.main(["--folds", "3", "--resume", str(directory), *command])


def test_a_run_that_fails_ends_it_with_its_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folds, "run", lambda command: 4)
    with pytest.raises(SystemExit) as ended:
        folds.main(["--folds", "2", "trainer_vanilla.py", *SMALL, "--output_dir", str(tmp_path)])
    assert ended.value.code == 4 and "To go on: python -m tools.folds --folds=2 --resume=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fold", "1/3"], "--fold is not for a cross-validation"),
        (["--resume", "auto"], "--resume is not for a cross-validation"),
        (["--val_every", "0"], "leaves nothing to compare"),
    ],
)
def test_options_of_the_runs_are_refused(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        folds.main(["--folds", "3", "trainer_vanilla.py", *SMALL, *flags, "--output_dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())
