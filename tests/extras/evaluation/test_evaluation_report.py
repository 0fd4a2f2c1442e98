"""The files of an evaluation as a program."""

import csv
import importlib
import json
import math
import sys

import pytest
import torch

from data.FashionMNIST import CLASSES
from engine.registry import REGISTERED
from eval import EvaluatorBase
from eval_seg_on_carvana import EvaluatorSeg
from eval_vanilla import EvaluatorVanilla
from extras.evaluation import report
from extras.evaluation.all_parts import AllParts


@pytest.fixture
def evaluate(tmp_path):
    """A function that evaluates a run: `evaluate(EvaluatorVanilla, run, *flags)`."""

    def evaluate(evaluator_class, run, *flags):
        argv = [str(run), "--save_path", tmp_path / "test", "--gpu_devices", "cpu", *flags]
        return evaluator_class.run_test(evaluator_class.parse_options([str(text) for text in argv]))

    return evaluate


@pytest.fixture
def new_task(monkeypatch):
    """The example, whose names are forgotten after the test: other tests list those of the template."""
    for kind in REGISTERED:
        monkeypatch.setitem(REGISTERED, kind, {})
    monkeypatch.delitem(sys.modules, "examples.new_task", raising=False)
    return importlib.import_module("examples.new_task")


def rows_of(evaluator) -> list[dict[str, str]]:
    with open(evaluator.output_dir / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def record_of(evaluator) -> dict:
    return json.loads((evaluator.output_dir / "results.json").read_text())


def test_a_classifier_has_a_line_for_each_sample(evaluate, vanilla_run):
    evaluator = evaluate(EvaluatorVanilla, vanilla_run, "--metrics", "accuracy", "f1", "--no-viz")
    rows, record = rows_of(evaluator), record_of(evaluator)
    assert list(rows[0]) == ["name", "target", "prediction", "probability", "loss"] and len(rows) == 1000
    right = sum(row["target"] == row["prediction"] for row in rows)
    assert record["results"]["accuracy"] == pytest.approx(right / 1000)
    assert record["results"]["loss"] == pytest.approx(sum(float(row["loss"]) for row in rows) / 1000, abs=1e-5)
    assert rows[0]["name"] == "test/00000" and {row["target"] for row in rows} == set(CLASSES)
    assert record["trivial"]["accuracy"] == {"score": 0.1, "predictor": f"all {CLASSES[0]}"}
    assert record["intervals"].keys() == {"accuracy", "f1"} and list(record["per_class"]) == list(CLASSES)
    f1 = sum(scores["f1"] for scores in record["per_class"].values()) / 10
    assert record["results"]["f1"] == pytest.approx(f1) and 0 < record["calibration_error"] < 1


def test_a_segmentation_has_a_line_for_each_image_and_says_why_there_is_no_interval(evaluate, seg_run, capfd):
    evaluator = evaluate(EvaluatorSeg, seg_run, "--no-viz")
    rows, record = rows_of(evaluator), record_of(evaluator)
    assert list(rows[0]) == ["name", "dice", "iou", "loss"] and len(rows) == 4
    mean = sum(float(row["dice"]) for row in rows) / 4
    assert record["results"]["mean_image_dice"] == pytest.approx(mean, abs=1e-5)
    assert record["trivial"]["dice"]["predictor"] == "all foreground" and record["num_groups"] == 1
    assert record["intervals"] == {} and list(record["per_class"]) == ["background", "foreground"]
    assert "No interval of dice, iou, mean_image_dice: n = 1 " in capfd.readouterr().out


def test_a_regression_has_its_values(evaluate, tmp_path, new_task):
    flags = ["--n_epoch", "1", "--max_updates", "2", "--logger", "none", "--gpu_devices", "cpu"]
    opt = new_task.TrainerWaves.parse_options([*flags, "--output_dir", str(tmp_path / "runs")])
    trainer = new_task.TrainerWaves(opt)
    trainer.train()
    evaluator = evaluate(new_task.EvaluatorWaves, trainer.run_dir.path)
    rows, record = rows_of(evaluator), record_of(evaluator)
    assert list(rows[0]) == ["name", "target", "prediction", "loss"] and len(rows) == evaluator.num_samples
    errors = [abs(float(row["target"]) - float(row["prediction"])) for row in rows]
    assert record["results"]["mae"] == pytest.approx(sum(errors) / len(errors), abs=1e-4)
    assert float(rows[3]["loss"]) == pytest.approx(errors[3] ** 2, rel=1e-3)
    assert record["trivial"]["mae"]["predictor"] == "the mean"


def test_all_parts_are_evaluated_with_the_name_of_each(evaluate, vanilla_run, seg_run, capfd):
    for evaluator_class, run, counts in (
        (EvaluatorVanilla, vanilla_run, {"train": 510, "val": 90, "test": 1000}),
        (EvaluatorSeg, seg_run, {"train": 16, "val": 4, "test": 4}),
    ):
        parts = [row["part"] for row in rows_of(evaluate(evaluator_class, run, "--split", "all", "--no-viz"))]
        assert {part: parts.count(part) for part in parts} == counts
        assert "trained on samples of these: the scores flatter" in capfd.readouterr().out


def test_the_samples_of_all_parts_are_those_of_the_parts():
    parts = {"train": [(1, 2)] * 3, "val": [], "test": [(3, 4), (5, 6)]}
    whole = AllParts(parts)
    assert [whole[i] for i in range(len(whole))] == [(1, 2)] * 3 + [(3, 4), (5, 6)]
    assert whole.part_of == ["train"] * 3 + ["test"] * 2 and not hasattr(whole, "names")


def test_several_processes_find_what_one_finds(command, vanilla_run, tmp_path):
    found = []
    for count in (1, 3):
        flags = ("--save_path", tmp_path / str(count), "--nproc", count, "--gpu_devices", "cpu", "--split", "val")
        done = command("eval_vanilla.py", vanilla_run, "--metrics", "accuracy", "f1", "--no-viz", *flags)
        assert done.returncode == 0 and "The score agrees" in done.stdout, done.stderr
        (directory,) = (tmp_path / str(count)).iterdir()
        record = json.loads((directory / "results.json").read_text())
        found.append((record, (directory / "predictions.csv").read_text().splitlines()))
    (one, rows), (three, rows_of_three) = found
    assert one["results"] == pytest.approx(three["results"]) and one["n"] == three["n"] == 90
    assert one["intervals"]["f1"] == pytest.approx(three["intervals"]["f1"])
    assert [row.split(",")[:3] for row in rows] == [row.split(",")[:3] for row in rows_of_three]


def test_an_evaluator_that_records_nothing_says_so(evaluate, vanilla_run, capfd, monkeypatch):
    monkeypatch.setattr(EvaluatorBase, "record", lambda *arguments: None)
    monkeypatch.setattr(EvaluatorVanilla, "report", lambda *arguments: None)
    evaluator = evaluate(EvaluatorVanilla, vanilla_run)
    assert not (evaluator.output_dir / "predictions.csv").exists() and record_of(evaluator)["intervals"]["accuracy"]
    assert "No predictions.csv: eval_step of EvaluatorVanilla does not call self.record" in capfd.readouterr().out


def test_without_torchmetrics_there_are_no_curves_and_the_log_says_so(evaluate, vanilla_run, capfd, monkeypatch):
    monkeypatch.setattr(report, "HAS_TORCHMETRICS", False)
    evaluator = evaluate(EvaluatorVanilla, vanilla_run)
    assert not (evaluator.output_dir / "curves.png").exists() and (evaluator.output_dir / "calibration.png").exists()
    assert "they need torchmetrics (pip install torchmetrics)" in capfd.readouterr().out


def test_names_and_numbers_of_the_table_are_plain():
    assert report.as_text(math.nan) == "" and report.as_text(1 / 3) == "0.333333" and report.as_text("a,b") == "a,b"
    counts = torch.tensor([[[9, 9, 9], [0, 0, 0], [2, 4, 4]]])
    assert report.image_scores(counts)["dice"].item() == 0.5  # the class that is not there is left out
