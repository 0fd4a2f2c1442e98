"""Every metric of classification against torchmetrics, fed batch by batch with a small last batch, and its interval."""

import doctest
import math

import pytest
import torch
import torchmetrics
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

import utils.metrics
from extras.precision_recall import PrecisionRecallF1
from utils.meter import predicted_classes
from utils.metrics import Accuracy, ConfusionMatrix
from utils.overlap import Dice

SIZES = (8, 8, 3)  # the last batch is smaller


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def classification(num_classes, sizes=SIZES):
    """Logits that are right more often than not, and labels."""
    made = []
    for size in sizes:
        labels = torch.randint(num_classes, (size,))
        logits = torch.randn(size, num_classes) + 1.5 * torch.nn.functional.one_hot(labels, num_classes)
        made.append((logits, labels))
    return made


def fed(meter, batches):
    for predictions, truth in batches:
        meter.update(predictions, truth)
    return meter


def joined(batches):
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def test_docstring_examples():
    assert doctest.testmod(utils.metrics).failed == 0


def test_one_logit_is_class_one_above_zero():
    assert predicted_classes(torch.tensor([[-1.0], [0.0], [2.0]])).tolist() == [0, 0, 1]
    assert predicted_classes(torch.tensor([[0.0, -1.0], [0.0, 3.0]])).tolist() == [0, 1]


@pytest.mark.parametrize("top_k", [1, 3])
def test_accuracy_agrees_with_torchmetrics(top_k):
    batches = classification(7)
    oracle = fed(MulticlassAccuracy(7, top_k=top_k, average="micro"), batches)
    assert fed(Accuracy(top_k), batches).compute() == pytest.approx(oracle.compute().item(), abs=1e-6)


def test_accuracy_of_one_logit_agrees_with_torchmetrics():
    labels = torch.randint(2, (19,))
    logits = torch.randn(19, 1) + labels[:, None] - 0.5
    oracle = torchmetrics.functional.classification.binary_accuracy(logits[:, 0], labels)
    assert fed(Accuracy(), [(logits, labels)]).compute() == pytest.approx(oracle.item(), abs=1e-6)


def test_accuracy_refuses_labels_that_would_be_broadcast():
    with pytest.raises(AssertionError, match=r"\(4, 1\)"):
        Accuracy().update(torch.randn(4, 3), torch.zeros(4, 1, dtype=torch.int64))


def test_accuracy_refuses_top_0():
    with pytest.raises(ValueError, match="top_k 0"):
        Accuracy(top_k=0)


@pytest.mark.parametrize("num_classes", [2, 7])
def test_confusion_matrix_agrees_with_torchmetrics(num_classes):
    batches = classification(num_classes)
    matrix = fed(ConfusionMatrix(num_classes), batches).compute()
    assert matrix.dtype == torch.int64
    assert torch.equal(matrix, fed(MulticlassConfusionMatrix(num_classes), batches).compute())


def test_confusion_matrix_takes_classes_and_pixels_too():
    masks = torch.randint(3, (19, 6, 6))
    logits = torch.randn(19, 3, 6, 6)
    of_logits = fed(ConfusionMatrix(3), [(logits, masks)]).compute()
    assert torch.equal(of_logits, fed(ConfusionMatrix(3), [(logits.argmax(1), masks)]).compute())
    assert torch.equal(of_logits, fed(MulticlassConfusionMatrix(3), [(logits, masks)]).compute())


def test_confusion_matrix_leaves_out_what_is_ignored():
    batch = torch.tensor([0, 2, 1, 1]), torch.tensor([0, -100, 2, -100])
    assert fed(ConfusionMatrix(3), [batch]).compute().tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    expected = fed(MulticlassConfusionMatrix(3, ignore_index=-100), [batch]).compute()
    assert torch.equal(fed(ConfusionMatrix(3), [batch]).compute(), expected)


@pytest.mark.parametrize(("predicted", "label"), [(0, 3), (3, 0), (-1, 1), (1, -1), (4, 1)])
def test_confusion_matrix_refuses_a_class_out_of_range(predicted, label):
    meter = ConfusionMatrix(3)
    with pytest.raises(IndexError):
        meter.update(torch.tensor([0, predicted]), torch.tensor([0, label]))
    assert meter.compute().sum() == 0


def test_confusion_matrix_refuses_a_single_class():
    with pytest.raises(ValueError, match="num_classes 1"):
        ConfusionMatrix(1)


