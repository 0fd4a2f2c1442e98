"""The parts of a trainer, made from its options."""

import contextlib
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data.data_entry import data_notes, describe
from data.sampler import UpdateLoader
from engine.checkpoints.checkpointer import Checkpointer
from engine.checkpoints.sharded_checkpointer import ShardedCheckpointer
from engine.devices.device import place_network, select_devices
from engine.devices.process_group import Distributed, local_size
from engine.devices.wrap import checkpoint_activations, wrap_network
from engine.late_guard import build_guard
from engine.options.parser import saved_options
from engine.update_guard import UpdateGuard
from utils.clipper import Clipper
from utils.errors import UserError
from utils.freezing import Freezing
from utils.initialize import initialize
from utils.optimizer import build_optimizer, has_sparse_gradients
from utils.param_groups import groups_of_networks, parse_rate
from utils.patterns import matching
from utils.scheduler import SETTINGS, OncePerEpoch, build_scheduler

HOSTS: list[tuple[Distributed, list[torch.device], str]] = []  # what `hosted` was given, the innermost last


@contextlib.contextmanager
def hosted(distributed: Distributed, device: torch.device, line: str) -> Iterator[None]:
    """A trainer that is made in the block is run by another loop, which has the processes and wraps the networks.

    Args:
        distributed: the processes, which have met.
        device: the one of this process.
        line: on them, for the log.
    """
    HOSTS.append((distributed, [device], line))
    try:
        yield
    finally:
        HOSTS.pop()


def join_processes(opt: Namespace) -> tuple[Distributed, list[torch.device], str]:
    """Meet the other processes, if there are any, and agree on what each would otherwise draw or find for itself.

    Returns:
        The processes, the devices of this one, and a line on them for the log.
    """
    if HOSTS:
        distributed, devices, line = HOSTS[-1]
    else:
        devices, line = select_devices(opt.gpu_devices, local_size())
        distributed = Distributed.join(opt.dist_timeout, devices[0])
    if distributed.size == 1:
        return distributed, devices, line
    if opt.parallel == "dp":
        raise UserError("--parallel dp is for one process: with several, give --parallel ddp or fsdp.")
    if opt.parallel == "fsdp" and opt.amp == "fp16":
        raise UserError("--parallel fsdp does not scale the loss of --amp fp16. Give --amp bf16, or --parallel ddp.")
    if opt.batch_size < distributed.size:
        raise UserError(f"--batch_size {opt.batch_size} leaves some of {distributed.size} processes without a sample.")
    opt.seed, opt.resume, opt.resume_notes = distributed.broadcast((opt.seed, opt.resume, opt.resume_notes))
    opt.resume_notes = opt.resume_notes if distributed.is_main else []
    how = "fsdp" if opt.parallel == "fsdp" else "ddp"
    return distributed, devices, f"{line} {distributed.size} processes ({how}), {share_text(opt, distributed.size)}."


def share_text(opt: Namespace, size: int) -> str:
    each, more = divmod(opt.batch_size, size)
    return f"each with {each}{f' or {each + 1}' if more else ''} of the {opt.batch_size} samples of an update"


def place_networks(
    opt: Namespace, networks: Mapping[str, nn.Module], device: torch.device, distributed: Distributed
) -> tuple[dict[str, nn.Module], Freezing]:
    """Return the networks on their device, as the options of the machine ask for, and what of them is frozen."""
    is_cut = opt.micro_batch_size == "auto" or (opt.micro_batch_size or opt.batch_size) < opt.batch_size
    records = distributed.size == 1 and not is_cut
    placed = {}
    for name, network in networks.items():
        network = initialize(network, opt.init)
        network = checkpoint_activations(network) if opt.activation_checkpointing else network
        placed[name] = place_network(network, device, opt.channels_last, opt.compile, records)
    return placed, Freezing(placed, opt.freeze, opt.train_only)


def wrap_networks(
    opt: Namespace, networks: Mapping[str, nn.Module], devices: list[torch.device], distributed: Distributed
) -> dict[str, nn.Module]:
    """Return what is called in training, by the names of the networks."""
    mode = "ddp" if opt.parallel == "none" else opt.parallel  # with one process, the same as none
    mode = "none" if HOSTS else mode
    return {name: wrap_network(network, devices, mode, distributed, opt.sync_bn) for name, network in networks.items()}


