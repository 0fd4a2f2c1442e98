"""Refuse an update whose loss or gradient is infinite or not a number, before it reaches the weights."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.checkpoints.state import is_expanded
from engine.progress import Progress
from utils.errors import DivergedError, UserError
from utils.seed import RandomBookmark

POLICIES = ("stop", "skip")


def default_message(update: Any, error: DivergedError) -> str:
    return str(error)


class Before:
    """Buffers and random generators as they were before an update: all that a forward pass changes.

    Args:
        modules: modules that the forward passes go through.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        owners = [owner for module in modules for owner in module.modules()]
        # By owner and name, because a forward pass may also replace a buffer by a new tensor.
        self.places = [(owner, name) for owner in owners for name, _ in owner.named_buffers(recurse=False)]
        self.buffers: list[Tensor] = []
        self.copies = [getattr(owner, name).clone() for owner, name in self.places]
        self.random: RandomBookmark | None = None

    @torch.no_grad()
    def take(self, previous: RandomBookmark | None) -> None:
        """Remember how things are now; `previous` is the bookmark before this one in a series."""
        self.buffers = [getattr(owner, name) for owner, name in self.places]
        if [copy.shape for copy in self.copies] != [buffer.shape for buffer in self.buffers]:
            self.copies = [buffer.clone() for buffer in self.buffers]  # one has grown, as a memory bank does
        elif self.buffers:
            torch._foreach_copy_(self.copies, self.buffers)
        self.random = RandomBookmark(previous)

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore everything."""
        for (owner, name), buffer, copy in zip(self.places, self.buffers, self.copies, strict=True):
            is_replaced = is_expanded(buffer) or buffer.shape != copy.shape  # nothing can be copied into it
            setattr(owner, name, copy.clone() if is_replaced else buffer.copy_(copy))
        self.random.put_back()


class NanGuard:
    """Checks each update before its step, and undoes it when the step cannot be made.

    The weights need no undoing, because the check comes before the optimizer's step. But a forward pass also moves
    buffers (the running statistics of batch normalization, which one NaN would spoil for good) and random generators.
    These are remembered at the beginning of an update and put back if it fails. So a failed update leaves the run
    exactly where it was, and can be made again or left out.

    A NaN anywhere in a gradient makes its norm NaN, so the norm and the loss are all there is to check.

    Args:
        modules: modules that the forward passes go through: the networks and the criterion.
        progress: records whether the state is that between two updates.
        policy: "stop" ends the run at a non-finite update, "skip" leaves it out.
        max_skips: number of updates that one run may leave out.
        sum_losses: sums a loss over all processes; None with one process.
        describe: writes the message on an error of an update, with the names of its samples.
        warn: takes a message when an update is left out.

    >>> guard = NanGuard([nn.Linear(1, 1)], Progress())
    >>> guard.begin_update()
    >>> guard.add_loss(torch.tensor(0.5))
    >>> guard.check("model", grad_norm=torch.tensor(float("nan")))
    Traceback (most recent call last):
    utils.errors.DivergedError: the gradient of 'model' is not finite: its norm is nan, the loss 0.5
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        progress: Progress,
        policy: str = "stop",
        max_skips: int = 10,
        sum_losses: Callable[[Tensor], Tensor] | None = None,
        describe: Callable[[Any, DivergedError], str] = default_message,
        warn: Callable[[str], Any] = print,
    ):
        assert policy in POLICIES, policy
        self.progress = progress
        self.policy = policy
        self.max_skips = max_skips
        self.sum_losses = sum_losses
        self.describe = describe
        self.warn = warn
        self.num_skipped = 0
        self.stepped: list[str] = []  # networks whose step in this update has begun
        self._before = Before(modules)
        self._random: RandomBookmark | None = None  # of the last update
        self._parameters = [parameter for module in modules for parameter in module.parameters()]
        self._versions: list[int] = []  # torch counts how often a tensor was written to
        self._loss: Tensor | None = None

    # ---- one update ----------------------------------------------------------------------------------------------
    def attempt(self, step: Callable[[Any], dict[str, Any]], update: Any) -> dict[str, Any] | None:
        """Call `step` with an update and return its values; None when the update is skipped.

        Whatever `step` raises before it writes to a weight leaves everything as it was before the update.

        Raises:
            DivergedError: the loss or a gradient is not finite, and the policy is to stop, or no skip is left.
        """
        self.begin_update(update)
        try:
            return step(update) or {}  # also of a step that returns nothing
        except Exception as error:
            is_undone = self.undo()
            if not isinstance(error, DivergedError):
                self.progress.is_exact = is_undone and self._versions == self._read_versions()
                raise
            self.progress.is_exact = is_undone  # `check` comes when the weights are those before the step
            message = self.describe(update, error)
            if self.stepped:
                message += "\nAnother network was already stepped, so the update cannot be undone."
            if not self.may_skip():
                raise DivergedError(message) from None
            self.warn(f"{message}\nSkipped: {self.num_skipped} of at most {self.max_skips}.")
            return None

    def begin_update(self, update: Any = None) -> None:
        """Remember what the update may change besides weights."""
        self.stepped = []
        self._loss = None
        # The short cut of a bookmark after another one is not taken where it could change a later update.
        is_series = self.policy == "stop" and self.progress.sample > 0
        self._before.take(self._random if is_series else None)
        self._random = self._before.random
        self._versions = self._read_versions()

    def _read_versions(self) -> list[int]:
        return [parameter._version for parameter in self._parameters]

    def add_loss(self, loss: Tensor) -> None:
        """Add a loss of this update to those that are checked with the gradient.

        Raises:
            UserError: it is not a scalar.
        """
        if loss.numel() != 1:
            raise UserError(
                f"The loss of a batch has the shape {tuple(loss.shape)}: it must be a scalar, the mean over samples."
            )
        loss = loss.detach()
        self._loss = loss if self._loss is None else self._loss + loss

    def check(self, name: str, grad_norm: Tensor, may_overflow: bool = False) -> None:
        """Check the losses of this update and the gradient of the network that is about to be stepped.

        Args:
            name: the network.
            grad_norm: norm of its gradient, a scalar.
            may_overflow: check the loss alone, because the gradients are scaled (float16) and the scaler handles an
                overflow by itself.

        Raises:
            DivergedError: one of them is not finite. No weight has changed.
        """
        suspect = self._suspect(grad_norm)
        if may_overflow:
            suspect = self._loss if self.sum_losses is None or self._loss is None else self.sum_losses(self._loss)
        if suspect is not None and not math.isfinite(suspect):
            raise self._divergence(name, grad_norm, self._loss)

    def check_earlier(self, wait: bool = False) -> None:
        """Read checks that a GPU has not answered yet; there are none here, because `check` waits for the answer."""

    def forget(self) -> None:
        """Drop checks that are not read yet; there are none here."""

    def _suspect(self, grad_norm: Tensor) -> Tensor:
        """Return a scalar that is not finite when anything is. In several processes it is the same in all of them."""
        return grad_norm if self._loss is None or self.sum_losses is not None else grad_norm + self._loss

    def _divergence(self, name: str, grad_norm: Tensor, loss: Tensor | None) -> DivergedError:
        if self.sum_losses is not None and loss is not None:
            loss = self.sum_losses(loss)  # every process comes here
        loss_text = "nan" if loss is None else f"{float(loss):g}"
        return DivergedError(
            f"the gradient of {name!r} is not finite: its norm is {float(grad_norm):g}, the loss {loss_text}"
        )

    def undo(self) -> bool:
        """Put back what the update changed; return False when a step has begun, which cannot be undone."""
        self._before.put_back()
        return not self.stepped

    def may_skip(self) -> bool:
        """Return whether the update may be left out, and count it if so."""
        allowed = self.policy == "skip" and self.num_skipped < self.max_skips and not self.stepped
        self.num_skipped += allowed
        return allowed

    def state_dict(self) -> dict[str, Any]:
        return {"num_skipped": self.num_skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_skipped = int(state["num_skipped"])


def can_be_voided(optimizers: Collection[Optimizer]) -> bool:
    """Return whether a flag on the GPU can make a step change nothing: there is one optimizer, and it is fused."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    is_on_gpu = all(group.get("fused") and all(p.is_cuda for p in group["params"]) for group in groups)
    return is_on_gpu and len(optimizers) == 1
