"""Losses of segmentation: the cross-entropy of pixels, soft Dice, and their sum.

All are computed in float32, whatever autocast does: a sum over the pixels of an image leaves the range of float16, and
bfloat16 keeps three digits of it. Each is the mean of the losses of the single images. So the loss of a batch is the
mean over its micro-batches, which give the same update as the whole batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loss.classification_loss import check_logits, check_targets, checked_weight
from utils.errors import UserError


class SegmentationLoss(nn.Module):
    """The base of the losses here: checks the targets, averages several outputs, and turns autocast off.

    Args:
        n_classes: number of classes, which is the number of logits per pixel; 1 for the sigmoid of one logit.
        ignore_index: the value of pixels that are left out, such as 255; the mean over an image is that of the others.
    """

    def __init__(self, n_classes: int, ignore_index: int | None = None):
        super().__init__()
        self.n_classes = n_classes
        self.ignored = ignore_index

    def loss_of(self, scores: Tensor, targets: Tensor, counts: Tensor | None) -> Tensor:
        """Return the loss of float32 scores (N, n_classes, H, W) and targets (N, H, W), int64.

        Args:
            counts: (N, H, W), 1 for a pixel that counts and 0 for one that is ignored, whose target is 0; None if all
                count.
        """
        raise NotImplementedError

    def forward(self, logits: Tensor | Sequence[Tensor], targets: Tensor) -> Tensor:
        """Return the loss, a float32 scalar of at least 0.

        Args:
            logits: (N, n_classes, H, W), or a list of them, whose losses are averaged (deep supervision).
            targets: (N, H, W), whole numbers or bool, the class of each pixel, from 0 to n_classes - 1, or
                `ignore_index`. For one class they are 0 or 1, also as floating-point numbers.

        Raises:
            UserError: when logits, targets and `n_classes` do not agree.
        """
        if isinstance(logits, (list, tuple)):
            return torch.stack([self(each, targets) for each in logits]).mean()
        check_logits(logits)
        if logits.shape[1] != self.n_classes or logits.shape[:1] + logits.shape[2:] != targets.shape:
            raise UserError(
                f"The loss got logits of shape {tuple(logits.shape)} and targets of shape {tuple(targets.shape)}; with "
                f"n_classes={self.n_classes} it needs (N, {self.n_classes}, H, W) and (N, H, W). "
                f"Give the model and the loss the same number of classes."
            )
        if not targets.is_floating_point() or (self.n_classes == 1 and (targets == targets.long()).all()):
            targets = targets.long()
        check_targets(logits, targets, self.ignored)
        counts = None
        if self.ignored is not None:
            counts = (targets != self.ignored).float()
            targets = targets.where(targets != self.ignored, 0)
        with torch.autocast(logits.device.type, enabled=False):
            return self.loss_of(logits.float(), targets, counts)


class PixelCELoss(SegmentationLoss):
    """Cross-entropy as a mean over the pixels; with one class, the binary cross-entropy of the sigmoid.

    Args:
        n_classes, ignore_index: see `SegmentationLoss`.
        weight: a number for each class, at least 0 (for one class: of 0 and of 1), by which its pixels count; the mean
            is over all pixels nevertheless, see `CrossEntropyLoss`.

    Raises:
        UserError: when there is not a weight for each class.
    """

    def __init__(self, n_classes: int, weight: Sequence[float] | None = None, ignore_index: int | None = None):
        super().__init__(n_classes, ignore_index)
        self.register_buffer("weight", checked_weight(weight, max(n_classes, 2)))

    def loss_of(self, scores: Tensor, targets: Tensor, counts: Tensor | None) -> Tensor:
        if self.weight is None and counts is None:
            return self.of_pixels(scores, targets, reduction="mean")
        losses = self.of_pixels(scores, targets, reduction="none").reshape(targets.shape)  # (N, H, W)
        if self.weight is not None:
            losses = losses * self.weight[targets]
        if counts is None:
            return losses.mean()
        return ((losses * counts).flatten(1).sum(1) / counts.flatten(1).sum(1).clamp(min=1)).mean()

    def of_pixels(self, scores: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Return the cross-entropy of each pixel, or their mean."""
        if self.n_classes == 1:
            return F.binary_cross_entropy_with_logits(scores.squeeze(1), targets.float(), reduction=reduction)
        if scores.is_cuda and torch.are_deterministic_algorithms_enabled():  # for images, CUDA has no such algorithm
            rows = scores.movedim(1, -1).flatten(0, -2)  # (N H W, C)
            return F.cross_entropy(rows, targets.flatten(), reduction=reduction)
        return F.cross_entropy(scores, targets, reduction=reduction)


