"""A table from training to predictions of new rows: held-out scores, the same weights after a kill, and units."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from callbacks.callback import Callback
from engine.checkpoints.file import load_checkpoint
from examples.eval_table import EvaluatorTable
from examples.trainer_table import TrainerTable
from tests.own_data import table_rows, write_csv
from tools.prediction.command import main as predict
from tools.prediction.opening import open_evaluator

CLASS = ("--target", "risk", "--leave_out", "pressure", "--group", "patient")
NUMBER = ("--target", "pressure", "--leave_out", "risk", "--group", "patient")


class Killed(Callback):
    """Ends the run in the middle of an epoch."""

    def on_update_end(self, trainer, values):
        if trainer.progress.update == 12:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("table") / "patients.csv"
    write_csv(path, table_rows(np.random.default_rng(3)))
    return path


@pytest.fixture
def run(tmp_path, table):
    def run(*flags, watched_by=()) -> TrainerTable:
        given = ["--gpu_devices", "cpu", "--seed", "0", "--output_dir", str(tmp_path / "runs"), "--logger", "none"]
        given = list(flags) if "--resume" in flags else [*given, "--data_dir", str(table), *flags]
        task = type("Watched", (TrainerTable,), {"build_callbacks": lambda self: list(watched_by)})
        trainer = task(task.parse_options(given))
        trainer.train()
        return trainer

    return run


def best(trainer) -> str:
    (path,) = trainer.run_dir.path.glob("*_best_ckpt.pth")
    return str(path)


def evaluate(trainer, tmp_path, *flags) -> dict[str, float]:
    opt = EvaluatorTable.parse_options([best(trainer), "--save_path", str(tmp_path / "eval"), *flags])
    return EvaluatorTable.run_test(opt).results()


def predictions(path: Path, tmp_path, name: str, *flags, new: str = "new.csv") -> list[dict[str, str]]:
    out = tmp_path / name
    with pytest.raises(SystemExit) as end:
        predict([str(path), str(tmp_path / new), "--output_dir", str(out), "--device", "cpu", *flags])
    assert end.value.code == 0
    with open(next(out.iterdir()) / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_classes_from_training_to_predictions(run, table, tmp_path):
    trainer = run(*CLASS, "--n_epoch", "25")
    results = evaluate(trainer, tmp_path)
    assert results["accuracy"] > 0.8 and results["f1"] > 0.7
    assert results == pytest.approx(evaluate(trainer, tmp_path, "--eval_batch_size", "7"), abs=1e-6)
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    new = [{name: text for name, text in reversed(row.items()) if name != "risk"} for row in rows]  # in another order
    write_csv(tmp_path / "new.csv", new)
    found = predictions(trainer.run_dir.path, tmp_path, "out")
    assert predictions(best(trainer), tmp_path, "again", "--batch_size", "9") == found
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "README.md").write_text("These are new patients.")
    (tmp_path / "new.csv").rename(tmp_path / "several" / "new.csv")
    same = predictions(best(trainer), tmp_path, "of_directory", new="several")  # only what may be a table
    assert [row["probability"] for row in same] == [row["probability"] for row in found]
    assert [row["patient"] for row in found] == [row["patient"] for row in rows]
    right = [row["class"] == actual["risk"] for row, actual in zip(found, rows, strict=True)]
    assert np.mean(right) > 0.85
    place = {name: number for number, name in enumerate(trainer.datasets["test"].names)}
    logits = trainer.evaluator.model(trainer.datasets["test"].inputs)  # of the last weights, which may be others
    assert logits.shape == (len(place), 2)


def test_numbers_are_predicted_in_their_unit(run, table, tmp_path):
    trainer = run(*NUMBER, "--n_epoch", "25")
    results = evaluate(trainer, tmp_path)
    assert results["r2"] > 0.6 and 3 < results["rmse"] < 9  # the noise has a standard deviation of 4
    state = load_checkpoint(best(trainer))
    assert state["options"]["columns"]["target"]["mean"] == pytest.approx(135, abs=10)
    write_csv(tmp_path / "new.csv", table_rows(np.random.default_rng(4), 30))
    found = predictions(trainer.run_dir.path, tmp_path, "out")
    errors = [float(row["value"]) - float(row["pressure"]) for row in found]
    assert np.sqrt(np.mean(np.square(errors))) < 9


def test_meters_and_loss_are_those_of_the_formulas(run):
    trainer = run(*NUMBER, "--n_epoch", "1")
    evaluator, data = trainer.evaluator, trainer.datasets["val"]
    results = evaluator.evaluate(trainer.val_loader)
    with torch.no_grad():
        errors = (trainer.networks["model"](data.inputs) - data.values).double()[:, 0]
    targets = data.values.double()[:, 0]
    std = trainer.opt.columns["target"]["std"]
    assert results["rmse"] == pytest.approx(errors.square().mean().sqrt().item(), rel=1e-5)
    assert results["mae"] == pytest.approx(errors.abs().mean().item(), rel=1e-5)
    assert results["loss"] == pytest.approx((errors / std).square().mean().item(), rel=1e-5)
    expected = 1 - errors.square().sum() / (targets - targets.mean()).square().sum()
    assert results["r2"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_killed_run_goes_on_to_the_same_weights(run, weights, differences):
    given = (*NUMBER, "--n_epoch", "2")
    whole = run(*given)
    assert not differences(weights(whole), weights(run(*given, "--num_workers", "1")))
    torch.testing.assert_close(weights(run(*given, "--micro_batch_size", "11")), weights(whole), rtol=1e-3, atol=1e-4)
    with pytest.raises(KeyboardInterrupt):
        run(*given, watched_by=[Killed()])
    (killed,) = whole.run_dir.path.parent.glob("*/*InT*")
    assert not differences(weights(whole), weights(run("--resume", str(killed.parent))))


def test_a_checkpoint_from_elsewhere_is_data(run, tmp_path, monkeypatch):
    """Names of columns and categories may be any text."""
    rows = [{"a/b: x.y": f"{n % 7}", "see": ["http://x", "/etc"][n % 2], "y": f"{n}"} for n in range(60)]
    write_csv(tmp_path / "odd.csv", rows)
    trainer = run("--data_dir", str(tmp_path / "odd.csv"), "--target", "y", "--n_epoch", "1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    evaluator, _ = open_evaluator(best(trainer))
    assert len(list(evaluator.read_samples(tmp_path / "odd.csv"))) == 60
