"""Several processes that train together, seen through one small object.

The processes are started by a launcher, torch's own or another, which tells each of them its place in the environment
variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT
(https://docs.pytorch.org/docs/stable/elastic/run.html). Without them there is one process, and everything here returns
at once.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import DivergedError, PeerError, UserError
from utils.meter import Meter

DEFAULT_TIMEOUT = 600.0  # seconds
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RUN = "run"  # the name under which the store keeps what a later attempt needs
PEER_WORDS = ("timed out", "timeout", "connection closed", "connection reset", "broken pipe", "connection refused")


def share_of(count: int, rank: int, size: int) -> tuple[int, int]:
    """Where the share of process `rank` in `count` things begins and ends; the first processes take one more.

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


# ---- the launcher's part ---------------------------------------------------------------------------------------------
def place() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this machine) as the launcher set them; (0, 1, 0) without one.

    Raises:
        UserError: when they are incomplete or contradict each other.
    """
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, 0
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing and os.environ["WORLD_SIZE"] != "1":
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set, but {', '.join(missing)} not. Start the processes with "
            f"torchrun, or unset WORLD_SIZE."
        )
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    try:
        rank, size, local_rank = [int(os.environ.get(n) or default) for n, default in zip(names, "010", strict=True)]
    except ValueError:
        raise UserError(f"{', '.join(names)} must be whole numbers: a launcher such as torchrun sets them.") from None
    if not 0 <= rank < size:
        raise UserError(f"RANK={rank} does not fit WORLD_SIZE={size}: ranks go from 0 to {size - 1}.")
    return rank, size, local_rank


def local_size() -> tuple[int, int]:
    """(rank, number of processes) on this machine."""
    _, size, local_rank = place()
    return local_rank, int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if size > 1 else 1


def attempt() -> int:
    """How often the launcher has started the processes of this job again after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


num_joined = 0  # how often this process has met the others
_store: Any = None  # of this process, once it was reached
_is_out_of_reach = False  # it was asked for in vain


def job_store(timeout: float = DEFAULT_TIMEOUT) -> Any:
    """The key-value store of the job, which the launcher keeps over all attempts; None for a single process.

    Raises:
        UserError: when there is no answer within about `timeout` seconds, or the port is taken.
    """
    global _store, _is_out_of_reach
    if _is_out_of_reach:
        raise UserError("The processes could not meet.")
    if place()[1] > 1 and _store is None:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        try:
            _store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
        except (dist.DistError, RuntimeError, ValueError, OSError) as error:
            _is_out_of_reach = True
            reason = f"no answer within {timeout:g} seconds (--dist_timeout). Is process 0 started, the address right?"
            if "EADDRINUSE" in str(error):
                reason = "another program uses the port. Choose another one."
            raise UserError(f"The processes cannot meet at {address} (MASTER_ADDR:MASTER_PORT): {reason}") from None
    return _store


def earlier_run() -> dict[str, Any]:
    """What an earlier attempt of this job left word of: "run_dir" and "seed"; empty at the first one."""
    if not attempt() or place()[1] == 1 or not job_store().check([RUN]):
        return {}
    return json.loads(job_store().get(RUN))


