"""The rows of an evaluation, and the scores, the trivial predictor, the intervals and the curves made of them."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchmetrics.functional import classification as reference

from extras.evaluation.bins import Bins
from extras.evaluation.curves import areas, bins_of, curves_of
from extras.evaluation.scores import class_counts, intervals, per_class, trivial_scores
from extras.evaluation.table import Table, kind_of
from extras.precision_recall import F1, Precision
from utils.metrics import Accuracy
from utils.overlap import Dice, IoU, MeanImageDice

NAMES = ["a", "b", "c"]


def classes(n=300, ignored=-100, seed=0):
    """A table of classes and its logits and labels; some labels are ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (n,), generator=generator)
    logits = torch.randn(n, 3, generator=generator) + 1.5 * nn.functional.one_hot(labels, 3)
    labels[::10] = ignored
    return collected(nn.CrossEntropyLoss(ignore_index=ignored), logits, labels, 64), logits, labels


def masks(n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (n, 8, 8), generator=generator)
    logits = torch.randn(n, 3, 8, 8, generator=generator) + nn.functional.one_hot(targets, 3).movedim(-1, 1)
    return collected(nn.CrossEntropyLoss(), logits, targets, 16), logits, targets


def collected(criterion, outputs, targets, batch_size):
    table = Table(criterion)
    for first in range(0, len(outputs), batch_size):
        table.add(outputs[first : first + batch_size], targets[first : first + batch_size])
    return table


class First(nn.Module):
    def forward(self, outputs, targets):
        return outputs.mean()


def fed(meter, outputs, targets):
    meter.update(outputs, targets)
    return meter


# ---- rows ------------------------------------------------------------------------------------------------------------
def test_each_sample_has_its_own_loss_and_probability():
    table, logits, labels = classes()
    columns = table.columns
    expected = nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(columns["loss"].nan_to_num(0), expected, atol=1e-6) and columns["loss"][0].isnan()
    assert torch.equal(columns["prediction"], logits.argmax(dim=1))
    assert torch.allclose(columns["probability"], logits.softmax(dim=1).max(dim=1).values)
    assert columns["counts"].tolist() == (labels >= 0).tolist() and len(table) == 300


def test_one_logit_is_that_of_the_second_class():
    table = collected(First(), torch.tensor([[2.0], [-1.0]]), torch.tensor([1, 1]), 2)
    assert table.columns["prediction"].tolist() == [1, 0]
    assert table.columns["probability"].tolist() == pytest.approx([0.8807971, 0.7310586])


@pytest.mark.parametrize(
    ("outputs", "targets", "kind"),
    [
        ((4, 3), torch.zeros(4).long(), "classes"), ((4, 3, 8, 8), torch.zeros(4, 8, 8).byte(), "masks"),
        ((4,), torch.zeros(4), "values"), ((4, 2), torch.zeros(4, 2), "values"),
        ((4, 3), torch.zeros(4, 3).long(), ""), ((4, 3, 9), torch.zeros(4, 9).long(), ""), ((4, 3), [1, 2, 3, 0], ""),
    ],
)  # fmt: skip
def test_the_kind_of_a_row_is_that_of_its_shapes(outputs, targets, kind):
    assert kind_of(torch.rand(outputs), targets) == kind


def test_the_rows_of_processes_are_joined_in_their_order():
    whole, logits, targets = masks()
    parts = [collected(nn.CrossEntropyLoss(), logits[part], targets[part], 7) for part in (slice(25), slice(25, 40))]
    parts.append(Table(nn.CrossEntropyLoss()))  # that of a process without a sample
    gathered = [(part.kind, part.columns, part.bins) for part in parts]
    parts[0].merge(SimpleNamespace(gather=lambda value: gathered))
    assert parts[0].kind == "masks"
    for name, column in whole.columns.items():
        assert torch.allclose(parts[0].columns[name], column)
    assert torch.equal(parts[0].bins.thresholds, whole.bins.thresholds)


# ---- scores ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [classes, masks])
def test_the_scores_of_each_class_are_those_of_torchmetrics(make):
    table, logits, targets = make()
    found = per_class(class_counts(table, 3).sum(dim=0), NAMES)
    settings = {"num_classes": 3, "average": "none", "ignore_index": -100}
    for key, metric in (("precision", "precision"), ("recall", "recall"), ("f1", "f1_score"), ("iou", "jaccard_index")):
        expected = getattr(reference, f"multiclass_{metric}")(logits, targets, **settings)
        assert [found[name][key] for name in NAMES] == pytest.approx(expected.tolist(), abs=1e-6)
    assert all(scores["dice"] == scores["f1"] for scores in found.values())
    assert [found[name]["actual"] for name in NAMES] == [(targets == k).sum().item() for k in range(3)]


def test_a_class_that_is_nowhere_has_no_score_and_one_that_is_never_predicted_has_0():
    found = per_class(torch.tensor([[3, 3, 5], [0, 0, 2], [0, 0, 0]]), NAMES)
    assert found["b"]["precision"] == found["b"]["f1"] == 0 and found["a"]["recall"] == 0.6
    assert found["c"] == {"actual": 0, "predicted": 0} | dict.fromkeys(("precision", "recall", "f1", "iou", "dice"))


