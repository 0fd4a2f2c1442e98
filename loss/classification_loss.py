"""Losses of classification besides the cross-entropy. Each is a mean over samples."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FocalLoss(nn.Module):
    """Cross-entropy that counts a sample the less, the surer the network is of it.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Args:
        gamma: at least 0, which is the cross-entropy itself.
    """

    def __init__(self, gamma: float = 2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits (N, C) and labels (N,), a scalar of at least 0."""
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")  # (N,)
        return ((1 - torch.exp(-cross_entropy)) ** self.gamma * cross_entropy).mean()


class BrierLoss(nn.Module):
    """The squared distance of the predicted probabilities from the true ones, which are 0 and 1; from 0 to 2.

    Source: Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review, 1950.
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits (N, C) and labels (N,), a scalar."""
        truth = F.one_hot(labels, logits.shape[1])  # (N, C)
        return (logits.softmax(dim=1) - truth).square().sum(dim=1).mean()
