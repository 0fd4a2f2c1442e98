"""The segmentation losses against their formulas in float64, and the properties that training relies on."""

import doctest

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchmetrics.functional.segmentation import dice_score

from loss import dice_loss
from loss.dice_loss import CEDiceLoss, DiceLoss, PixelCELoss
from utils.errors import UserError


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def random_batch(n_classes, num_images=5, size=(12, 9)):
    logits = 3 * torch.randn(num_images, n_classes, *size)
    targets = torch.randint(max(n_classes, 2), (num_images, *size))
    targets[0] = 0  # an image without foreground
    return logits, targets


def dice_in_numpy(logits, targets, smooth=1.0):
    """The formula of the docstring, one image and one class at a time, in float64."""
    losses = []
    for image, target in zip(logits.double().numpy(), targets.numpy(), strict=True):
        if len(image) == 1:
            probabilities = {1: 1 / (1 + np.exp(-image[0]))}
        else:
            exponentials = np.exp(image)
            probabilities = {c: exponentials[c] / exponentials.sum(axis=0) for c in range(1, len(image))}
        of_class = []
        for c, p in probabilities.items():
            t = (target == c).astype(float)
            of_class.append(1 - (2 * (p * t).sum() + smooth) / ((p * p).sum() + (t * t).sum() + smooth))
        losses.append(np.mean(of_class))
    return np.mean(losses)


def cross_entropy_in_numpy(logits, targets):
    logits, targets = logits.double().numpy(), targets.numpy()
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)  # a sigmoid is a softmax against 0
    log_sum = np.log(np.exp(logits).sum(axis=1))
    return (log_sum - np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]).mean()


@pytest.mark.parametrize("n_classes", [1, 2, 5])
def test_equals_the_formula(n_classes):
    logits, targets = random_batch(n_classes)
    dice, cross_entropy = dice_in_numpy(logits, targets), cross_entropy_in_numpy(logits, targets)
    assert DiceLoss(n_classes)(logits, targets).item() == pytest.approx(dice, abs=1e-6)
    smoother = DiceLoss(n_classes, smooth=20.0)(logits, targets).item()
    assert smoother == pytest.approx(dice_in_numpy(logits, targets, smooth=20.0), abs=1e-6)
    weighted = CEDiceLoss(n_classes, ce_weight=0.5, dice_weight=2.0)(logits, targets).item()
    assert weighted == pytest.approx(0.5 * cross_entropy + 2 * dice, rel=1e-6)
    assert CEDiceLoss(n_classes)(logits, targets).item() == pytest.approx(cross_entropy + dice, rel=1e-6)


def test_of_hard_predictions_is_one_minus_the_dice_score():
    targets = torch.randint(4, (3, 40, 40))
    predictions = torch.where(torch.rand(3, 40, 40) < 0.7, targets, torch.randint(4, (3, 40, 40)))
    one_hot = torch.nn.functional.one_hot(predictions, 4).movedim(-1, 1)
    score = dice_score(predictions, targets, num_classes=4, include_background=False, input_format="index").mean()
    loss = DiceLoss(n_classes=4, smooth=1e-6)(100.0 * one_hot, targets)
    assert loss.item() == pytest.approx(1 - score.item(), abs=1e-6)


