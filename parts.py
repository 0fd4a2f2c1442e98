"""The parts of a trainer, made from its options."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from engine.checkpoints.checkpointer import Checkpointer
from engine.checkpoints.sharded_checkpointer import ShardedCheckpointer
from engine.devices.process_group import Distributed
from utils.clipper import Clipper
from utils.errors import UserError
from utils.optimizer import build_optimizer, has_sparse_gradients
from utils.param_groups import groups_of_networks, parse_rate
from utils.patterns import matching
from utils.scheduler import SETTINGS, OncePerEpoch, build_scheduler


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


def make_checkpointer(opt: Namespace, run_dir: Path, updates_per_epoch: int, distributed: Distributed) -> Checkpointer:
    """Build the writer of the run's checkpoints, in the format of --checkpoint_format."""
    every = opt.save_every_updates or max(1, round(opt.save_every * updates_per_epoch))
    plan = {"run_dir": run_dir, "prefix": opt.model_type or opt.proj_name, "every": every, "keep": opt.keep}
    if opt.checkpoint_format == "sharded":
        return ShardedCheckpointer(distributed, **plan)
    return Checkpointer(**plan, writes=distributed.is_main)
