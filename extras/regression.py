"""Metrics of predicted numbers: the size of the errors, and the share of the variance that is explained."""

import torch
from torch import Tensor

from utils.meter import Meter


class RMSE(Meter):
    """The root of the mean of the squared errors, in the unit of the target.

    >>> meter = RMSE()
    >>> meter.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    >>> round(meter.compute(), 4)
    1.4142
    """

    def __init__(self) -> None:
        super().__init__()
        self.declare_sum("squares", (), torch.float64)
        self.declare_sum("count", (), torch.int64)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add predictions and targets of one shape."""
        errors = predictions.detach().to(self.squares.dtype) - targets.to(self.squares.dtype)
        self.squares = self.squares + errors.square().sum()
        self.count = self.count + errors.numel()

    def compute(self) -> float:
        return (self.squares / self.count).sqrt().item()


class MAE(Meter):
    """The mean of the absolute errors, in the unit of the target.

    >>> meter = MAE()
    >>> meter.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    >>> meter.compute()
    1.0
    """

    def __init__(self) -> None:
        super().__init__()
        self.declare_sum("total", (), torch.float64)
        self.declare_sum("count", (), torch.int64)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add predictions and targets of one shape."""
        errors = predictions.detach().to(self.total.dtype) - targets.to(self.total.dtype)
        self.total = self.total + errors.abs().sum()
        self.count = self.count + errors.numel()

    def compute(self) -> float:
        return (self.total / self.count).item()


class R2(Meter):
    """One minus the squared errors as a share of those that the mean of the targets makes: 1 is best, 0 as the mean.

    It is NaN where all targets are the same.

    >>> meter = R2()
    >>> meter.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0]))
    >>> round(meter.compute(), 4)
    0.7857

    Args:
        about: a number near the targets, from which their squares are summed: less is lost by rounding.
    """

    def __init__(self, about: float = 0.0) -> None:
        super().__init__()
        self.about = about
        for name in ("errors", "total", "squares"):
            self.declare_sum(name, (), torch.float64)
        self.declare_sum("count", (), torch.int64)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add predictions and targets of one shape."""
        targets = targets.to(self.errors.dtype)
        self.errors = self.errors + (predictions.detach().to(targets.dtype) - targets).square().sum()
        self.total = self.total + (targets - self.about).sum()
        self.squares = self.squares + (targets - self.about).square().sum()
        self.count = self.count + targets.numel()

    def compute(self) -> float:
        around_mean = self.squares - self.total.square() / self.count
        return (1 - self.errors / around_mean).item() if around_mean > 0 else float("nan")
