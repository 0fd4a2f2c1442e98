"""Refuse an update whose loss or gradient is infinite or not a number, before it reaches the weights."""

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.progress import Progress
from utils.errors import DivergedError, UserError
from utils.seed import RandomBookmark

POLICIES = ("stop", "skip")
UNREAD = -1.0


def default_message(update: Any, error: DivergedError) -> str:
    return str(error)


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
        modules: Iterable[nn.Module],
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
        # By owner and name, because a forward pass may also replace a buffer by a new tensor.
        modules = list(modules)
        owners = [owner for module in modules for owner in module.modules()]
        self._parameters = [parameter for module in modules for parameter in module.parameters()]
        self._places = [(owner, name) for owner in owners for name, _ in owner.named_buffers(recurse=False)]
        self._buffers: list[Tensor] = []
        self._copies = self._allocate_copies()
        self._loss: Tensor | None = None
        self._random: RandomBookmark | None = None
        self._versions: list[int] = []  # torch counts how often a tensor was written to

    def _allocate_copies(self) -> list[Tensor]:
        return [getattr(owner, name).clone() for owner, name in self._places]

    # ---- one update ----------------------------------------------------------------------------------------------
    def attempt(self, step: Callable[[Any], dict[str, Any]], update: Any) -> dict[str, Any] | None:
        """Call `step` with an update and return its values; None when the update is skipped.

        Whatever `step` raises before it writes to a weight leaves everything as it was before the update.

        Raises:
            DivergedError: the loss or a gradient is not finite, and the policy is to stop, or no skip is left.
        """
        self.begin_update(update)
        try:
            return step(update)
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
        self._buffers = [getattr(owner, name) for owner, name in self._places]
        if self._buffers:
            torch._foreach_copy_(self._copies, [buffer.detach() for buffer in self._buffers])
        # The short cut of a bookmark after another one is not taken where it could change a later update.
        is_series = self.policy == "stop" and self.progress.sample > 0
        self._random = RandomBookmark(self._random if is_series else None)
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
        if self._buffers:
            with torch.no_grad():
                torch._foreach_copy_(self._buffers, self._copies)
            for (owner, name), buffer in zip(self._places, self._buffers, strict=True):
                setattr(owner, name, buffer)
        self._random.put_back()
        return not self.stepped

    def may_skip(self) -> bool:
        """Return whether the update may be left out, and count it if so."""
        allowed = self.policy == "skip" and self.num_skipped < self.max_skips and not self.stepped
        self.num_skipped += allowed
        return allowed

    def state_dict(self) -> dict[str, Any]:
        return {"num_skipped": self.num_skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_skipped = state["num_skipped"]


# ---- on a GPU --------------------------------------------------------------------------------------------------------
@dataclass
class Pending:
    """An update whose check has not been read yet, and where everything stood before it."""

    update: Any  # without its data
    buffers: list[Tensor]
    copies: list[Tensor]
    random: RandomBookmark
    counts: list[Any]
    had_state: bool  # whether the optimizer had any: its first step creates some, even when the step is void
    flag: Tensor  # in the CPU's memory, written by the GPU: 0 or 1, before that UNREAD
    name: str = ""
    grad_norm: Tensor | None = None
    loss: Tensor | None = None


class DeferredNanGuard(NanGuard):
    """Reads its checks some updates later, while the GPU works on the next ones.

    To read a number of the GPU, the CPU must wait until it is computed. Meanwhile it prepares nothing, so afterwards
    the GPU waits for the CPU. Here nobody waits. The check stays on the GPU, as a flag that the fused optimizers of
    torch know (``found_inf``): where it is 1, their step changes nothing. Once it is 1 it stays 1. So when the CPU
    reads it, up to `lag` updates later, the weights are still those before the bad update. Only what the CPU has
    counted since then must be put back.

    Args:
        modules, progress, sum_losses, describe: see `NanGuard`. Several processes must read a check after the same
            update, so they read it when `lag` updates have passed, not when it arrives.
        optimizer: the only one, fused.
        counters: objects that count updates on the CPU. Each has `state_dict` and `load_state_dict`, or `mark` and
            `back_to` where these would wait for the GPU. They are called in every update.
        lag: updates that may be unread.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        progress: Progress,
        optimizer: Optimizer,
        counters: Iterable[Any],
        lag: int = 8,
        sum_losses: Callable[[Tensor], Tensor] | None = None,
        describe: Callable[[Any, DivergedError], str] = default_message,
    ):
        super().__init__(modules, progress, sum_losses=sum_losses, describe=describe)
        self.optimizer = optimizer
        self.counters: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
            (c.mark, c.back_to) if hasattr(c, "mark") else (c.state_dict, c.load_state_dict) for c in counters
        ]
        self.counters.append((self._learning_rates, self._set_learning_rates))
        self.lag = lag
        device = optimizer.param_groups[0]["params"][0].device
        self.bad = optimizer.found_inf = torch.zeros((), device=device)  # whether this update or one before it is
        self._one = torch.ones((), device=device)
        self._rooms = [self._copies, *(self._allocate_copies() for _ in range(lag))]  # one more than may be unread
        self._flags = torch.zeros(lag + 1, pin_memory=device.type == "cuda").unbind()
        self._count = 0
        self._pending: deque[Pending] = deque()

    def begin_update(self, update: Any = None) -> None:
        place = self._count % (self.lag + 1)
        self._copies = self._rooms[place]
        super().begin_update(update)
        counts = [mark() for mark, _ in self.counters]
        flag = self._flags[place].fill_(UNREAD)
        had_state = bool(self.optimizer.state)
        without_data = dataclasses.replace(update, micro_batches=[]) if update is not None else None
        pending = Pending(without_data, self._buffers, self._copies, self._random, counts, had_state, flag)
        self._pending.append(pending)
        self._count += 1

    def check(self, name: str, grad_norm: Tensor, may_overflow: bool = False) -> None:
        """Make the step that follows void, and all later ones, when a loss or the gradient is not finite.

        A second step in one update is checked at once, because then the update cannot be undone as a whole.
        """
        if self.stepped:
            return super().check(name, grad_norm, may_overflow)
        suspect = self._suspect(grad_norm)
        # The kernel of torch's own GradScaler: sets `bad` to 1 where something is not finite, and never back to 0.
        torch._amp_foreach_non_finite_check_and_unscale_([suspect], self.bad, self._one)
        pending = self._pending[-1]
        pending.name = name
        pending.grad_norm = grad_norm
        pending.loss = self._loss
        pending.flag.copy_(self.bad, non_blocking=True)

    def check_earlier(self, wait: bool = False) -> None:
        """Read the checks that have arrived; with `wait`, all of them.

        Raises:
            DivergedError: one failed. Everything is as it was before that update.
        """
        while self._pending and (wait or len(self._pending) > self.lag or self._has_come(self._pending[0])):
            pending = self._pending.popleft()
            if self._wait_for(pending):
                self._go_back(pending)
                error = self._divergence(pending.name, pending.grad_norm, pending.loss)
                raise DivergedError(self.describe(pending.update, error))

    def forget(self) -> None:
        """Drop the checks that are not read yet, of updates that were only tried."""
        self._pending.clear()
        self.bad.zero_()

    def _has_come(self, pending: Pending) -> bool:
        return self.sum_losses is None and self.bad.is_cuda and float(pending.flag) != UNREAD

    def _wait_for(self, pending: Pending) -> bool:
        """Return whether an update was bad, as soon as it is known; the GPU may have more to do by then."""
        is_idle = False
        while float(pending.flag) == UNREAD and not is_idle:  # idle and still unread: it was never checked
            time.sleep(2e-5)
            is_idle = not self.bad.is_cuda or torch.cuda.current_stream(self.bad.device).query()
        return float(pending.flag) == 1

    def _go_back(self, pending: Pending) -> None:
        self._pending.clear()
        self._buffers = pending.buffers
        self._copies = pending.copies
        self._random = pending.random
        self.stepped = []
        self.undo()
        self.bad.zero_()
        if not pending.had_state:
            self.optimizer.state.clear()
        for (_, back_to), count in zip(self.counters, pending.counts, strict=True):
            back_to(count)

    def _learning_rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def _set_learning_rates(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def build_guard(
    modules: Iterable[nn.Module],
    progress: Progress,
    optimizers: Mapping[str, Optimizer],
    counters: Iterable[Any],
    policy: str,
    max_skips: int,
    reads_at_once: bool,
    sum_losses: Callable[[Tensor], Tensor] | None = None,
    describe: Callable[[Any, DivergedError], str] = default_message,
    warn: Callable[[str], Any] = print,
) -> NanGuard:
    """Build a `DeferredNanGuard` if a step can be made void on the device and the policy is to stop; else a `NanGuard`.

    Args:
        modules, progress, optimizers, counters, policy, max_skips, sum_losses, describe, warn: see the two classes.
        reads_at_once: something must know at once whether a step is made: a gradient scaler (of fp16), which uses the
            optimizers' flag itself, or an average of the weights, which must not take in what is undone later.
    """
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    is_on_gpu = all(group.get("fused") and all(p.is_cuda for p in group["params"]) for group in groups)
    if is_on_gpu and len(optimizers) == 1 and policy == "stop" and not reads_at_once:
        (optimizer,) = optimizers.values()
        return DeferredNanGuard(modules, progress, optimizer, counters, sum_losses=sum_losses, describe=describe)
    return NanGuard(modules, progress, policy, max_skips, sum_losses, describe, warn)
