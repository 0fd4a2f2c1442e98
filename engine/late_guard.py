"""Refuse updates that are not finite without making a GPU wait in each of them."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from engine.update_guard import UpdateGuard
from utils.seed import RandomBookmark

UNREAD = -1.0


@dataclass
class Unread:
    """An update whose check has not been read yet, and where everything stood before it."""

    update: Any
    buffers: list[torch.Tensor]
    kept: list[torch.Tensor]
    random: RandomBookmark
    counts: list[Any]
    had_state: bool  # whether the optimizer had any; at its first step it makes some even when that is void
    name: str = ""
    numbers: tuple = ()
    flag: torch.Tensor | None = None  # in memory of the CPU, where the GPU writes: 0 or 1, before that UNREAD


class LateGuard(UpdateGuard):
    """An `UpdateGuard` whose checks are read some updates later, while the GPU is at work on the next ones.

    To look at a number of the GPU's, the CPU must wait until it is computed, and meanwhile prepares nothing, so that
    afterwards the GPU waits for the CPU. Here nobody waits. The check stays on the GPU, as a flag that the fused
    optimizers of torch know (``found_inf``): where it is 1, their step changes nothing. Once it is 1 it stays 1. So
    when the CPU reads it, up to `lag` updates later, the weights are still those before the bad update, and only what
    the CPU itself has counted since then is to be put back.

    Args:
        modules: see `UpdateGuard`.
        optimizer: the only one, fused.
        counters: what counts updates on the CPU. Each has `state_dict` and `load_state_dict`, or `mark` and `back_to`
            where these would wait for the GPU. They are called in every update.
        lag: updates that may be unread.
        sum_losses: see `UpdateGuard`. With several processes all must read a check after the same update, so it is read
            when `lag` updates have passed, and not as soon as it has come in.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        optimizer: Optimizer,
        counters: Iterable[Any],
        lag: int = 8,
        sum_losses: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        super().__init__(modules, policy="stop", sum_losses=sum_losses)
        self.optimizer = optimizer
        self.counters: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
            (c.mark, c.back_to) if hasattr(c, "mark") else (c.state_dict, c.load_state_dict) for c in counters
        ]
        self.counters.append((self._learning_rates, self._set_learning_rates))
        self.lag = lag
        device = optimizer.param_groups[0]["params"][0].device
        self.bad = optimizer.found_inf = torch.zeros((), device=device)  # whether this update or one before it is
        self._one = torch.ones((), device=device)
        self._rooms = [self._kept, *(self.room_for_buffers() for _ in range(lag))]  # one more than may be unread
        self._flags = torch.zeros(lag + 1, pin_memory=device.type == "cuda").unbind()
        self._count = 0
        self._unread: deque[Unread] = deque()

    def begin_update(self, update: Any = None) -> None:
        place = self._count % (self.lag + 1)
        self._kept = self._rooms[place]
        super().begin_update(update)
        counts = [tell() for tell, _ in self.counters]
        without_data = dataclasses.replace(update, micro_batches=[]) if update is not None else None
        before = Unread(without_data, self._buffers, self._kept, self._random, counts, bool(self.optimizer.state))
        before.flag = self._flags[place].fill_(UNREAD)
        self._count += 1
        self._unread.append(before)

    def check(self, name: str, grad_norm: torch.Tensor, may_overflow: bool = False) -> None:
        """Make the step that follows void, and all later ones, when a loss or the gradient is not finite.

        A second step in one update is looked at at once, since then the update cannot be taken back as a whole.
        """
        if self.stepped:
            return super().check(name, grad_norm, may_overflow)
        suspect = self.suspect(grad_norm)
        # The kernel of torch's own GradScaler: sets `bad` to 1 where something is not finite, and never back to 0.
        torch._amp_foreach_non_finite_check_and_unscale_([suspect], self.bad, self._one)
        before = self._unread[-1]
        before.name, before.numbers = name, (grad_norm, self._loss)
        before.flag.copy_(self.bad, non_blocking=True)

    def settle(self, wait: bool = False) -> None:
        """Read the checks that have come in; with `wait`, all of them.

        Raises:
            DivergedError: when one failed. All is as it was before that update, which is its attribute `update`.
        """
        while self._unread and (wait or len(self._unread) > self.lag or self._has_come(self._unread[0])):
            before = self._unread.popleft()
            if self._wait_for(before):
                self._go_back(before)
                error = self.divergence(before.name, *before.numbers)
                error.update = before.update
                raise error

    def _has_come(self, before: Unread) -> bool:
        return self.sum_losses is None and self.bad.is_cuda and float(before.flag) != UNREAD

    def _wait_for(self, before: Unread) -> bool:
        """Return whether an update was bad, as soon as it is known; the GPU may have more to do by then."""
        is_idle = False
        while float(before.flag) == UNREAD and not is_idle:  # idle, and still unread: it was never checked
            time.sleep(2e-5)
            is_idle = not self.bad.is_cuda or torch.cuda.current_stream(self.bad.device).query()
        return float(before.flag) == 1

    def _go_back(self, before: Unread) -> None:
        self._unread.clear()
        self._buffers, self._kept, self._random, self.stepped = before.buffers, before.kept, before.random, []
        self.undo()
        self.bad.zero_()
        if not before.had_state:
            self.optimizer.state.clear()
        for (_, take_back), count in zip(self.counters, before.counts, strict=True):
            take_back(count)

    def _learning_rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def _set_learning_rates(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def build_guard(
    modules: Iterable[nn.Module],
    optimizers: Mapping[str, Optimizer],
    counters: Iterable[Any],
    policy: str,
    max_skips: int,
    at_once: bool,
    sum_losses: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> UpdateGuard:
    """Return a `LateGuard` where steps can be made void on the device and nothing but a stop follows, else the other.

    Args:
        modules, counters: see the two classes.
        optimizers: by name.
        policy, max_skips, sum_losses: see `UpdateGuard`.
        at_once: whether it must be known at once if a step is made: for a gradient scaler (of fp16), which uses the
            optimizers' flag for its own purposes, or an average that must not take in what is taken back.
    """
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    fits = len(optimizers) == 1 and policy == "stop" and not at_once
    if fits and all(group.get("fused") and all(p.is_cuda for p in group["params"]) for group in groups):
        (optimizer,) = optimizers.values()
        return LateGuard(modules, optimizer, counters, sum_losses=sum_losses)
    return UpdateGuard(modules, policy, max_skips, sum_losses)