class DiceLoss(SegmentationLoss):
    """Soft Dice loss: 1 - 2 Σpt / (Σp² + Σt²), where p is the probability and t is 1 inside the class, 0 outside.

    The sums run over the pixels of one image, and the loss is the mean over the foreground classes and the images.
    `smooth` is added to numerator and denominator, so a class that is neither in the mask nor predicted costs nothing.
    With one class p is the sigmoid of the logit. With two or more it is the softmax, and class 0 is the background and
    does not count.

    Source: Milletari, Navab and Ahmadi, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
    Segmentation", 3DV 2016.

    >>> loss = DiceLoss(n_classes=2)
    >>> logits = torch.tensor([[-20.0, 20.0], [20.0, -20.0]]).reshape(1, 2, 1, 2)  # class 1, then class 0
    >>> round(loss(logits, torch.tensor([[[1, 0]]])).item(), 4)
    0.0
    >>> round(loss(logits, torch.tensor([[[0, 1]]])).item(), 4)  # 1 - (0 + 1) / (1 + 1 + 1), with smooth = 1
    0.6667

    Args:
        n_classes, ignore_index: see `SegmentationLoss`.
        smooth: above 0, in pixels. It softens the loss of a class that covers only about so many pixels.

    Raises:
        UserError: when `smooth` is out of range.
    """

    def __init__(self, n_classes: int, smooth: float = 1.0, ignore_index: int | None = None):
        super().__init__(n_classes, ignore_index)
        if smooth <= 0:
            raise UserError(f"smooth={smooth:g} of the Dice loss is out of range: it must be above 0.")
        self.smooth = smooth

    def loss_of(self, scores: Tensor, targets: Tensor, counts: Tensor | None) -> Tensor:
        scores = scores.flatten(2)  # (N, C, P) with P = H * W
        labels = targets.flatten(1).unsqueeze(1)  # (N, 1, P)
        probabilities = scores.sigmoid() if self.n_classes == 1 else scores.softmax(dim=1)[:, 1:]  # (N, F, P)
        num_foreground = probabilities.shape[1]  # F: 1 for one class, else C - 1, since class 0 is left out
        classes = torch.arange(1, num_foreground + 1, device=targets.device)  # (F,)
        inside = (labels == classes.reshape(1, -1, 1)).float()  # (N, F, P); 0 at an ignored pixel
        if counts is not None:
            probabilities = probabilities * counts.flatten(1).unsqueeze(1)
        overlap = (probabilities * inside).sum(dim=2)  # (N, F)
        total = probabilities.square().sum(dim=2) + inside.sum(dim=2)  # (N, F); the square of 0 and 1 is itself
        dice = (2 * overlap + self.smooth) / (total + self.smooth)  # (N, F)
        return 1 - dice.mean()


class CEDiceLoss(SegmentationLoss):
    """Cross-entropy plus soft Dice: the first is smooth everywhere, the second is not dominated by frequent classes.

    Args:
        n_classes, ignore_index: see `SegmentationLoss`.
        ce_weight: weight of the cross-entropy, at least 0.
        dice_weight: weight of the Dice loss, at least 0; not both are 0.
        smooth: see `DiceLoss`.
        weight: of the classes in the cross-entropy, see `PixelCELoss`.

    Raises:
        UserError: when a number is out of range.
    """

    def __init__(
        self,
        n_classes: int,
        ce_weight: float = 1.0,
        dice_weight: float = 1.0,
        smooth: float = 1.0,
        weight: Sequence[float] | None = None,
        ignore_index: int | None = None,
    ):
        super().__init__(n_classes, ignore_index)
        if min(ce_weight, dice_weight) < 0 or ce_weight == dice_weight == 0:
            raise UserError(
                f"ce_weight={ce_weight:g}, dice_weight={dice_weight:g}: both must be at least 0, and one above it."
            )
        self.ce_weight = ce_weight
        self.dice_weight = dice_weight
        self.cross_entropy = PixelCELoss(n_classes, weight)
        self.dice = DiceLoss(n_classes, smooth)

    def loss_of(self, scores: Tensor, targets: Tensor, counts: Tensor | None) -> Tensor:
        cross_entropy = self.cross_entropy.loss_of(scores, targets, counts)
        return self.ce_weight * cross_entropy + self.dice_weight * self.dice.loss_of(scores, targets, counts)
