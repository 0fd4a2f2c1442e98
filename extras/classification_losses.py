"""Further losses of classification: --loss_type Focal, --loss_type Brier."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loss.classification_loss import NEVER, targets_explained
from utils.errors import UserError


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
        with targets_explained(logits, labels):
            cross_entropy = F.cross_entropy(logits, labels, reduction="none", ignore_index=NEVER)  # (N,)
        return ((1 - torch.exp(-cross_entropy)) ** self.gamma * cross_entropy).mean()


class BrierLoss(nn.Module):
    """Squared distance of the predicted probabilities from the true ones, which are 0 and 1; from 0 to 2.

    Source: Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review, 1950.
    """

    def __init__(self):  # without it, the signature is that of nn.Module, which takes anything
        super().__init__()

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits (N, C) and labels (N,), a scalar."""
        with targets_explained(logits, labels):
            truth = F.one_hot(labels, logits.shape[1]).expand(logits.shape)  # (N, C)
        return (logits.softmax(dim=1) - truth).square().sum(dim=1).mean()
