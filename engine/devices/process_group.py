"""Several processes that train together, seen from one of them."""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.devices.job import DEFAULT_TIMEOUT, RUN, attempt, job_store, place
from utils.errors import DivergedError, PeerError
from utils.meter import Meter

PEER_WORDS = ("timed out", "timeout", "connection closed", "connection reset", "broken pipe", "connection refused")
join_numbers = itertools.count()


def share_of(count: int, rank: int, size: int) -> tuple[int, int]:
    """Return where the share of process `rank` in `count` things begins and ends; the first processes take one more.

    >>> [share_of(8, rank, 3) for rank in range(3)]
    [(0, 3), (3, 6), (6, 8)]
    """
    each, more = divmod(count, size)
    begin = rank * each + min(rank, more)
    return begin, begin + each + (rank < more)


def gather_tensors(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """Return the tensors of all processes of a group (None: of all), of any shapes, without the empty ones."""
    tensors: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(tensors, tensor.detach().cpu(), group)
    return [of_process.to(tensor.device) for of_process in tensors if of_process.numel()] or [tensor]


class Distributed:
    """The processes that train together, seen from one of them.

    With one process every method returns its input, or does nothing, at once. With several, all of them call the same
    methods in the same order, unless a method says otherwise.

    Args:
        rank: of this process.
        size: number of processes.
        local_rank: rank on this machine.
        timeout: seconds that the others may take to come to the same call.

    Attributes:
        is_main: whether this is process 0, which alone writes files and logs.
        is_sharded: whether networks are sharded (FSDP), so that a forward pass needs all processes.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, timeout: float = DEFAULT_TIMEOUT):
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.timeout = timeout
        self.is_main = rank == 0
        self.is_sharded = False
        self._wrapped: list[nn.Module] = []
        self._vote: tuple[Any, Tensor] | None = None  # under way, see `agree`
        self._num_local = self._num_total = 0  # samples of the update: of this process, and of all

    @classmethod
    def join(cls, timeout: float = DEFAULT_TIMEOUT, device: torch.device | None = None) -> "Distributed":
        """Meet the other processes.

        Args:
            timeout: see the class.
            device: of this process; None for a CPU.

        Raises:
            PeerError: not all of them come.
        """
        rank, size, local_rank = place()
        if size == 1:
            return cls()
        number = next(join_numbers)
        if not dist.is_initialized():
            backend = "gloo"
            if device is not None and device.type == "cuda":
                torch.cuda.set_device(device)
                backend = "cpu:gloo,cuda:nccl"
            try:
                # A prefix, because the store still has what earlier attempts and runs left there.
                store = dist.PrefixStore(f"attempt {attempt()}, {number}", job_store(timeout))
                limit = timedelta(seconds=timeout)
                dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
            except (dist.DistError, RuntimeError) as error:
                raise PeerError(
                    f"Process {rank} of {size} has waited {timeout:g} seconds (--dist_timeout) for the others: "
                    f"{' '.join(str(error).split())[:120]}"
                ) from None
        return cls(rank, size, local_rank, timeout)

    def leave(self, in_order: bool = True) -> None:
        """Leave the others after the last common call; with `in_order=False`, after an error of this process alone."""
        if self.size > 1 and in_order:
            self.barrier()
            dist.destroy_process_group()

    @property
    def share(self) -> tuple[int, int]:
        """Rank and number of processes, see `share_of`."""
        return self.rank, self.size

    # ---- exchange values ---------------------------------------------------------------------------------------------
    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, anything that can be pickled, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """Return the value of process `source`, anything that can be pickled, in every process."""
        if self.size == 1:
            return value
        box = [value if self.rank == source else None]
        dist.broadcast_object_list(box, src=source)
        return box[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the processes' tensors, all of one shape and type; the same bits in every process."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

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
        if self.size == 1:
            return dict(values)
        means = [(means, count) for means, count in self.gather((dict(values), num_samples)) if means and count]
        total = sum(count for _, count in means)
        if not total:
            return dict.fromkeys(values, float("nan"))
        return {name: sum(means[name] * count for means, count in means) / total for name in values}

    def agree(self, wish: int, at_once: bool = True) -> int:
        """Return the largest of the processes' wishes, whole numbers from 0 on.

        Args:
            wish: of this process.
            at_once: wait for the wishes of now; otherwise return those of the last call, which have arrived meanwhile.
        """
        if self.size == 1:
            return wish
        earlier = 0
        if self._vote is not None:
            work, ballot = self._vote
            self._vote = None
            work.wait()
            earlier = int(ballot)
        if at_once:
            return self.largest(max(wish, earlier))
        ballot = torch.tensor(wish)
        self._vote = dist.all_reduce(ballot, op=dist.ReduceOp.MAX, async_op=True), ballot
        return earlier

    # ---- do things together ------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the first process of each machine run the block before its others: it may fill a cache."""
        if self.local_rank > 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()

    def new_group(self) -> Any:
        """Return another group of all processes, for messages between CPUs; None for a single process."""
        return dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout)) if self.size > 1 else None

    def merge(self, meters: Mapping[str, Any]) -> None:
        """Make every meter what it would be had it seen the batches of all processes, in the order of the ranks.

        Metrics of torchmetrics exchange their states in `compute`. Their own way to gather tensors fails when a process
        has seen no sample, so it is replaced.
        """
        if self.size == 1:
            return
        states = {}
        for name, meter in meters.items():
            if isinstance(meter, Meter):
                states[name] = {key: value.cpu() for key, value in meter.state_dict().items()}
            elif isinstance(meter, nn.Module):
                for metric in meter.modules():
                    if getattr(metric, "dist_sync_fn", self) is None:
                        metric.dist_sync_fn = gather_tensors
        of_processes = self.gather(states)
        for name in states:
            meters[name].merge([states[name] for states in of_processes])

    def in_step(self, batches: Iterable[Any], before: Callable[[], Any] = lambda: None) -> Iterator[tuple[Any, bool]]:
        """Yield (batch, True) for each batch; for sharded networks also (padding, False) while others have more.

        Args:
            batches: of this process; others may have fewer, or none.
            before: is called before each batch of any process, by all of them.
        """
        iterator = iter(batches)
        padding = None  # the last batch, or that of another process
        while True:
            batch = next(iterator, None)
            has_batch = batch is not None
            if not self.largest(has_batch):
                return
            before()
            if self.is_sharded and padding is None and self.largest(not has_batch):
                padding = self.broadcast(batch, source=self.largest(self.rank if has_batch else -1))
            if has_batch:
                padding = batch
            if has_batch or self.is_sharded:
                yield padding, has_batch

    def print_once(self, *values: Any) -> None:
        """Print in process 0 alone. The others need not call it."""
        if self.is_main:
            print(*values, flush=True)

    def print_in_order(self, *values: Any) -> None:
        """Print the values of every process in the order of the ranks.

        Process 0 prints for all, because the output of several processes reaches a terminal in any order.
        """
        for rank, text in enumerate(self.gather(" ".join(map(str, values)))):
            self.print_once(f"[process {rank}] {text}" if self.size > 1 else text)

    # ---- one update --------------------------------------------------------------------------------------------------
    def begin_update(self, update: Any, may_lose_samples: bool) -> int:
        """Agree on the number of samples that all processes learn from in an update, and return it.

        Args:
            update: see `data.loader.Update`.
            may_lose_samples: samples that cannot be loaded are left out, so the processes must ask each other.
        """
        self._num_local = self._num_total = update.num_local
        if self.size > 1:
            self._num_total = self.totals(update.num_local)[0] if may_lose_samples else update.num_samples
        return self._num_total

    @contextlib.contextmanager
    def gradients(self, synchronize: bool) -> Iterator[None]:
        """Let a backward pass in the block add up the gradients of all processes, or not."""
        with contextlib.ExitStack() as stack:
            for network in self._wrapped:
                if hasattr(network, "set_requires_gradient_sync"):
                    network.set_requires_gradient_sync(synchronize)
                elif not synchronize:
                    stack.enter_context(network.no_sync())
            yield

    def to_share(self, loss: Tensor, weight: float) -> Tensor:
        """Return `weight` times a mean over samples of this process, scaled for differentiation.

        The gradients of W processes are averaged. For the mean over all samples of the update, each loss is multiplied
        by its process's share of them times W. A loss that is not finite makes every gradient NaN, so that all
        processes see it.
        """
        if self.size == 1:
            return loss if weight == 1 else loss * weight
        factor = weight * self._num_local * self.size / self._num_total
        # The factor is a number, because a tensor of float32 would round it.
        return loss * factor * torch.where(loss.detach().isfinite(), 1.0, float("nan"))

    # ---- networks ----------------------------------------------------------------------------------------------------
    def add(self, network: nn.Module, is_sharded: bool) -> None:
        """Register a wrapped network, whose gradients are added up."""
        self._wrapped.append(network)
        self.is_sharded |= is_sharded

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the buffers of process 0, such as the statistics of batch normalization."""
        if self.size > 1:
            with torch.no_grad():
                for buffer in (buffer for module in modules for buffer in module.buffers()):
                    dist.broadcast(buffer, src=0)

    # ---- errors and restarts -----------------------------------------------------------------------------------------
    def save_for_restart(self, **about_run: Any) -> None:
        """Let process 0 store what a later attempt of the job needs to resume the run."""
        if self.size > 1 and self.is_main:
            job_store().set(RUN, json.dumps(about_run))

    def is_common(self, error: BaseException) -> bool:
        """Return whether all processes raise an error at the same place, so that they can still save together."""
        return self.size == 1 or isinstance(error, KeyboardInterrupt | SystemExit | DivergedError)

    def cause_of(self, error: BaseException) -> BaseException:
        """Return PeerError for an error which says that another process does not answer; else the error itself."""
        if self.size == 1 or not isinstance(error, RuntimeError):
            return error
        if isinstance(error, dist.DistError) or any(words in str(error).lower() for words in PEER_WORDS):
            return PeerError(
                f"Process {self.rank} of {self.size} gets no answer from another one, which died, or has hung for more "
                f"than {self.timeout:g} seconds (--dist_timeout)."
            )
        return error
