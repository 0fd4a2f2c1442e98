"""Losses of classification with arguments out of range, and weights for the classes."""

import pytest
import torch
from torch.nn import functional as F

from loss.classification_loss import CrossEntropyLoss, FocalLoss
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
    torch.testing.assert_close(CrossEntropyLoss(3, ignore_index=2)(*batch), each[labels != 2].sum() / 6)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_it_does_not_depend_on_how_a_batch_is_cut(batch, smoothing):
    logits, labels = batch
    criterion = CrossEntropyLoss(3, WEIGHT, ignore_index=1, label_smoothing=smoothing)
    parts = [criterion(logits[rows], labels[rows]) * len(labels[rows]) / 6 for rows in (slice(0, 1), slice(1, 6))]
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
