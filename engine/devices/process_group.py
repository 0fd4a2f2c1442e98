"""The processes that train together, seen from one of them. Here is the common case: one process alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn


def share_of(count: int, rank: int, size: int) -> tuple[int, int]:
    """Return where the share of process `rank` in `count` things begins and ends; the first processes take one more.

    >>> [share_of(8, rank, 3) for rank in range(3)]
    [(0, 3), (3, 6), (6, 8)]
    """
    each, more = divmod(count, size)
    begin = rank * each + min(rank, more)
    return begin, begin + each + (rank < more)


class Distributed:
    """One process: every method returns its input, or does nothing, at once.

    `extras.several_processes.SeveralProcesses` overrides them. There all processes call the same methods in the same
    order, unless a method says otherwise.

    Attributes:
        rank: of this process.
        size: number of processes.
        is_main: whether this is process 0, which alone writes files and logs.
        is_sharded: whether networks are sharded (FSDP), so that a forward pass needs all processes.
        needs_backward: whether other processes wait for the backward pass of each micro-batch, also of an idle one.
    """

    rank = 0
    size = 1
    is_main = True
    is_sharded = False
    needs_backward = False

    @property
    def share(self) -> tuple[int, int]:
        """Rank and number of processes, see `share_of`."""
        return self.rank, self.size

    # ---- exchange values ---------------------------------------------------------------------------------------------
    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, anything that can be pickled, in the order of their ranks."""
        return [value]

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """Return the value of process `source`, anything that can be pickled, in every process."""
        return value

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the processes' tensors, all of one shape and type; the same bits in every process."""
        return tensor

    def barrier(self) -> None:
        """Wait for all processes."""
        self.gather(None)

    def largest(self, number: int) -> int:
        """Return the largest of the processes' numbers; of truth values, whether any is true."""
        return max(self.gather(number))

    def totals(self, *counts: int) -> tuple[int, ...]:
        """Return the sum of each count over all processes."""
        return tuple(sum(of_processes) for of_processes in zip(*self.gather(counts), strict=True))

    def mean(self, values: Mapping[str, float], num_samples: int) -> dict[str, float]:
        """Return means over the samples of all processes, given those over `num_samples` here; NaN over none."""
        return dict(values)

    def agree(self, wish: int, at_once: bool = True) -> int:
        """Return the largest of the processes' wishes, whole numbers from 0 on.

        Args:
            wish: of this process.
            at_once: wait for the wishes of now; otherwise return those of the last call, which have arrived meanwhile.
        """
        return wish

    # ---- do things together ------------------------------------------------------------------------------------------
    def main_first(self) -> AbstractContextManager:
        """Let the first process of each machine run the block before its others: it may fill a cache."""
        return nullcontext()

    def merge(self, meters: Mapping[str, Any]) -> None:
        """Make every meter what it would be had it seen the batches of all processes, in the order of the ranks."""

    def in_step(self, batches: Iterable[Any], before: Callable[[], Any] = lambda: None) -> Iterator[tuple[Any, bool]]:
        """Yield (batch, True) for each batch; for sharded networks also (padding, False) while others have more.

        Args:
            batches: of this process; others may have fewer, or none.
            before: is called before each batch of any process, by all of them.
        """
        for batch in batches:
            before()
            yield batch, True

    def print_once(self, *values: Any) -> None:
        """Print in process 0 alone. The others need not call it."""
        if self.is_main:
            print(*values, flush=True)

    def print_in_order(self, *values: Any) -> None:
        """Print the values of every process in the order of the ranks."""
        self.print_once(*values)

    # ---- one update --------------------------------------------------------------------------------------------------
    def begin_update(self, update: Any, may_lose_samples: bool) -> int:
        """Agree on the number of samples, or other elements, that all processes learn from, and return it.

        Args:
            update: see `data.loader.Update`.
            may_lose_samples: samples that cannot be loaded are left out, so the processes must ask each other.
        """
        return sum(update.amounts)

    def gradients(self, synchronize: bool) -> AbstractContextManager:
        """Let a backward pass in the block add up the gradients of all processes, or not."""
        return nullcontext()

    def to_share(self, loss: Tensor, weight: float) -> Tensor:
        """Return `weight` times a mean over samples of this process, scaled for differentiation."""
        return loss if weight == 1 else loss * weight

    # ---- networks ----------------------------------------------------------------------------------------------------
    def wrap(self, network: nn.Module, device: Any) -> nn.Module:
        """Return the module that is called in training: its gradients are those of all processes."""
        return network

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the buffers of process 0, such as the statistics of batch normalization."""

    # ---- errors and restarts -----------------------------------------------------------------------------------------
    def save_for_restart(self, **about_run: Any) -> None:
        """Let process 0 store what a later attempt of the job needs to resume the run."""

    def is_common(self, error: BaseException) -> bool:
        """Return whether all processes raise an error at the same place, so that they can still save together."""
        return True

    def cause_of(self, error: BaseException) -> BaseException:
        """Return PeerError for an error which says that another process does not answer; else the error itself."""
        return error

    def leave(self, in_order: bool = True) -> None:
        """Leave the others after the last common call; with `in_order=False`, after an error of this process alone."""
