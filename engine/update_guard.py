"""Refuse an update whose loss or gradient is infinite or not a number, before it reaches the weights."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from utils.errors import DivergedError, UserError
from utils.seed import RandomBookmark

POLICIES = ("stop", "skip")


class UpdateGuard:
    """Watches one update at a time, and can undo what its forward passes changed.

    The weights need no undoing, since the check comes before the optimizer's step. But a forward pass also moves
    buffers (the statistics of batch normalization, which one NaN would spoil for good) and random generators: those are
    remembered at the beginning of an update, and put back if it is refused. So a refused update can be made again,
    exactly, and a run that skips it goes on as if it had not been tried.

    A NaN anywhere in a gradient makes its norm NaN, so the norm is all there is to look at, with the loss.

    Args:
        modules: what the forward passes go through: the networks and the criterion.
        policy: "stop" ends the run at a refused update, "skip" goes on without it.
        max_skips: with "skip", the number of refused updates that one run may have.
        sum_losses: makes of a loss that of all processes, where the gradient does not tell of it, see `may_overflow`.

    >>> guard = UpdateGuard([nn.Linear(1, 1)])
    >>> guard.begin_update()
    >>> guard.add_loss(torch.tensor(0.5))
    >>> guard.check("model", grad_norm=torch.tensor(float("nan")))
    Traceback (most recent call last):
    utils.errors.DivergedError: the gradient of 'model' is not finite: its norm is nan, the loss 0.5
    """

    def __init__(
        self, modules: Iterable[nn.Module], policy: str = "stop", max_skips: int = 10,
        sum_losses: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):  # fmt: skip
        assert policy in POLICIES, policy
        self.sum_losses = sum_losses
        self.policy = policy
        self.max_skips = max_skips
        self.num_skipped = 0
        self.stepped: list[str] = []  # networks whose step of the update under way is already made
        # By owner and name, because a forward pass may also put a new tensor in the place of a buffer.
        owners = [owner for module in modules for owner in module.modules()]
        self._places = [(owner, name) for owner in owners for name, _ in owner.named_buffers(recurse=False)]
        self._buffers: list[torch.Tensor] = []
        self._kept = self.room_for_buffers()
        self._loss: torch.Tensor | None = None
        self._random: RandomBookmark | None = None

    def room_for_buffers(self) -> list[torch.Tensor]:
        """Memory for one copy of all buffers."""
        return [getattr(owner, name).clone() for owner, name in self._places]

    def begin_update(self, update: Any = None) -> None:
        """Remember what the update may change besides weights; what it is made from, `update`, is not needed here."""
        self.stepped, self._loss = [], None
        self._buffers = [getattr(owner, name) for owner, name in self._places]
        if self._buffers:
            torch._foreach_copy_(self._kept, [buffer.detach() for buffer in self._buffers])
        self._random = RandomBookmark(self._random)

    def add_loss(self, loss: torch.Tensor) -> None:
        """Count a loss of this update in; it is looked at with the gradient, so as to wait for the device only once.

        Raises:
            UserError: when it is no scalar.
        """
        if loss.numel() != 1:
            raise UserError(
                f"The loss of a batch has the shape {tuple(loss.shape)}: it must be a scalar, the mean over samples."
            )
        loss = loss.detach()
        self._loss = loss if self._loss is None else self._loss + loss

    def check(self, name: str, grad_norm: torch.Tensor, may_overflow: bool = False) -> None:
        """Raise DivergedError when the losses of this update or the gradient of network `name` are not finite.

        Args:
            name: the network that is about to be stepped.
            grad_norm: the norm of its gradient, a scalar.
            may_overflow: look at the loss only: the overflow of scaled float16 gradients is the scaler's to mend.
        """
        suspect = self.suspect(grad_norm)
        if may_overflow:
            suspect = self._loss if self.sum_losses is None or self._loss is None else self.sum_losses(self._loss)
        if suspect is not None and not math.isfinite(suspect):
            raise self.divergence(name, grad_norm, self._loss)

    def divergence(self, name: str, grad_norm: torch.Tensor, loss: torch.Tensor | None) -> DivergedError:
        """The error that tells what was not finite; the same in all processes, which all come here."""
        loss = self.sum_losses(loss) if self.sum_losses is not None and loss is not None else loss
        told = f"its norm is {float(grad_norm):g}, the loss {float('nan') if loss is None else float(loss):g}"
        return DivergedError(f"the gradient of {name!r} is not finite: {told}")

    def suspect(self, grad_norm: torch.Tensor) -> torch.Tensor:
        """What is not finite when anything is. With several processes it must be the same in all: see `sum_losses`."""
        return grad_norm if self._loss is None or self.sum_losses is not None else grad_norm + self._loss

    def settle(self, wait: bool = False) -> None:
        """Look at checks that are still on their way: there are none here, since `check` looks at once."""

    def undo(self) -> bool:
        """Put back what the update changed. False when a step of it was already made, which cannot be undone."""
        if self._buffers:
            with torch.no_grad():
                torch._foreach_copy_(self._buffers, self._kept)
            for (owner, name), buffer in zip(self._places, self._buffers, strict=True):
                setattr(owner, name, buffer)
        self._random.put_back()
        return not self.stepped

    def begin_again(self) -> None:
        """Put back what the update under way has changed, of which no step was made, to make it once more."""
        self.undo()
        self._loss = None

    def may_skip(self) -> bool:
        """Say whether the run may go on without a refused update, and if so count it."""
        allowed = self.policy == "skip" and self.num_skipped < self.max_skips and not self.stepped
        self.num_skipped += allowed
        return allowed

    def state_dict(self) -> dict[str, Any]:
        return {"num_skipped": self.num_skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_skipped = state["num_skipped"]
