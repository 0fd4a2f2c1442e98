"""Losses for segmentation: soft Dice, and its sum with cross-entropy.

Source of soft Dice: Milletari, Navab and Ahmadi, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical
Image Segmentation", 3DV 2016.

All are computed in float32, whatever autocast does: a sum over the pixels of an image leaves the range of float16, and
bfloat16 keeps three digits of it. Each is the mean of the losses of the single images. So the loss of a batch is the
mean over its micro-batches, which give the same update as the whole batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import UserError


def check_shapes(logits: Tensor, targets: Tensor, n_classes: int) -> None:
    """Raise `UserError` unless logits are (N, n_classes, ...) and targets (N, ...) with the same sizes."""
    if logits.shape[1] != n_classes or logits.shape[:1] + logits.shape[2:] != targets.shape:
        raise UserError(
            f"The loss got logits of shape {tuple(logits.shape)} and targets of shape {tuple(targets.shape)}; with "
            f"n_classes={n_classes} it needs (N, {n_classes}, H, W) and (N, H, W). "
            f"Give the model and the loss the same number of classes."
        )


class DiceLoss(nn.Module):
    """Soft Dice loss: 1 - 2 Σpt / (Σp² + Σt²), where p is the probability and t is 1 inside the class, 0 outside.

    The sums run over the pixels of one image, and the loss is the mean over the foreground classes and the images.
    `smooth` is added above and below the line. So a class that is neither there nor predicted costs nothing.
    With one class p is the sigmoid of the logit; with two or more it is the softmax, and class 0 is the background and
    does not count.

    >>> loss = DiceLoss(n_classes=2)
    >>> logits = torch.tensor([[-20.0, 20.0], [20.0, -20.0]]).reshape(1, 2, 1, 2)  # class 1, then class 0
    >>> round(loss(logits, torch.tensor([[[1, 0]]])).item(), 4)
    0.0
    >>> round(loss(logits, torch.tensor([[[0, 1]]])).item(), 4)  # 1 - (0 + 1) / (1 + 1 + 1), with smooth = 1
    0.6667

    Args:
        n_classes: number of classes, which is the number of logits per pixel.
        smooth: above 0, in pixels. It softens the loss of a class that covers only about so many pixels.

    Raises:
        UserError: when `smooth` is out of range, or the shapes of logits, targets and `n_classes` do not agree.
    """

    def __init__(self, n_classes: int, smooth: float = 1.0):
        super().__init__()
        if smooth <= 0:
            raise UserError(f"smooth={smooth:g} of the Dice loss is out of range: it must be above 0.")
        self.n_classes = n_classes
        self.smooth = smooth

    def forward(self, logits: Tensor | Sequence[Tensor], targets: Tensor) -> Tensor:
        """Return the loss, a float32 scalar from 0 to 1.

        Args:
            logits: (N, n_classes, H, W), or a list of them, whose losses are averaged (deep supervision).
            targets: (N, H, W), int64, the class of each pixel, from 0 to n_classes - 1 (0 or 1 for one class).
        """
        if not isinstance(logits, Tensor):
            return torch.stack([self(each, targets) for each in logits]).mean()
        check_shapes(logits, targets, self.n_classes)
        with torch.autocast(logits.device.type, enabled=False):
            scores = logits.float().flatten(2)  # (N, C, P) with P = H * W
            labels = targets.flatten(1).unsqueeze(1)  # (N, 1, P)
            probabilities = scores.sigmoid() if self.n_classes == 1 else scores.softmax(dim=1)[:, 1:]  # (N, F, P)
            num_foreground = probabilities.shape[1]  # F: 1 for one class, else C - 1, since class 0 is left out
            classes = torch.arange(1, num_foreground + 1, device=targets.device)  # (F,)
            inside = (labels == classes.reshape(1, -1, 1)).float()  # (N, F, P)
            overlap = (probabilities * inside).sum(dim=2)  # (N, F)
            total = probabilities.square().sum(dim=2) + inside.sum(dim=2)  # (N, F); the square of 0 and 1 is itself
            dice = (2 * overlap + self.smooth) / (total + self.smooth)  # (N, F)
            return 1 - dice.mean()


class CEDiceLoss(nn.Module):
    """Cross-entropy plus soft Dice: the one is smooth everywhere, the other does not mind a rare class.

    One class uses the binary cross-entropy of the sigmoid. A weight of 0 leaves the term out.

    Args:
        n_classes: number of classes, which is the number of logits per pixel.
        ce_weight: weight of the cross-entropy, which is the mean over all pixels; at least 0.
        dice_weight: weight of the Dice loss, at least 0; not both are 0.
        smooth: of the Dice loss.

    Raises:
        UserError: when a number is out of range, or the shapes of logits, targets and `n_classes` do not agree.
    """

    def __init__(self, n_classes: int, ce_weight: float = 1.0, dice_weight: float = 1.0, smooth: float = 1.0):
        super().__init__()
        if min(ce_weight, dice_weight) < 0 or ce_weight == dice_weight == 0:
            raise UserError(
                f"ce_weight={ce_weight:g}, dice_weight={dice_weight:g}: both must be at least 0, and one above it."
            )
        self.n_classes = n_classes
        self.ce_weight = ce_weight
        self.dice_weight = dice_weight
        self.dice = DiceLoss(n_classes, smooth)

    def forward(self, logits: Tensor | Sequence[Tensor], targets: Tensor) -> Tensor:
        """Return the loss, a float32 scalar of at least 0. The arguments are those of `DiceLoss.forward`."""
        if not isinstance(logits, Tensor):
            return torch.stack([self(each, targets) for each in logits]).mean()
        check_shapes(logits, targets, self.n_classes)
        with torch.autocast(logits.device.type, enabled=False):
            scores = logits.float()  # (N, C, H, W)
            loss = scores.new_zeros(())
            if self.ce_weight:
                loss = loss + self.ce_weight * self.cross_entropy(scores, targets)
            if self.dice_weight:
                loss = loss + self.dice_weight * self.dice(scores, targets)
            return loss

    def cross_entropy(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy over all pixels, for scores (N, n_classes, H, W) and targets (N, H, W)."""
        if self.n_classes == 1:
            return F.binary_cross_entropy_with_logits(scores.squeeze(1), targets.float())
        if scores.is_cuda and torch.are_deterministic_algorithms_enabled():  # for images, CUDA has no such algorithm
            return F.cross_entropy(scores.movedim(1, -1).flatten(0, -2), targets.flatten())  # (N H W, C), (N H W)
        return F.cross_entropy(scores, targets)


class PixelCELoss(CEDiceLoss):
    """Cross-entropy alone, as a mean over all pixels."""

    def __init__(self, n_classes: int):
        super().__init__(n_classes, ce_weight=1.0, dice_weight=0.0)
