"""Several processes that train together, seen from one of them. Imported when there are several."""

import contextlib
import inspect
import itertools
import json
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.devices.job import place
from engine.devices.process_group import Distributed
from engine.registry import load
from extras.buffers import buffers_of
from extras.job_store import DEFAULT_TIMEOUT, RUN, attempt, job_store
from utils.errors import DivergedError, PeerError, UserError
from utils.meter import Meter

MOST_NAMES = 5  # of parameters, in a message
PEER_WORDS = ("timed out", "timeout", "connection closed", "connection reset", "broken pipe", "connection refused")
CPU = torch.device("cpu")
join_numbers = itertools.count()


class SeveralProcesses(Distributed):
    """Several processes; `Distributed` says what each method is for. The gradients are added up by DDP.

    DDP: every process has the whole network, and the gradients are added up while they are computed (Li et al.,
    "PyTorch Distributed", VLDB 2020).

    Args:
        rank: of this process.
        size: number of processes.
        local_rank: rank on this machine.
        timeout: seconds that the others may take to come to the same call.

    Attributes:
        sync_bn: whether `wrap` makes batch normalization go over the batches of all processes; in place.
        find_unused: whether the parameters that a loss reaches may differ from update to update.
    """

    kind = "ddp"
    sync_bn = False
    find_unused = False
    needs_backward = True

    def __init__(self, rank: int, size: int, local_rank: int = 0, timeout: float = DEFAULT_TIMEOUT):
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self.timeout = timeout
        self.is_main = rank == 0
        self._wrapped: list[nn.Module] = []
        self._vote: tuple[Any, Tensor] | None = None  # under way, see `agree`
        self._num_local = self._num_total = 0  # samples of the update: of this process, and of all

    @classmethod
    def join(cls, timeout: float = DEFAULT_TIMEOUT, device: torch.device = CPU) -> "SeveralProcesses":
        """Meet the other processes; PeerError when not all of them come within `timeout` seconds."""
        rank, size, local_rank, _ = place()
        number = next(join_numbers)
        if not dist.is_initialized():
            backend = "gloo"
            if device.type == "cuda":
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
        """Wait for the others at the end of a run. The group stays for what a task does after it; see `end_group`."""
        if in_order:
            self.barrier()

    def describe(self, batch_size: int) -> str:
        """Return a line for the log, on updates of `batch_size` samples."""
        each, more = divmod(batch_size, self.size)
        counts = f"{each} or {each + 1}" if more else f"{each}"
        share = f"each with {counts} of the {batch_size} samples of an update"
        return f"{self.size} processes ({self.kind}), {share}."

    # ---- exchange values ---------------------------------------------------------------------------------------------
    def gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any, source: int = 0) -> Any:
        box = [value if self.rank == source else None]
        dist.broadcast_object_list(box, src=source)
        return box[0]

    def sum(self, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def mean(self, values: Mapping[str, float], num_samples: int) -> dict[str, float]:
        means = [(means, count) for means, count in self.gather((dict(values), num_samples)) if means and count]
        total = sum(count for _, count in means)
        if not total:
            return dict.fromkeys(values, float("nan"))
        return {name: sum(means[name] * count for means, count in means) / total for name in values}

    def agree(self, wish: int, at_once: bool = True) -> int:
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
        if self.local_rank > 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()

    def merge(self, meters: Mapping[str, Any]) -> None:
        """Merge meters, see `Distributed.merge`.

        Metrics of torchmetrics exchange their states in `compute`. Their own way to gather tensors fails when a process
        has seen no sample, so it is replaced.
        """
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
        iterator = iter(batches)
        while True:
            batch = next(iterator, None)
            has_batch = batch is not None
            if not self.largest(has_batch):
                return
            before()
            if has_batch:
                yield batch, True

    def print_in_order(self, *values: Any) -> None:
        # Process 0 prints for all, because the output of several processes reaches a terminal in any order.
        for rank, text in enumerate(self.gather(" ".join(map(str, values)))):
            self.print_once(f"[process {rank}] {text}")

    # ---- one update --------------------------------------------------------------------------------------------------
    def begin_update(self, update: Any, may_lose_samples: bool) -> int:
        self._num_local = sum(update.amounts)
        is_known = update.counts is None and not may_lose_samples
        self._num_total = update.num_samples if is_known else self.totals(self._num_local)[0]
        return self._num_total

    @contextlib.contextmanager
    def gradients(self, synchronize: bool) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if not synchronize:
                for network in self._wrapped:
                    stack.enter_context(network.no_sync())
            self.needs_backward = synchronize or self.sync_bn
            yield
            self.needs_backward = True
        if synchronize:
            self.check_reach()

    def check_reach(self) -> None:
        """Raise UserError if a backward pass has not reached all parameters of a network.

        DDP adds up the gradients when all have come, so it has added up none. A process that has reached all waits in
        its backward pass, until this one ends.
        """
        for network in self._wrapped:
            try:
                network._check_reducer_finalized()
            except RuntimeError:
                trained = [(name, p) for name, p in network.module.named_parameters() if p.requires_grad]
                unreached = [name for name, parameter in trained if parameter.grad is None] or ["some parameters"]
                more = f" and {len(unreached) - MOST_NAMES} more" if len(unreached) > MOST_NAMES else ""
                raise UserError(
                    f"The loss does not reach {', '.join(unreached[:MOST_NAMES])}{more}, and so several processes "
                    f"cannot add up their gradients. If other updates reach that: --find_unused; if none does: "
                    f"--freeze {unreached[0]}"
                ) from None

    def to_share(self, loss: Tensor, weight: float) -> Tensor:
        """Return `weight` times a mean over samples of this process, scaled for differentiation.

        The gradients of W processes are averaged. For the mean over all samples of the update, each loss is multiplied
        by its process's share of them times W. A loss that is not finite makes every gradient NaN, so that all
        processes see it. One that counts nothing adds nothing to any gradient.
        """
        if weight == 0:
            drop_nan_gradients(loss)
        factor = weight * self._num_local * self.size / self._num_total
        # The factor is a number, because a tensor of float32 would round it.
        return loss * factor * torch.where(loss.detach().isfinite(), 1.0, float("nan"))

    # ---- networks ----------------------------------------------------------------------------------------------------
    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        others = [other for other in self._wrapped if getattr(other, "module", None) is not network]
        if len(others) < len(self._wrapped):  # again, because other parameters are trained now, see extras/unfreeze.py
            # In the midst of training the parameters are alike, and each process has buffers of its own.
            self._wrapped = [*others, self.parallelize(network, device)]
            return self._wrapped[-1]
        if self.sync_bn:
            if device.type != "cuda":
                raise UserError("--sync_bn needs GPUs: torch has no synchronised batch normalization for CPUs.")
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            return network  # nothing to add up
        for parameter in network.parameters():
            dist.broadcast(parameter.detach(), src=0)  # the networks must begin alike, whatever seeds a task has set
        self.share_buffers([network])
        self._wrapped.append(self.parallelize(network, device))
        return self._wrapped[-1]

    def parallelize(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return a module whose backward pass adds up the gradients of all processes."""
        ddp = nn.parallel.DistributedDataParallel
        names = ("forward_sync_buffers", "broadcast_buffers")  # of one setting; torch 2.15 warns of the older
        name = next(name for name in names if name in inspect.signature(ddp).parameters)
        # Buffers: once before each validation is enough, see `share_buffers`. A gradient is not kept twice.
        settings = {name: False, "gradient_as_bucket_view": True, "find_unused_parameters": self.find_unused}
        settings["init_sync"] = False  # `wrap` does it; DDP would also overwrite buffers when it is put on once more
        return ddp(network, device_ids=[device] if device.type == "cuda" else None, **settings)

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        places = buffers_of(modules)
        looks = self.gather([look_of(buffer) for _, _, buffer in places])
        shared: dict[int, Tensor] = {}  # by the identity of the process's own; modules may have one in common
        for (owner, name, buffer), *of_processes in zip(places, *looks, strict=True):
            is_alike = of_processes[0] is not None and of_processes.count(of_processes[0]) == self.size
            if id(buffer) not in shared and is_alike:
                dist.broadcast(buffer.detach(), src=0)
                shared[id(buffer)] = buffer
            elif id(buffer) not in shared:
                shared[id(buffer)] = self.broadcast(buffer.detach().cpu().clone()).to(buffer.device)
            if shared[id(buffer)] is not buffer:
                setattr(owner, name, shared[id(buffer)])

    # ---- errors and restarts -----------------------------------------------------------------------------------------
    def save_for_restart(self, **about_run: Any) -> None:
        if self.is_main:
            job_store().set(RUN, json.dumps(about_run))

    def is_common(self, error: BaseException) -> bool:
        return isinstance(error, KeyboardInterrupt | SystemExit | DivergedError)

    def cause_of(self, error: BaseException) -> BaseException:
        is_of_torch = isinstance(error, RuntimeError)
        is_of_peer = isinstance(error, dist.DistError) or any(words in str(error).lower() for words in PEER_WORDS)
        if not (is_of_torch and is_of_peer):
            return error
        return PeerError(
            f"Process {self.rank} of {self.size} gets no answer from another one, which died, or has hung for more "
            f"than {self.timeout:g} seconds (--dist_timeout)."
        )


def drop_nan_gradients(loss: Tensor) -> None:
    """Let the backward pass of a loss of weight 0 put 0 in the place of NaN, wherever one appears.

    The mean over nothing is 0 / 0, and its derivative stays NaN when it is multiplied by 0. It is dropped at the node
    that makes it, because from there it would reach all parameters. What other processes send through a synchronised
    batch normalization passes unchanged.
    """

    def without_nan(gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...]:
        is_dense = [g is not None and g.layout is torch.strided for g in gradients]
        return tuple(torch.where(g.isnan(), 0.0, g) if d else g for g, d in zip(gradients, is_dense, strict=True))

    seen = {loss.grad_fn, None}  # the nodes themselves, because torch may give the id of one to another
    nodes = [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        following = {node for node, _ in node.next_functions} - seen
        seen |= following
        nodes += following
        if node.next_functions:  # that of a parameter has none, and lives on
            node.register_hook(without_nan)


def end_group() -> None:
    """Part from the other processes, at the end of a program."""
    if dist.is_initialized():
        # Else the first would take the connections from under the others.
        dist.all_gather_object([None] * dist.get_world_size(), None)
        dist.destroy_process_group()


def look_of(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return what must be the same in all processes for one's numbers to be written into the memory of the others'.

    It is None where that cannot be: an expanded tensor shows some numbers several times, and a slice has others
    between its own.
    """
    is_whole = tensor.layout is torch.strided and tensor.is_contiguous()
    return (tuple(tensor.shape), str(tensor.dtype)) if is_whole else None


def gather_tensors(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """Return the tensors of all processes of a group (None: of all), of any shapes, without the empty ones."""
    tensors: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(tensors, tensor.detach().cpu(), group)
    return [of_process.to(tensor.device) for of_process in tensors if of_process.numel()] or [tensor]


def join(opt: Namespace, device: torch.device) -> SeveralProcesses:
    """Meet the other processes as the options ask for; UserError when these do not fit several processes."""
    size = place().size
    if opt.parallel == "dp":
        raise UserError("--parallel dp is for one process: with several, give --parallel ddp or fsdp.")
    if opt.parallel == "fsdp" and opt.amp == "fp16":
        raise UserError("--parallel fsdp does not scale the loss of --amp fp16. Give --amp bf16, or --parallel ddp.")
    if opt.batch_size < size:
        raise UserError(f"--batch_size {opt.batch_size} leaves some of {size} processes without a sample.")
    made = load("extras.sharding:ShardedProcesses", "parallel") if opt.parallel == "fsdp" else SeveralProcesses
    distributed = made.join(opt.dist_timeout, device)
    distributed.sync_bn = opt.sync_bn
    distributed.find_unused = opt.find_unused
    return distributed
