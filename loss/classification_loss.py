"""Losses of classification. Each is a mean over the samples of a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import UserError


class CrossEntropyLoss(nn.Module):
    """Cross-entropy, as a mean over all samples even with weights for the classes.

    torch's own divides by the sum of the weights in the batch. Then the mean over a batch is not that of its
    micro-batches, and their size would change the result. With weights that are 1 in the mean over the samples, the
    loss is about as large as without.

    Args:
        n_classes: number of classes.
        weight: a number for each class, at least 0; None for 1 each.
        ignore_index: a class whose samples count as 0.
        label_smoothing: share of each label that is spread evenly over all classes, 0 to 1.

    Raises:
        UserError: when there is not a weight for each class, or a number is out of range.
    """

    def __init__(
        self,
        n_classes: int,
        weight: Sequence[float] | Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        weight = None if weight is None else torch.as_tensor(weight, dtype=torch.float)  # (C,)
        if weight is not None and weight.shape != (n_classes,):
            raise UserError(f"The cross-entropy needs a list of {n_classes} weights, one for each class.")
        if weight is not None and not ((weight >= 0).all() and weight.any()):
            raise UserError("The weights of the cross-entropy must be at least 0, and not all 0.")
        if not 0 <= label_smoothing <= 1:
            raise UserError(f"label_smoothing={label_smoothing:g} is out of range: it must be from 0 to 1.")
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits (N, C, ...) and labels (N, ...), a scalar of at least 0."""
        settings = {"ignore_index": self.ignore_index, "label_smoothing": self.label_smoothing}
        if self.weight is None and self.ignore_index < 0:  # torch's mean is that over all samples
            return F.cross_entropy(logits, labels, **settings)
        return F.cross_entropy(logits, labels, self.weight, reduction="none", **settings).mean()


class FocalLoss(nn.Module):
    """Cross-entropy that counts a sample less, the surer the network is of it.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Args:
        gamma: at least 0, which is the cross-entropy itself.

    Raises:
        UserError: when gamma is below 0.
    """

    def __init__(self, gamma: float = 2.0):
        super().__init__()
        if gamma < 0:
            raise UserError(f"gamma={gamma:g} of the focal loss is out of range: it must be at least 0.")
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits (N, C) and labels (N,), a scalar of at least 0."""
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")  # (N,)
        return ((1 - torch.exp(-cross_entropy)) ** self.gamma * cross_entropy).mean()


class BrierLoss(nn.Module):
    """Squared distance of the predicted probabilities from the true ones, which are 0 and 1; from 0 to 2.

    Source: Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review, 1950.
    """

    def __init__(self):  # without it, the signature is that of nn.Module, which takes anything
        super().__init__()

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits (N, C) and labels (N,), a scalar."""
        truth = F.one_hot(labels, logits.shape[1])  # (N, C)
        return (logits.softmax(dim=1) - truth).square().sum(dim=1).mean()