@pytest.mark.parametrize("loss_class", [DiceLoss, CEDiceLoss])
@pytest.mark.parametrize("n_classes", [1, 3])
def test_loss_of_a_batch_is_the_mean_of_its_samples(loss_class, n_classes):
    logits, targets = random_batch(n_classes, num_images=5)
    loss = loss_class(n_classes)
    of_samples = torch.stack([loss(logits[i : i + 1], targets[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(loss(logits, targets), of_samples.mean(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("n_classes", [1, 2, 4])
def test_perfect_is_zero_and_wholly_wrong_is_one(n_classes):
    targets = torch.randint(max(n_classes, 2), (2, 64, 64))
    if n_classes == 1:
        logits = 40.0 * (2 * targets[:, None] - 1)
    else:
        logits = 40.0 * torch.nn.functional.one_hot(targets, n_classes).movedim(-1, 1)
    assert DiceLoss(n_classes)(logits, targets).item() == pytest.approx(0, abs=1e-6)
    assert CEDiceLoss(n_classes)(logits, targets).item() == pytest.approx(0, abs=1e-6)
    wrong = -logits if n_classes == 1 else logits.roll(1, dims=1)
    assert DiceLoss(n_classes)(wrong, targets).item() == pytest.approx(1, abs=2e-3)


def test_class_that_is_neither_there_nor_predicted_costs_nothing():
    """Without the square, the small probabilities of 300 × 300 pixels would add up to a loss near 1."""
    logits = torch.zeros(1, 2, 300, 300)
    logits[:, 0] = 10.0  # probability 0.00005 of class 1
    assert DiceLoss(n_classes=2)(logits, torch.zeros(1, 300, 300, dtype=torch.int64)).item() < 1e-3


@pytest.mark.parametrize("loss_class", [DiceLoss, CEDiceLoss])
@pytest.mark.parametrize("n_classes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_is_float32_and_finite_under_autocast_with_huge_logits(loss_class, n_classes, dtype):
    logits, targets = random_batch(n_classes, size=(300, 300))
    logits = (6e4 * logits.sign()).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = loss_class(n_classes)(logits, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss_class", [DiceLoss, CEDiceLoss])
@pytest.mark.parametrize("n_classes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_and_autocast_do_not_change_the_value(loss_class, n_classes, dtype):
    logits, targets = random_batch(n_classes, size=(300, 300))
    logits = logits.to(dtype)
    loss = loss_class(n_classes)
    with torch.autocast("cpu", dtype=dtype):
        inside = loss(logits, targets)
    assert torch.equal(inside, loss(logits.float(), targets))


@pytest.mark.parametrize("loss_class", [DiceLoss, CEDiceLoss])
def test_list_of_maps_costs_the_mean_of_their_losses(loss_class):
    first, targets = random_batch(3)
    second = torch.randn_like(first)
    loss = loss_class(3)
    mean = (loss(first, targets) + loss(second, targets)) / 2
    torch.testing.assert_close(loss([first, second], targets), mean)


def test_weight_of_zero_leaves_the_term_out():
    logits, targets = random_batch(3)
    assert torch.equal(CEDiceLoss(3, ce_weight=0)(logits, targets), DiceLoss(3)(logits, targets))
    only_cross_entropy = CEDiceLoss(3, dice_weight=0)
    assert torch.equal(only_cross_entropy(logits, targets), torch.nn.functional.cross_entropy(logits, targets))
    only_cross_entropy.dice.forward = None  # not called
    only_cross_entropy(logits, targets)


@pytest.mark.parametrize("loss_class", [DiceLoss, CEDiceLoss])
def test_gradient_step_lowers_the_loss(loss_class):
    logits, targets = random_batch(3)
    logits.requires_grad_()
    loss = loss_class(3)(logits, targets)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss_class(3)(logits - 100 * gradient, targets) < loss - 1e-3


@pytest.mark.parametrize("loss_class", [DiceLoss, CEDiceLoss])
@pytest.mark.parametrize(
    ("logits_shape", "targets_shape"),
    [((2, 3, 8, 8), (2, 8, 8)), ((2, 2, 8, 8), (2, 1, 8, 8)), ((2, 2, 8, 8), (2, 8, 4)), ((2, 2, 8, 8), (1, 8, 8))],
)
def test_shapes_that_do_not_agree_are_refused(loss_class, logits_shape, targets_shape):
    with pytest.raises(UserError, match="n_classes=2 it needs"):
        loss_class(2)(torch.zeros(logits_shape), torch.zeros(targets_shape, dtype=torch.int64))


def test_examples_in_the_docstrings():
    assert doctest.testmod(dice_loss).failed == 0


@pytest.mark.parametrize("n_classes", [1, 3])
def test_ignored_pixels_have_no_part_in_the_loss(n_classes):
    logits, targets = random_batch(n_classes, num_images=3, size=(6, 8))
    masked = targets.clone()
    masked[:, 4:] = 255
    masked[1, :, 5:] = 255
    cut = [(logits[:1, :, :4], targets[:1, :4]), (logits[1:2, :, :4, :5], targets[1:2, :4, :5]),
           (logits[2:, :, :4], targets[2:, :4])]  # fmt: skip
    for make in (PixelCELoss, DiceLoss, CEDiceLoss):
        of_images = torch.stack([make(n_classes)(*image) for image in cut])
        ignoring = make(n_classes, ignore_index=255)
        torch.testing.assert_close(ignoring(logits, masked), of_images.mean())
        torch.testing.assert_close(ignoring(logits, targets), make(n_classes)(logits, targets))
        assert torch.isfinite(ignoring(logits, torch.full_like(targets, 255)))


@pytest.mark.parametrize("n_classes", [1, 3])
def test_classes_of_pixels_count_by_their_weights(n_classes):
    logits, targets = random_batch(n_classes)
    weight = torch.tensor([0.5, 2.0, 4.0][: max(n_classes, 2)])
    scores = torch.cat([torch.zeros_like(logits), logits], dim=1) if n_classes == 1 else logits
    each = F.cross_entropy(scores, targets, reduction="none") * weight[targets]
    torch.testing.assert_close(PixelCELoss(n_classes, weight.tolist())(logits, targets), each.mean())
    dice = DiceLoss(n_classes)(logits, targets)
    torch.testing.assert_close(CEDiceLoss(n_classes, weight=weight.tolist())(logits, targets), each.mean() + dice)


@pytest.mark.parametrize("loss_class", [PixelCELoss, DiceLoss, CEDiceLoss])
@pytest.mark.parametrize(("n_classes", "value"), [(1, 255), (1, 2), (2, 2), (2, -1), (3, 255)])
def test_a_target_that_is_no_class_is_named(loss_class, n_classes, value):
    logits, targets = random_batch(n_classes)
    targets[1, 2, 3] = value
    with pytest.raises(UserError, match=f"targets {value}, but {max(n_classes, 2)} classes are numbered from 0"):
        loss_class(n_classes)(logits, targets)


def test_an_image_of_a_volume_is_all_of_it():
    logits, targets = torch.randn(2, 3, 4, 5, 6), torch.randint(3, (2, 4, 5, 6))
    targets[torch.rand(targets.shape) < 0.4] = 255
    flat = PixelCELoss(3, ignore_index=255)(logits.flatten(2)[..., None], targets.flatten(1)[..., None])
    assert PixelCELoss(3, ignore_index=255)(logits, targets).item() == pytest.approx(flat.item())


@pytest.mark.parametrize("n_classes", [1, 2])
@pytest.mark.parametrize("loss", [PixelCELoss, DiceLoss, CEDiceLoss])
def test_masks_of_any_type_that_holds_classes_are_taken(loss, n_classes):
    logits, targets = random_batch(n_classes)
    types = [torch.bool, torch.uint8, torch.int32, *([torch.float32] if n_classes == 1 else [])]
    expected = loss(n_classes)(logits, targets)
    assert all(torch.equal(loss(n_classes)(logits, targets.to(kind)), expected) for kind in types)
    with pytest.raises(UserError, match="Convert them in the data set"):
        loss(n_classes)(logits, targets + 0.5)


def test_a_class_of_few_bits_is_not_taken_for_an_ignored_one():
    logits, targets = torch.randn(1, 200, 2, 2), torch.tensor([[[156, 0], [1, 199]]])
    loss = PixelCELoss(200, ignore_index=-100)
    assert torch.equal(loss(logits, targets.byte()), loss(logits, targets))
