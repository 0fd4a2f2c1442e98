"""Losses of classification with arguments out of range, and weights for the classes."""

import pytest
import torch
from torch.nn import functional as F

from extras.classification_losses import BrierLoss, FocalLoss
from loss.classification_loss import CrossEntropyLoss
from loss.dice_loss import CEDiceLoss, DiceLoss
from loss.terms import as_terms, counter
from utils.errors import UserError

WEIGHT = [0.0, 0.5, 2.0]


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(6, 3, requires_grad=True), torch.tensor([0, 1, 2, 2, 1, 0])


def test_each_class_counts_as_much_as_its_weight_says(batch):
    logits, labels = batch
    each = -logits.log_softmax(dim=1)[range(6), labels]
    torch.testing.assert_close(CrossEntropyLoss(3, WEIGHT)(*batch), (torch.tensor(WEIGHT)[labels] * each).mean())
    assert torch.equal(CrossEntropyLoss(3)(*batch), F.cross_entropy(*batch))
    torch.testing.assert_close(CrossEntropyLoss(3, ignore_index=2)(*batch), each[labels != 2].mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_it_does_not_depend_on_how_a_batch_is_cut(batch, smoothing):
    logits, labels = batch
    for ignored in (None, 1):
        criterion = CrossEntropyLoss(3, WEIGHT, ignore_index=ignored, label_smoothing=smoothing)
        count = counter(criterion) or (lambda batch: len(batch[1]))
        cuts = [(logits[rows], labels[rows]) for rows in (slice(0, 1), slice(1, 2), slice(2, 6))]  # label 1 alone
        parts = [criterion(*cut) * count(cut) / count((logits, labels)) for cut in cuts]
        torch.testing.assert_close(sum(parts), criterion(logits, labels))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weight": [1.0, 1.0]}, "3 weights"), ({"weight": 2.0}, "3 weights"),
        ({"weight": [1.0, -1.0, 1.0]}, "at least 0"), ({"weight": [0.0, 0.0, 0.0]}, "not all 0"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5"),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        CrossEntropyLoss(3, **arguments)


def test_a_focal_loss_that_would_count_what_is_sure_is_refused():
    with pytest.raises(UserError, match="gamma=-1"):
        FocalLoss(gamma=-1)


@pytest.mark.parametrize("criterion", [CrossEntropyLoss(3), CrossEntropyLoss(3, WEIGHT), FocalLoss(), BrierLoss()])
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([1, 2, 3]), "targets 3, but 3 classes are numbered from 0 to 2"),
        (torch.tensor([-100, 0, 1]), "ignore_index=-100"), (torch.tensor([0, 1, 2]).int(), "torch.int32"),
        (torch.tensor([0.0, 1.0, 2.0]), "torch.float32 of shape"), (torch.tensor([[0], [1], [2]]), "shape (3, 1)"),
        (["a", "b", "c"], "list"),
    ],
)  # fmt: skip
def test_targets_that_are_no_classes_are_named(criterion, labels, words):
    with pytest.raises(UserError) as refusal:
        criterion(torch.randn(3, 3), labels)
    assert words in str(refusal.value)


def test_what_is_ignored_counts_in_no_mean(batch):
    logits, labels = batch
    criterion = CrossEntropyLoss(3, ignore_index=-100)
    torch.testing.assert_close(
        criterion(logits, labels.where(labels != 2, -100)), F.cross_entropy(logits[labels != 2], labels[labels != 2])
    )
    assert criterion(logits, torch.full((6,), -100)).item() == 0


@pytest.mark.parametrize("criterion", [CrossEntropyLoss(3), FocalLoss(), BrierLoss(), DiceLoss(3), CEDiceLoss(3)])
@pytest.mark.parametrize(("outputs", "words"), [({"out": torch.zeros(2, 3)}, "dict with the keys out"), (None, "None")])
def test_an_output_that_is_no_tensor_is_named(criterion, outputs, words):
    with pytest.raises(UserError, match=f"The loss got a .*{words}.* from the network"):
        criterion(outputs, torch.tensor([0, 1]))


def test_terms_that_are_no_numbers_are_named():
    assert as_terms({"loss": torch.tensor(1.0), "accuracy": 0.5})["accuracy"] == 0.5
    for value, words in ((torch.zeros(3), r"Tensor of shape \(3,\)"), ("high", "str"), (None, "NoneType")):
        with pytest.raises(UserError, match=f"compute_loss returns 'extra' as {words}"):
            as_terms({"loss": torch.tensor(1.0), "extra": value})