def make_optimizers(opt: Namespace, networks: Mapping[str, nn.Module]) -> dict[str, Optimizer]:
    """Return an optimizer for each network, by the network's name."""
    settings = {name: getattr(opt, name) for name in ("optim", "lr", "weight_decay", "momentum", "optim_args")}
    parameters = {name: network.parameters() for name, network in networks.items()}
    if opt.freeze or opt.train_only or opt.param_lr or opt.no_decay:
        parameters = groups_of_networks(networks, dict(map(parse_rate, opt.param_lr or ())), opt.lr, opt.no_decay or ())
    return {name: build_optimizer(parameters[name], **settings, is_sparse=has_sparse_gradients(net))
            for name, net in networks.items()}  # fmt: skip


def make_clipper(opt: Namespace, networks: Mapping[str, nn.Module]) -> Clipper:
    """Return what limits the gradients, those of --param_clip first.

    Args:
        networks: as they are trained: FSDP puts other parameters in the place of those that a network was built with.
    """
    limits = [text.rpartition("=") for text in opt.param_clip or ()]
    parts = [(matching(networks, pattern, "--param_clip"), float(limit)) for pattern, _, limit in limits]
    return Clipper(opt.clip, opt.clip_type, parts)


def make_schedulers(
    opt: Namespace, optimizers: Mapping[str, Optimizer], updates_per_epoch: int
) -> dict[str, LRScheduler]:
    """Return a scheduler for each optimizer, by the same name; it is stepped once per update, see --scheduler_step."""
    by_epoch = opt.scheduler_step == "epoch"
    plan = {name: getattr(opt, name) for name in ("lr_scheduler", *SETTINGS, "scheduler_args")}
    plan |= {"num_epochs": opt.n_epoch, "updates_per_epoch": 1 if by_epoch else updates_per_epoch}
    if opt.max_updates and opt.max_updates < opt.n_epoch * updates_per_epoch:
        plan["num_updates"] = -(-opt.max_updates // updates_per_epoch) if by_epoch else opt.max_updates
    schedulers = {name: build_scheduler(optimizer, **plan) for name, optimizer in optimizers.items()}
    if not by_epoch:
        return schedulers
    return {name: OncePerEpoch(scheduler, updates_per_epoch) for name, scheduler in schedulers.items()}


def check_swa_start(opt: Namespace, updates_per_epoch: int) -> None:
    """Raise UserError when --max_updates ends a new run before the epoch in which its average begins."""
    if opt.swa_start is None or opt.max_updates is None or opt.resume:  # which may have cut epochs short
        return
    if opt.swa_start > (last := -(-opt.max_updates // updates_per_epoch)):
        end = f"--max_updates {opt.max_updates} ends in epoch {last}"
        raise UserError(f"--swa_start {opt.swa_start} is after the last epoch: {end}.")


def make_guard(
    opt: Namespace, modules: Iterable[nn.Module], optimizers: Mapping[str, Optimizer], counters: Iterable[Any],
    distributed: Distributed,
) -> UpdateGuard:  # fmt: skip
    """Return what refuses updates that are not finite; a scaler, or an average of the weights, has it look at once."""
    at_once = opt.amp == "fp16" or opt.ema is not None
    sum_losses = distributed.sum if distributed.size > 1 else None
    return build_guard(modules, optimizers, counters, opt.nan_policy, opt.max_skips, at_once, sum_losses)


def make_checkpointer(
    opt: Namespace, run_dir: Path, train_loader: UpdateLoader, distributed: Distributed
) -> Checkpointer:
    """Return what writes the checkpoints of a run, in the format that is asked for."""
    every = opt.save_every_updates or max(1, round(opt.save_every * train_loader.updates_per_epoch))
    plan = {"run_dir": run_dir, "prefix": opt.model_type or opt.proj_name, "every": every, "keep": opt.keep}
    if opt.checkpoint_format == "sharded":
        return ShardedCheckpointer(distributed, **plan)
    return Checkpointer(**plan, writes=distributed.is_main)


def connect(loader: Any, trainer) -> None:
    """Let a loader warn in the log of a run, and stop waiting for data when the run is to end."""
    loader.warn = trainer.logger.warning
    if trainer.distributed.size == 1:  # several stop together, after an update
        loader.interrupt = trainer.stop_signal.raise_if_set


def introduce(trainer, *notes: str) -> None:
    """Write down what a run is made of, and say so in its log."""
    opt = trainer.opt
    trainer.run_dir.record(saved_options(opt), trainer.devices, trainer.networks, *describe(trainer.datasets))
    first, *rest = notes
    told = [first, *data_notes(trainer.datasets, trainer.train_loader), *rest]
    trainer.run_dir.note("\n".join(told), aloud=opt.train_val_sample_rate != 1)  # it is a part of the data
