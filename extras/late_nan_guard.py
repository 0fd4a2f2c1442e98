"""Check the updates on a GPU without waiting for it: an update that is not finite is found some updates later."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.nan_guard import Before, NanGuard, default_message
from engine.progress import Progress
from utils.errors import DivergedError

UNREAD = -1.0


@dataclass
class Pending:
    """An update whose check has not been read yet, and where everything stood before it."""

    update: Any  # without its data
    before: Before
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
        modules: Sequence[nn.Module],
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
        self.counters.append((self._settings, self._set_settings))
        self.lag = lag
        device = optimizer.param_groups[0]["params"][0].device
        self.bad = optimizer.found_inf = torch.zeros((), device=device)  # whether this update or one before it is
        self._one = torch.ones((), device=device)
        self._rooms = [Before(modules) for _ in range(lag + 1)]  # one more than may be unread
        self._flags = torch.zeros(lag + 1, pin_memory=device.type == "cuda").unbind()
        self._count = 0
        self._pending: deque[Pending] = deque()

    def begin_update(self, update: Any = None) -> None:
        place = self._count % (self.lag + 1)
        self._before = self._rooms[place]
        super().begin_update(update)
        pending = Pending(
            update=dataclasses.replace(update, micro_batches=[]) if update is not None else None,
            before=self._before,
            counts=[mark() for mark, _ in self.counters],
            had_state=bool(self.optimizer.state),
            flag=self._flags[place].fill_(UNREAD),
        )
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
        self._before = pending.before
        self.stepped = []
        self.undo()
        self.bad.zero_()
        if not pending.had_state:
            self.optimizer.state.clear()
        for (_, back_to), count in zip(self.counters, pending.counts, strict=True):
            back_to(count)

    def _settings(self) -> list[dict[str, Any]]:
        """Return what a schedule may change in the groups of the optimizer: rates, and often momentum or betas."""
        groups = self.optimizer.param_groups
        return [{name: copied(value) for name, value in group.items() if name != "params"} for group in groups]

    def _set_settings(self, settings: list[dict[str, Any]]) -> None:
        for group, values in zip(self.optimizer.param_groups, settings, strict=True):
            group |= values


def copied(value: Any) -> Any:
    """Return a value that a schedule cannot change in place."""
    return value.clone() if isinstance(value, Tensor) else value