# ---- the object ------------------------------------------------------------------------------------------------------
class Distributed:
    """This process among those that train together: what is summed, decided and shared out between them.

    Every method that says so must be called by all processes, in the same order. With one process all of them return
    at once, so that nobody has to ask.

    Args:
        rank, size, local_rank: see `place`.
        timeout: seconds that the others may take to come to the same call.

    Attributes:
        is_main: whether this is process 0, which alone writes files and logs.
        is_sharded: whether networks are cut up between the processes (FSDP), so that a forward pass needs all of them.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, timeout: float = DEFAULT_TIMEOUT):
        self.rank, self.size, self.local_rank, self.timeout = rank, size, local_rank, timeout
        self.is_main = rank == 0
        self.is_sharded = False
        self._wrapped: list[nn.Module] = []
        self._vote: tuple[Any, Tensor] | None = None  # the one that is under way
        self._num_local = self._num_total = 0  # samples of the update: of this process, and of all

    @classmethod
    def join(cls, timeout: float = DEFAULT_TIMEOUT, device: torch.device | None = None) -> "Distributed":
        """Meet the other processes; to be called by all.

        Args:
            timeout: see the class.
            device: the one of this process; None for a CPU.

        Raises:
            UserError: when they do not come.
        """
        global num_joined
        rank, size, local_rank = place()
        if size == 1:
            return cls()
        if not dist.is_initialized():
            on_gpu = device is not None and device.type == "cuda"
            if on_gpu:
                torch.cuda.set_device(device)
            try:
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                    # The launcher keeps one store for all attempts, and what the last one left there must not be met.
                    store=dist.PrefixStore(f"attempt {attempt()}, {num_joined}", job_store(timeout)),
                    rank=rank, world_size=size, timeout=timedelta(seconds=timeout),
                )  # fmt: skip
            except (dist.DistError, RuntimeError) as error:
                raise UserError(
                    f"Process {rank} of {size} waited {timeout:g} seconds (--dist_timeout) for the others in vain: "
                    f"{' '.join(str(error).split())[:120]}"
                ) from None
        num_joined += 1
        return cls(rank, size, local_rank, timeout)

    @property
    def share(self) -> tuple[int, int]:
        """(rank, number of processes), for those who cut out this process's part of something."""
        return self.rank, self.size

    def is_common(self, error: BaseException) -> bool:
        """Whether an error is raised by all processes at the same place, so that they can still save together."""
        return self.size == 1 or isinstance(error, KeyboardInterrupt | SystemExit | DivergedError)

    def leave(self, in_order: bool = True) -> None:
        """Part from the others, all together after the last common call; not `in_order` when something went wrong."""
        if self.size > 1 and in_order:
            self.barrier()
            dist.destroy_process_group()

    # ---- what all processes call -------------------------------------------------------------------------------------
    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process of each machine goes through the block before its others do: it may fill a cache."""
        if self.local_rank > 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()

    def new_group(self) -> Any:
        """Return a group of all processes for messages between CPUs apart from all others; None for a single one."""
        return dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout)) if self.size > 1 else None

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """Return the value of process `source`, anything that can be pickled, in every process."""
        if self.size == 1:
            return value
        box = [value if self.rank == source else None]
        dist.broadcast_object_list(box, src=source)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their ranks, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the processes' tensors, all of one shape and type; the same bits in every process."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def largest(self, number: int) -> int:
        """Return the largest of the processes' whole numbers; of truth values, whether any is true."""
        if self.size == 1:
            return number
        largest = torch.tensor(int(number))
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def totals(self, *counts: int) -> tuple[int, ...]:
        """Return the sums of whole numbers over all processes."""
        return tuple(self.sum(torch.tensor(counts)).tolist())

    def mean(self, values: Mapping[str, float], num_samples: int) -> dict[str, float]:
        """Return means over the samples of all processes, given those over `num_samples` here; NaN over none."""
        if self.size == 1:
            return dict(values)
        told = [(v, n) for v, n in self.gather((dict(values), num_samples)) if v and n]
        count = sum(n for _, n in told)
        return {name: sum(v[name] * n for v, n in told) / count if count else float("nan") for name in values}

    def merge(self, meters: Mapping[str, Any]) -> None:
        """Make every meter what it would be had it seen the batches of all processes, in the order of the ranks.

        A meter that is not of this template must do so itself in `compute`. One of torchmetrics does, but its way to
        gather tensors takes for granted that every process has seen some sample, so it is given another one.
        """
        if self.size == 1:
            return
        own = {name: meter for name, meter in meters.items() if isinstance(meter, Meter)}
        others = [meter for meter in meters.values() if isinstance(meter, nn.Module)]
        for metric in (metric for meter in others for metric in meter.modules()):
            if getattr(metric, "dist_sync_fn", self) is None:
                metric.dist_sync_fn = gather_tensors
        states = self.gather({name: {k: v.cpu() for k, v in m.state_dict().items()} for name, m in own.items()})
        for name, meter in own.items():
            meter.merge([state[name] for state in states])

    def agree(self, wish: int, at_once: bool = True) -> int:
        """Return the largest of all processes' wishes, whole numbers from 0 on.

        Args:
            wish: of this process.
            at_once: wait for those of this call; otherwise return those of the last call, which have long come in.
        """
        if self.size == 1:
            return wish
        before = 0
        if self._vote is not None:
            work, ballot = self._vote
            work.wait()
            before, self._vote = int(ballot), None
        if at_once:
            return self.largest(max(wish, before))
        ballot = torch.tensor(wish)
        self._vote = dist.all_reduce(ballot, op=dist.ReduceOp.MAX, async_op=True), ballot
        return before

    def in_step(self, batches: Iterable[Any], before: Callable[[], Any] = lambda: None) -> Iterator[tuple[Any, bool]]:
        """Yield (batch, True) for each batch, and where networks are cut up (a batch, False) while others have more.

        Args:
            batches: of this process; others may have fewer, or none.
            before: called before each batch of any process, by all of them.
        """
        iterator, spare, is_first = iter(batches), None, True
        while True:
            batch = next(iterator, None)
            if not self.largest(batch is not None):
                return
            before()
            if self.is_sharded and is_first and self.largest(batch is None):  # one of those that have one gives it
                spare = self.broadcast(batch, self.largest(-1 if batch is None else self.rank))
            spare, is_first = spare if batch is None else batch, False
            if batch is not None or self.is_sharded:
                yield spare, batch is not None

    def print_once(self, *values: Any) -> None:
        """Print as `print` does, in process 0 alone. The others may call it or not."""
        if self.is_main:
            print(*values, flush=True)

    def print_in_order(self, *values: Any) -> None:
        """Print what every process has to say, one after the other; to be called by all.

        Process 0 prints for all, since what several processes print reaches a terminal in any order.
        """
        for rank, text in enumerate(self.gather(" ".join(map(str, values)))):
            self.print_once(f"[process {rank}] {text}" if self.size > 1 else text)

    # ---- one update --------------------------------------------------------------------------------------------------
    def begin_update(self, update: Any, may_lose_samples: bool) -> int:
        """Agree on the number of samples that all processes learn from in an update, and return it.

        Args:
            update: see `data.sampler.Update`.
            may_lose_samples: samples that cannot be loaded are left out, so the processes must ask each other.
        """
        self._num_local = self._num_total = update.num_local
        if self.size > 1:
            self._num_total = self.totals(update.num_local)[0] if may_lose_samples else update.num_samples
        return self._num_total

    @contextlib.contextmanager
    def gradients(self, synchronize: bool) -> Iterator[None]:
        """In the block, a backward pass adds up the gradients of all processes only if it is to `synchronize`."""
        with contextlib.ExitStack() as stack:
            for network in self._wrapped:
                if hasattr(network, "set_requires_gradient_sync"):
                    network.set_requires_gradient_sync(synchronize)
                elif not synchronize:
                    stack.enter_context(network.no_sync())
            yield

    def to_share(self, loss: Tensor, weight: float) -> Tensor:
        """Return what to differentiate: `weight` times a loss which is a mean over samples of this process alone.

        The gradients of W processes are averaged. So that this becomes the mean over all samples of the update, also
        when the processes have different numbers of them, each loss is multiplied by its share of them times W. And a
        loss that is not finite makes every gradient NaN, wherever it is, so that all processes see it.
        """
        if self.size == 1:
            return loss if weight == 1 else loss * weight
        factor = weight * self._num_local * self.size / self._num_total
        # The factor is a number and not a tensor, which would be one of float32 and round it.
        return loss * factor * torch.where(loss.detach().isfinite(), 1.0, float("nan"))

    # ---- networks ----------------------------------------------------------------------------------------------------
    def add(self, network: nn.Module, is_sharded: bool) -> None:
        """Take in a network whose gradients are to be added up, wrapped for it."""
        self._wrapped.append(network)
        self.is_sharded |= is_sharded

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the buffers of process 0, such as the statistics of batch normalization."""
        if self.size > 1:
            with torch.no_grad():
                for buffer in (buffer for module in modules for buffer in module.buffers()):
                    dist.broadcast(buffer, src=0)

    # ---- the job -----------------------------------------------------------------------------------------------------
    def leave_word(self, **about_run: Any) -> None:
        """Tell a later attempt what it needs to go on; process 0 does."""
        if self.size > 1 and self.is_main:
            job_store().set(RUN, json.dumps(about_run))

    def cause_of(self, error: BaseException) -> BaseException:
        """The error itself, or PeerError when it says that another process does not answer."""
        text = str(error).lower()
        if self.size == 1 or not isinstance(error, RuntimeError) or isinstance(error, UserError):
            return error
        if isinstance(error, dist.DistError) or any(words in text for words in PEER_WORDS):
            return PeerError(
                f"Process {self.rank} of {self.size} waits in vain for another one, which died, or has hung for more "
                f"than {self.timeout:g} seconds (--dist_timeout)."
            )
        return error
