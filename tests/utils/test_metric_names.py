"""Metrics by name, alone and in a run."""

import csv
from argparse import ArgumentTypeError

import pytest
import torch

from eval_vanilla import EvaluatorVanilla
from trainer_seg_on_carvana import TrainerSeg
from utils.errors import UserError
from utils.metric_names import CLASSIFICATION, SEGMENTATION, build_metrics, metric_name
from utils.metrics import Accuracy, PrecisionRecallF1


def rows_of(trainer) -> list[dict[str, str]]:
    with open(trainer.run_dir.path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_names_make_the_meters_that_they_say():
    torch.manual_seed(0)
    logits, labels = torch.randn(60, 5), torch.randint(5, (60,))
    meters = build_metrics(["accuracy", "precision", "recall", "f1", "top2"], CLASSIFICATION, 5)
    together, top2 = PrecisionRecallF1(5), Accuracy(top_k=2)
    for meter in (*meters.values(), together, top2):
        meter.update(logits, labels)
    found = {name: meter.compute() for name, meter in meters.items()}
    assert found == {"accuracy": found["accuracy"], **together.compute(), "top2": top2.compute()}
    assert found["accuracy"] < found["top2"] < 1


@pytest.mark.parametrize(
    ("known", "text", "word"),
    [
        (CLASSIFICATION, "acuracy", "'accuracy'"), (CLASSIFICATION, "dice", "topK"), (CLASSIFICATION, "top0", "topK"),
        (CLASSIFICATION, "topfive", "topK"), (CLASSIFICATION, "", "use one"), (SEGMENTATION, "dise", "'dice'"),
        (SEGMENTATION, "top5", "use one"), (CLASSIFICATION, "top5 ", "topK"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest(known, text, word):
    with pytest.raises(ArgumentTypeError, match=word):
        metric_name(known)(text)


def test_more_places_than_classes_are_refused():
    with pytest.raises(UserError, match="top6 needs at least 6 classes: there are 5"):
        build_metrics(["top6"], CLASSIFICATION, 5)


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
