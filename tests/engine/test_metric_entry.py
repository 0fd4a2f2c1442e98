"""Metrics by name, alone and in a run."""

import csv
import sys
from argparse import ArgumentTypeError

import pytest
import torch
from torch import nn

from engine.metric_entry import build_metrics, ignored_by, metric_name
from eval_vanilla import EvaluatorVanilla
from extras.precision_recall import PrecisionRecallF1
from loss.classification_loss import CrossEntropyLoss
from loss.dice_loss import DiceLoss
from trainer_seg_on_carvana import TrainerSeg
from utils.errors import UserError
from utils.metrics import Accuracy

AUROC = "torchmetrics.classification:MulticlassAUROC"


def rows_of(trainer) -> list[dict[str, str]]:
    with open(trainer.run_dir.path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_names_make_the_metrics_that_they_say():
    torch.manual_seed(0)
    logits, labels = torch.randn(60, 5), torch.randint(5, (60,))
    meters = build_metrics(["accuracy", "precision", "recall", "f1", "top2"], num_classes=5)
    together, top2 = PrecisionRecallF1(5), Accuracy(top_k=2)
    for meter in (*meters.values(), together, top2):
        meter.update(logits, labels)
    found = {name: meter.compute() for name, meter in meters.items()}
    assert found == {"accuracy": found["accuracy"], **together.compute(), "top2": top2.compute()}
    assert found["accuracy"] < found["top2"] < 1


@pytest.mark.parametrize(
    ("task", "text", "word"),
    [
        ("classification", "acuracy", "'accuracy'"), ("classification", "dice", "topK"),
        ("classification", "top0", "topK"), ("classification", "", "accuracy, precision"),
        ("segmentation", "dise", "'dice'"), ("segmentation", "top5", "mean_image_dice; or MODULE:NAME"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest(task, text, word):
    with pytest.raises(ArgumentTypeError, match=word):
        metric_name(task)(text)


def test_metrics_of_torchmetrics_get_the_number_of_classes_and_arguments():
    arguments = {"MulticlassAUROC": {"average": "weighted"}, "PeakSignalNoiseRatio": {"data_range": 2.0}}
    metrics = build_metrics(["f1", AUROC, "torchmetrics.image:PeakSignalNoiseRatio"], arguments, num_classes=5)
    assert list(metrics) == ["f1", "MulticlassAUROC", "PeakSignalNoiseRatio"]
    assert metrics["MulticlassAUROC"].num_classes == 5 and metrics["MulticlassAUROC"].average == "weighted"
    metrics["PeakSignalNoiseRatio"].update(torch.full((1, 1, 4, 4), 0.6), torch.full((1, 1, 4, 4), 0.5))
    assert float(metrics["PeakSignalNoiseRatio"].compute()) == pytest.approx(26.0206)


@pytest.mark.parametrize(
    ("names", "arguments", "words"),
    [
        (["top6"], {}, "top6 needs at least 6 classes: there are 5"),
        ([AUROC], {"AUROC": {}}, "there is no metric 'AUROC'; there are MulticlassAUROC"),
        ([AUROC], {"MulticlassAUROC": {"average": "most"}}, "--metric_args MulticlassAUROC.*most"),
        (["f1"], {"f1": {"averag": "micro"}}, "F1 takes no argument 'averag'.*did you mean 'average'"),
        (["f1"], {"f1": {"average": "mikro"}}, "F1 cannot be made.*'mikro' is unknown"),
        (["torchmetrics.classification:MulticlassAROC"], {}, "did you mean 'MulticlassAUROC'"),
        (["os:getcwd"], {}, r"makes no metric: it has no method update\(\)"),
        (["accuracy", f"{__name__}:accuracy"], {}, "both called accuracy"),
    ],
)  # fmt: skip
def test_metrics_that_cannot_be_made_are_named(names, arguments, words):
    with pytest.raises(UserError, match=words) as error:
        build_metrics(names, arguments, num_classes=5)
    assert "\n" not in str(error.value)


def test_torchmetrics_is_imported_only_when_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    assert list(build_metrics(["accuracy"], num_classes=5)) == ["accuracy"]
    assert metric_name("classification")(AUROC) == AUROC
    with pytest.raises(UserError, match="pip install torchmetrics"):
        build_metrics(["torchmetrics:Accuracy"], num_classes=5)


def test_a_run_measures_and_monitors_a_metric_of_torchmetrics_and_so_does_its_evaluation(train, tmp_path):
    trainer = train("--metrics", "accuracy", AUROC, "--monitor", "MulticlassAUROC", "--n_epoch", 1)
    (row,) = rows_of(trainer)
    assert trainer.stopper.best == pytest.approx(float(row["val/MulticlassAUROC"]), abs=1e-5)
    argv = ["--model_path", str(trainer.checkpointer.path("best")), "--save_path", str(tmp_path), "--split", "val"]
    evaluator = EvaluatorVanilla.run_test(EvaluatorVanilla.parse_options(argv))
    assert "The score agrees with" in (evaluator.output_dir / "eval_log.txt").read_text()


def test_a_run_measures_logs_and_monitors_what_is_named(train, tmp_path):
    flags = ("--metrics", "f1", "top3", "f1", "--monitor", "f1", "--loss_type", "CE", "Brier:0.5", "--n_epoch", 1)
    trainer = train(*flags)
    (row,) = rows_of(trainer)
    wanted = {"train/loss", "train/loss_ce", "train/loss_brier", "val/loss", "val/loss_ce", "val/loss_brier", "val/f1"}
    assert wanted | {"val/top3"} <= row.keys() and "val/accuracy" not in row
    for part in ("train", "val"):
        terms = [float(row[f"{part}/loss_{name}"]) for name in ("ce", "brier")]
        assert float(row[f"{part}/loss"]) == pytest.approx(terms[0] + 0.5 * terms[1], rel=1e-4)
    assert trainer.stopper.best == pytest.approx(float(row["val/f1"]), abs=1e-5)
    # An evaluation takes loss and metrics from the checkpoint, and may name others.
    argv = ["--model_path", str(trainer.checkpointer.path("best")), "--save_path", str(tmp_path), "--split", "val"]
    for more in ([], ["--metrics", "accuracy", "f1"]):
        evaluator = EvaluatorVanilla.run_test(EvaluatorVanilla.parse_options([*argv, *more]))
        assert {"f1", "loss_brier"} <= evaluator.results().keys() and ("accuracy" in evaluator.results()) == bool(more)
        assert "The score agrees with" in (evaluator.output_dir / "eval_log.txt").read_text()


def test_the_terms_of_segmentation_in_pieces_are_those_of_the_whole(train):
    flags = ("--loss_type", "PixelCE", "Dice:0.5", "--metrics", "dice", "--n_epoch", 1, "--monitor", "loss_dice")
    whole, pieces = (train(*flags, *more, task=TrainerSeg) for more in ((), ("--micro_batch_size", 2)))
    assert whole.stopper.mode == "min"
    # Batch normalization sees the pieces, so only the first update could be the same; the sum is one in both.
    for trainer in (whole, pieces):
        (row,) = rows_of(trainer)
        loss, pixel, dice = (float(row[f"train/{name}"]) for name in ("loss", "loss_pixelce", "loss_dice"))
        assert loss == pytest.approx(pixel + 0.5 * dice, rel=1e-4) and "val/iou" not in row


def test_a_resumed_run_may_measure_more_but_not_learn_another_loss(build, train, differences):
    flags = ("--loss_type", "CE:0.5", "Focal")
    whole = train(*flags)
    resumed = train("--resume", whole.run_dir.path, "--n_epoch", 3, "--metrics", "accuracy", "f1")
    assert "val/f1" in rows_of(resumed)[-1] and resumed.opt.loss_type == ["CE:0.5", "Focal"]
    with pytest.raises(UserError, match="--loss_type CE contradicts"):
        build("--resume", whole.run_dir.path, "--loss_type", "CE")
    with pytest.raises(UserError, match="'f2' is none of the metrics"):
        build("--monitor", "f2")


def test_what_the_loss_leaves_out_the_metrics_leave_out_too():
    shared = ignored_by(nn.ModuleList([nn.Linear(1, 1), CrossEntropyLoss(3, ignore_index=2)])) | {"num_classes": 3}
    names = ["accuracy", "f1", "torchmetrics.classification:MulticlassAccuracy"]
    metrics = build_metrics(names, {"MulticlassAccuracy": {"average": "micro"}, "f1": {"average": "micro"}}, **shared)
    logits, labels = torch.eye(3)[[0, 1, 0, 2]], torch.tensor([0, 0, 2, 2])  # of the two that count, one is right
    for metric in metrics.values():
        metric.update(logits, labels)
    values = metrics["accuracy"].compute(), metrics["MulticlassAccuracy"].compute().item(), metrics["f1"].compute()
    assert values == (0.5, 0.5, 0.5) and ignored_by(nn.Linear(1, 1)) == {}
    assert ignored_by(DiceLoss(2, ignore_index=255)) == {"ignore_index": 255}
