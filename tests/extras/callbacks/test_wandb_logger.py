"""Weights & Biases gets the curves, offline, under one id over all resumes. Here a small module stands in for it."""

import importlib.util
import sys
import types

import pytest

from callbacks.callback_entry import check_chosen
from extras.callbacks.wandb_logger import WandB
from utils.errors import UserError


class FakeRun:
    def __init__(self, arguments):
        self.arguments, self.rows, self.summary, self.ends, self.metrics = arguments, [], {}, [], []

    def define_metric(self, name, step_metric=None):
        self.metrics.append((name, step_metric))

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code=0):
        self.ends.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    """The module that stands in; its runs are in `wandb.runs`."""
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.util.spec_from_loader("wandb", None)
    fake.runs, fake.Settings = [], lambda **settings: settings
    fake.init = lambda **arguments: fake.runs.append(FakeRun(arguments)) or fake.runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return fake


def test_a_run_and_its_resume_are_one_with_curves_over_updates(wandb, train):
    flags = ("--logger", "wandb", "csv", "--n_epoch", 1, "--log_every", 4)
    run = train(*flags, callbacks=None)
    (first,) = wandb.runs
    assert first.arguments["mode"] == "offline" and first.arguments["dir"] == str(run.run_dir.path)
    assert first.metrics == [("update", None), ("*", "update")]
    assert [row["update"] for row in first.rows] == [4, 8, 8]
    assert {"train/loss", "train/grad_norm", "lr"} < first.rows[0].keys() and "val/accuracy" in first.rows[-1]
    assert first.summary["best/accuracy"] == run.stopper.best and first.ends == [0]
    assert not (run.run_dir.path / "summary").exists() and (run.run_dir.path / "metrics.csv").exists()

    train("--resume", run.run_dir.path, "--n_epoch", 2, callbacks=None)
    assert wandb.runs[1].arguments["id"] == first.arguments["id"]
    assert wandb.runs[1].rows[-1]["update"] == 16


def test_the_mode_that_the_user_set_is_kept_and_an_end_by_an_exception_is_told(wandb, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    callback = WandB(tmp_path, "Name", {"lr": 0.1, "resume_notes": []}, "accuracy")
    callback.on_exception(None, KeyboardInterrupt())  # before it began
    callback.on_train_start(None)
    (run,) = wandb.runs
    assert (run.arguments["mode"], run.arguments["resume"], run.arguments["config"]) == ("online", "allow", {"lr": 0.1})
    callback.on_exception(None, KeyboardInterrupt())
    assert run.ends == [1]


@pytest.mark.parametrize("state", [{"id": "../x"}, {"id": 3}, {"id": ""}])
def test_an_id_that_would_lead_elsewhere_is_refused(tmp_path, state):
    with pytest.raises(ValueError, match="is no id"):
        WandB(tmp_path, "Name", {}, "accuracy").load_state_dict(state)


def test_a_missing_package_and_a_contradiction_are_told_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        check_chosen(["csv", "wandb"], [])
    with pytest.raises(UserError, match="none stands alone"):
        check_chosen(["none", "csv"], [])
    check_chosen(["none"], [])


def test_no_logger_leaves_no_curves(train):
    run = train("--logger", "none", "--n_epoch", 1, callbacks=None)
    names = {path.name for path in run.run_dir.path.iterdir()}
    assert not {"metrics.csv", "summary", "wandb"} & names and any("best_ckpt" in name for name in names)