def test_the_trivial_predictor_of_classes_takes_the_most_frequent_one():
    labels = torch.tensor([0] * 2 + [1] * 5 + [2] * 3)
    logits = torch.rand(10, 3)
    meters = {"accuracy": Accuracy(), "top2": Accuracy(top_k=2), "f1": F1(3), "precision": Precision(3)}
    for meter in meters.values():
        meter.update(logits, labels)
    found = trivial_scores(collected(nn.CrossEntropyLoss(), logits, labels, 10), meters, NAMES, {})
    assert found["accuracy"] == {"score": 0.5, "predictor": "all b"}
    assert found["top2"] == {"score": pytest.approx(0.8), "predictor": "the 2 most frequent"}
    assert found["f1"]["score"] == pytest.approx(2 * 5 / 15 / 3)
    assert found["precision"]["score"] == pytest.approx(0.5 / 3)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_trivial_predictor_of_masks_is_what_the_metric_says_of_constant_logits(num_classes):
    targets = torch.randint(num_classes, (6, 8, 8), generator=torch.Generator().manual_seed(1))
    targets[0] = 0
    logits = torch.rand(6, num_classes, 8, 8)
    meters = {"dice": Dice(num_classes), "iou": IoU(num_classes), "mean_image_dice": MeanImageDice(num_classes)}
    for meter in meters.values():
        meter.update(logits, targets)
    names = ["background", *NAMES][:num_classes]
    found = trivial_scores(collected(nn.CrossEntropyLoss(), logits, targets, 4), meters, names, {})
    for name, meter in meters.items():
        scores = []
        for k in range(num_classes):
            constant = nn.functional.one_hot(torch.full_like(targets, k), num_classes).movedim(-1, 1).float()
            scores.append(fed(type(meter)(num_classes), constant, targets).compute())
        assert found[name]["score"] == pytest.approx(max(scores))
        assert found[name]["predictor"] == f"all {names[scores.index(max(scores))]}"


def test_the_trivial_predictor_of_values_is_the_mean():
    targets = torch.tensor([1.0, 2.0, 6.0])
    table = collected(nn.MSELoss(), torch.zeros(3), targets, 2)
    found = trivial_scores(table, {}, [], {"mae": 1.0, "RMSE": 2.0, "r2": 0.5, "loss": 3.0})
    assert {name: entry["score"] for name, entry in found.items()} == {
        "mae": pytest.approx(2.0), "RMSE": pytest.approx(math.sqrt(14 / 3)), "r2": 0.0
    }  # fmt: skip


# ---- intervals -------------------------------------------------------------------------------------------------------
def test_intervals_are_wilsons_for_shares_and_bootstrapped_for_ratios():
    table, logits, labels = classes()
    meters = {"accuracy": fed(Accuracy(), logits, labels), "f1": fed(F1(3), logits, labels)}
    found = intervals(table, meters, 3, None)
    assert found["accuracy"] == meters["accuracy"].interval()
    assert found["f1"][0] < meters["f1"].compute() < found["f1"][1] < found["f1"][0] + 0.2
    assert intervals(table, meters, 3, None) == found
    few, logits, labels = classes(25)
    assert "f1" not in intervals(few, {"f1": fed(F1(3), logits, labels)}, 3, None)


def test_whole_groups_are_resampled():
    """Forty images that are four copies of ten tell as much as ten: the interval is wider than that of forty."""
    _, logits, targets = masks(160)
    meters = {"dice": Dice(3), "iou": IoU(3), "mean_image_dice": MeanImageDice(3)}
    copies = [tensor[:40].repeat_interleave(4, dim=0) for tensor in (logits, targets)]
    for meter in meters.values():
        meter.update(*copies)
    table = collected(nn.CrossEntropyLoss(), *copies, 50)
    alone = intervals(table, meters, 3, None)
    grouped = intervals(table, meters, 3, torch.arange(40).repeat_interleave(4))
    for name in meters:
        width, of_groups = (high - low for low, high in (alone[name], grouped[name]))
        assert of_groups == pytest.approx(2 * width, rel=0.25)
    assert intervals(table, meters, 3, torch.arange(20).repeat_interleave(8)) == {}  # too few


# ---- calibration and curves ------------------------------------------------------------------------------------------
def test_the_calibration_error_is_that_of_torchmetrics():
    for table, logits, targets in (classes(), masks()):
        expected = reference.multiclass_calibration_error(logits, targets, 3, n_bins=15, ignore_index=-100)
        assert bins_of(table).calibration_error() == pytest.approx(expected.item(), abs=1e-6)


def test_areas_are_those_of_torchmetrics():
    table, logits, labels = classes()
    counts = labels >= 0
    for k, curve in curves_of(table, bins_of(table)).items():
        found, targets = areas(curve), (labels[counts] == k).long()
        scores = logits[counts].softmax(dim=1)[:, k]
        assert found["auroc"] == pytest.approx(reference.binary_auroc(scores, targets).item(), abs=1e-6)
        expected = reference.binary_average_precision(scores, targets).item()
        assert found["average_precision"] == pytest.approx(expected, abs=1e-6)


def test_areas_of_pixels_are_close_to_those_of_torchmetrics():
    table, logits, targets = masks()
    curves = curves_of(table, table.bins)
    for k in range(3):
        found, scores = areas(curves[k]), logits.softmax(dim=1)[:, k].flatten()
        of_class = (targets == k).long().flatten()
        assert found["auroc"] == pytest.approx(reference.binary_auroc(scores, of_class).item(), abs=1e-3)
        expected = reference.binary_average_precision(scores, of_class).item()
        assert found["average_precision"] == pytest.approx(expected, abs=2e-3)


def test_bins_resolve_a_network_that_is_almost_sure():
    bins = Bins(2)
    yes = torch.tensor([0.999, 0.9995, 0.9999, 0.99995])
    bins.add(torch.stack([1 - yes, yes], dim=1), torch.tensor([0, 0, 1, 1]))
    assert areas(bins.curves(1)) == {"auroc": pytest.approx(1.0), "average_precision": pytest.approx(1.0)}
