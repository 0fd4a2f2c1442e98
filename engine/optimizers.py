"""Make the optimizers, schedulers and the clipper that the options select, for networks by name."""

import inspect
from argparse import Namespace
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from engine.registry import call, find, load
from utils.clipper import Clipper
from utils.errors import UserError, nearest
from utils.optimizer import can_fuse, eager
from utils.scheduler import SCHEDULERS, build_scheduler

BY_NETWORK = ("optim", "lr", "optim_args", "lr_scheduler", "scheduler_args")  # options that may be mappings by network
FUSED = ("adam", "adamW", "sgd", "nesterov")  # of torch, other classes have such a kernel only on some devices
SCHEDULE_OPTIONS = (
    "warmup_epoch", "warmup_multiplier", "lr_decay_epochs", "lr_decay_every", "lr_decay_rate", "lr_min",
)  # fmt: skip


# ---- parameters ------------------------------------------------------------------------------------------------------
def freeze(opt: Namespace, networks: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Freeze the parameters of --freeze and --train_only; return by network the modules that stay in eval mode."""
    is_all_in_train_mode = all(module.training for network in networks.values() for module in network.modules())
    in_eval_mode = {}
    if opt.freeze or opt.train_only or not is_all_in_train_mode:
        freeze_parameters = load("extras.param_groups:freeze_parameters", "freeze")
        in_eval_mode = freeze_parameters(networks, opt.freeze or (), opt.train_only or ())
    if opt.unfreeze:
        load("extras.unfreeze:check", "unfreeze")(opt, networks)
    return in_eval_mode


def trained_parameters(opt: Namespace, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return the parameters of each network for its optimizer, in groups if an option asks for them."""
    if not (opt.freeze or opt.train_only or opt.param_lr or opt.no_decay):
        return {name: network.parameters() for name, network in networks.items()}
    groups_of_networks = load("extras.param_groups:groups_of_networks", "param_lr")
    return groups_of_networks(networks, opt.param_lr or (), opt.lr, opt.no_decay or ())


# ---- optimizers ------------------------------------------------------------------------------------------------------
def make_optimizers(opt: Namespace, networks: Mapping[str, nn.Module]) -> dict[str, Optimizer]:
    """Return an optimizer for each network, by the network's name."""
    own = by_network(opt, networks)
    parameters = trained_parameters(opt, networks)
    return {name: make_optimizer(own[name], parameters[name], network) for name, network in networks.items()}


def by_network(opt: Namespace, names: Iterable[str]) -> dict[str, Namespace]:
    """Return the options of each network, without the mappings by network that some options may be."""
    has_mapping = any(isinstance(getattr(opt, option), dict) and getattr(opt, option) for option in BY_NETWORK)
    return load("extras.by_network:options_of", "lr")(opt, list(names)) if has_mapping else dict.fromkeys(names, opt)


def make_optimizer(opt: Namespace, parameters: Any, network: nn.Module) -> Optimizer:
    """Return the optimizer of --optim; UserError when it cannot be made with its arguments."""
    optimizer_class = find("optimizer", opt.optim)
    is_of_torch = isinstance(optimizer_class, type) and optimizer_class.__module__.startswith("torch.optim.")
    if is_of_torch and not needs_closure(optimizer_class):
        optimizer_class = eager(optimizer_class)
    settings = {"lr": opt.lr, "weight_decay": opt.weight_decay, "network": network}
    if opt.optim != "rmsprop":  # which has none, as Tieleman and Hinton gave it
        settings["momentum"] = opt.momentum
    if opt.optim == "nesterov":
        settings["nesterov"] = True
    if opt.optim in FUSED:
        settings["fused"] = can_fuse(network, only_whole=not opt.optim.startswith("adam"))
    optimizer = call(optimizer_class, settings, opt.optim_args, "--optim_args", first=[parameters])
    if opt.optim in ("sgd", "nesterov"):
        load("extras.first_momentum:make_momentum", "optim")(optimizer)
    if not isinstance(optimizer, Optimizer) or needs_closure(type(optimizer)):
        raise UserError(f"--optim {opt.optim} makes no Optimizer whose step() needs no arguments (examples/lbfgs.py).")
    return optimizer


def needs_closure(optimizer_class: type[Optimizer]) -> bool:
    """Return whether the step of an optimizer cannot be called without arguments, as that of LBFGS."""
    parameters = list(inspect.signature(optimizer_class.step).parameters.values())[1:]
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def checked_optimizers(
    optimizers: Mapping[str, Optimizer], networks: Mapping[str, nn.Module], criterion: nn.Module, num_processes: int = 1
) -> dict[str, Optimizer]:
    """Return the optimizers, if each is named after a network, and networks and loss are stepped.

    NumPy scalars in their settings become numbers, as in a checkpoint: float32 is computed with in another way.

    Raises:
        UserError: when there is no network of an optimizer's name, or no optimizer for trainable parameters: of a
            network for any, of the loss for one.
    """
    for group in (group for optimizer in optimizers.values() for group in optimizer.param_groups):
        group |= {name: value.item() for name, value in group.items() if isinstance(value, np.generic)}
    for name in optimizers:
        if name not in networks:
            raise UserError(
                f"build_optimizers() returns {name!r}, but there is no such network{nearest(name, networks)}: "
                f"there are {', '.join(networks)}."
            )
    stepped = {id(p) for optimizer in optimizers.values() for group in optimizer.param_groups for p in group["params"]}
    for name, network in networks.items():
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if trainable and not any(id(parameter) in stepped for parameter in trainable):
            raise UserError(
                f"No optimizer of build_optimizers() steps the network {name!r}. Return one of this name, or freeze "
                f"the network in build_networks(): requires_grad_(False)."
            )
    trainable = {name: parameter for name, parameter in criterion.named_parameters() if parameter.requires_grad}
    if left := [name for name, parameter in trainable.items() if id(parameter) not in stepped]:
        raise UserError(
            f"The loss {type(criterion).__name__} has parameters that no optimizer steps: {', '.join(left)}. Make them "
            f"a part of the network, add them to an optimizer in build_optimizers(), or freeze them."
        )
    if trainable and num_processes > 1:
        raise UserError(
            f"The loss {type(criterion).__name__} has trainable parameters, whose gradients several processes do not "
            f"add up. Make them a part of the network, or train in one process."
        )
    return dict(optimizers)


# ---- schedulers ------------------------------------------------------------------------------------------------------
def length_of(opt: Namespace, updates_per_epoch: int) -> int:
    """Return the number of updates of a run."""
    num_updates = opt.n_epoch * updates_per_epoch
    return min(num_updates, opt.max_updates) if opt.max_updates else num_updates


def make_schedulers(
    opt: Namespace, optimizers: Mapping[str, Optimizer], updates_per_epoch: int
) -> dict[str, LRScheduler]:
    """Return a scheduler for each optimizer, by the same name; it is stepped once per update, see --scheduler_step."""
    num_updates = length_of(opt, updates_per_epoch)
    if opt.scheduler_step == "epoch":
        make = load("extras.schedulers:make_stepped_by_epoch", "scheduler_step")
    else:
        make = make_scheduler
    own = by_network(opt, optimizers)
    return {name: make(own[name], optimizer, updates_per_epoch, num_updates) for name, optimizer in optimizers.items()}


def make_scheduler(opt: Namespace, optimizer: Optimizer, steps_per_epoch: int, num_steps: int) -> LRScheduler:
    """Return the scheduler of --lr_scheduler, which is stepped `num_steps` times in the run.

    A resume with another length goes on with the rates of that length, see `resume_schedule`.

    Raises:
        UserError: when it cannot be made with its arguments.
    """
    name = opt.lr_scheduler
    if name not in SCHEDULERS:
        return load("extras.schedulers:make_by_class", "lr_scheduler")(opt, optimizer, num_steps)
    if opt.scheduler_args:
        raise UserError(f"--scheduler_args is for a class of torch or of your own, not for --lr_scheduler {name}.")
    settings = {option: getattr(opt, option) for option in SCHEDULE_OPTIONS}
    lengths = {"num_epochs": opt.n_epoch, "updates_per_epoch": steps_per_epoch, "num_updates": num_steps}
    return build_scheduler(optimizer, name, **lengths, **settings)


def checked_schedulers(
    schedulers: Mapping[str, LRScheduler], optimizers: Mapping[str, Optimizer], num_updates: int
) -> dict[str, LRScheduler]:
    """Return the schedulers, if each has the name of its optimizer and lasts for all updates; UserError otherwise."""
    for name, scheduler in schedulers.items():
        if scheduler.optimizer is not optimizers.get(name):
            raise UserError(
                f"build_schedulers() returns {name!r}{nearest(name, optimizers)}: a scheduler has the name of its "
                f"optimizer, one of {', '.join(optimizers)}."
            )
        last = getattr(scheduler, "total_steps", None)
        if isinstance(last, int) and last < num_updates:
            kind = type(getattr(scheduler, "scheduler", scheduler)).__name__
            raise UserError(f"The scheduler {kind} ends after {last} updates, and the run makes {num_updates}.")
    return dict(schedulers)


# ---- the clipper -----------------------------------------------------------------------------------------------------
def make_clipper(opt: Namespace, networks: Mapping[str, nn.Module]) -> Clipper:
    """Return the clipper of the gradients, with the limits of --param_clip first.

    Args:
        networks: as they are trained: FSDP replaces the parameters that a network was built with.
    """
    limits = load("extras.param_groups:limits_of", "param_clip")(networks, opt.param_clip) if opt.param_clip else ()
    return Clipper(opt.clip, opt.clip_type, limits)
