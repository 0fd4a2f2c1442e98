"""Every loss that can be named is built, and is a mean over samples."""

from argparse import Namespace

import pytest
import torch
from torch import nn

from loss.loss_entry import LOSS_TYPES, build_criterion, loss_types


def build(loss_type: str, n_classes: int, label_smoothing: float = 0.0) -> nn.Module:
    return build_criterion(Namespace(loss_type=loss_type, n_classes=n_classes, label_smoothing=label_smoothing))


def test_label_smoothing_spreads_a_share_evenly():
    logits, labels = torch.randn(4, 10), torch.tensor([0, 3, 9, 3])
    targets = 0.9 * torch.nn.functional.one_hot(labels, 10) + 0.01  # (N, 10)
    expected = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert torch.allclose(build("CE", 10, label_smoothing=0.1)(logits, labels), expected)


def test_names_fit_the_task():
    classification, segmentation = loss_types("classification"), loss_types("segmentation")
    assert sorted(classification + segmentation) == sorted(LOSS_TYPES) == sorted(loss_types(None))


def batch(loss_type: str, n_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets of five samples."""
    torch.manual_seed(0)
    if LOSS_TYPES[loss_type] == "classification":
        return torch.randn(5, 10, requires_grad=True), torch.randint(10, (5,))
    return torch.randn(5, n_classes, 6, 7, requires_grad=True), torch.randint(2, (5, 6, 7))


NUM_CLASSES = {"classification": (10,), "segmentation": (1, 2)}
CASES = [(name, n_classes) for name, task in LOSS_TYPES.items() for n_classes in NUM_CLASSES[task]]


@pytest.mark.parametrize(("loss_type", "n_classes"), CASES)
def test_loss_is_a_scalar_with_gradients(loss_type, n_classes):
    logits, targets = batch(loss_type, n_classes)
    loss = build(loss_type, n_classes)(logits, targets)
    loss.backward()
    assert loss.shape == () and loss.isfinite() and logits.grad.any()


@pytest.mark.parametrize(("loss_type", "n_classes"), CASES)
def test_loss_does_not_depend_on_how_a_batch_is_cut(loss_type, n_classes):
    criterion, (logits, targets) = build(loss_type, n_classes), batch(loss_type, n_classes)
    parts = [criterion(logits[rows], targets[rows]) * len(targets[rows]) / 5 for rows in (slice(0, 4), slice(4, 5))]
    torch.testing.assert_close(sum(parts), criterion(logits, targets))


@pytest.mark.parametrize("n_classes", [1, 2])
def test_ce_dice_is_the_sum_of_its_two_parts(n_classes):
    logits, targets = batch("CEDice", n_classes)
    whole, cross_entropy, dice = (build(name, n_classes)(logits, targets) for name in ("CEDice", "PixelCE", "Dice"))
    torch.testing.assert_close(whole, cross_entropy + dice)
    assert cross_entropy > 0 and 0 < dice < 1


def test_pixel_cross_entropy_is_that_of_torch():
    logits, targets = batch("PixelCE", 2)
    torch.testing.assert_close(build("PixelCE", 2)(logits, targets), nn.functional.cross_entropy(logits, targets))
    logits, targets = batch("PixelCE", 1)
    expected = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets.float())
    torch.testing.assert_close(build("PixelCE", 1)(logits, targets), expected)