def test_per_class_accuracy_is_recall_and_nan_for_an_absent_class():
    meter = fed(ConfusionMatrix(3), [(torch.tensor([0, 1, 0, 2]), torch.tensor([0, 0, 0, 1]))])
    torch.testing.assert_close(
        meter.per_class_accuracy(), torch.tensor([2 / 3, 0.0, math.nan], dtype=torch.float64), equal_nan=True
    )


def oracle_precision_recall_f1(num_classes, average, batches):
    functional = torchmetrics.functional.classification
    return {
        name: score(*joined(batches), num_classes, average=average).item()
        for name, score in (
            ("precision", functional.multiclass_precision),
            ("recall", functional.multiclass_recall),
            ("f1", functional.multiclass_f1_score),
        )
    }


@pytest.mark.parametrize("average", ["macro", "micro"])
@pytest.mark.parametrize("num_classes", [2, 7])
def test_precision_recall_f1_agree_with_torchmetrics(num_classes, average):
    batches = classification(num_classes)
    got = fed(PrecisionRecallF1(num_classes, average), batches).compute()
    assert got == pytest.approx(oracle_precision_recall_f1(num_classes, average, batches), abs=1e-6)


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_absent_and_unpredicted_classes_are_treated_as_torchmetrics_does(average):
    # Class 2 is never predicted, class 3 never actual, class 4 neither.
    batches = [(torch.tensor([0, 1, 3, 0, 1]), torch.tensor([0, 1, 2, 2, 0]))]
    got = fed(PrecisionRecallF1(5, average), batches).compute()
    assert got == pytest.approx(oracle_precision_recall_f1(5, average, batches), abs=1e-6)


def test_precision_recall_f1_by_hand():
    # Class 0: precision 1/2, recall 1, F1 2/3. Class 1: precision 1, recall 1/2, F1 2/3. Class 2 is absent.
    got = fed(PrecisionRecallF1(3), [(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))]).compute()
    assert got == pytest.approx({"precision": 0.75, "recall": 0.75, "f1": 2 / 3})


def test_an_unknown_average_is_named():
    with pytest.raises(ValueError, match="'macr' is unknown: give 'macro' or 'micro'"):
        PrecisionRecallF1(3, average="macr")


# ---- the interval ----------------------------------------------------------------------------------------------------
def interval_of(num_right: int, n: int):
    labels = (torch.arange(n) < num_right).long()
    return fed(Accuracy(), [(torch.tensor([0.0, 1.0]).expand(n, 2), labels)]).interval()


def test_nothing_seen_is_nan_and_has_no_interval():
    assert math.isnan(Accuracy().compute()) and Accuracy().interval() is None


@pytest.mark.parametrize(
    ("num_right", "n", "low", "high"),
    [(6, 6, 0.6097, 1.0), (0, 6, 0.0, 0.3903), (1, 1, 0.2065, 1.0),
     (15, 20, 0.5313, 0.8881), (850, 1000, 0.8265, 0.8708)],
)  # fmt: skip
def test_the_interval_is_that_of_wilson(num_right, n, low, high):
    """The ends are where the right share would be 1.96 standard errors away: worked out from that equation."""
    assert interval_of(num_right, n) == pytest.approx((low, high), abs=1e-4)
    for end in interval_of(num_right, n):
        if 0 < end < 1:
            assert abs(num_right / n - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n), abs=1e-6)


def test_the_interval_covers_the_true_value_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(1)
    for truth, n in ((0.7, 100), (0.95, 20)):
        drawn = (torch.rand(300, n, generator=generator) < truth).sum(dim=1).tolist()
        covered = [low <= truth <= high for low, high in (interval_of(num_right, n) for num_right in drawn)]
        assert 0.90 <= sum(covered) / 300 <= 0.99


def test_a_class_of_few_bits_is_not_taken_for_an_ignored_one():
    labels = torch.tensor([156, 3], dtype=torch.uint8)
    logits = torch.nn.functional.one_hot(labels.long(), 200).float()
    accuracy, matrix, dice = Accuracy(), ConfusionMatrix(200), Dice(200)
    for meter in (accuracy, matrix):
        meter.update(logits, labels)
    assert len(accuracy.counted()) == matrix.compute().sum() == 2
    dice.update(logits[:, :, None, None], labels[:, None, None])
    assert dice.per_image_counts()[0, 155].tolist() == [1, 1, 1]
