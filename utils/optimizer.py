"""Optimizers by name. To add one, write a function and give it a name in `OPTIMIZERS`.

The other classes of `torch.optim` go by their own names, such as Adamax, and those of your own by ``module:name``.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.checkpoints.sharded_state import is_cut
from engine.options.arguments import NAMED, OF_TORCH, call, taken
from engine.options.plugins import find_own
from engine.trial_steps import fault_of_optimizer
from utils import eager_optim
from utils.errors import UserError, nearest, shown

Made = tuple[type[Optimizer], dict[str, Any]]

# Every function takes all settings, and returns its class with those that its method has. `fused` asks for one kernel
# for the whole step, where there is one: it reads and writes the memory once.


def adam(lr: float, weight_decay: float, momentum: float, fused: bool) -> Made:
    """Kingma and Ba 2015. Here weight decay is an L2 penalty: it is added to the gradient."""
    return eager_optim.Adam, {"lr": lr, "weight_decay": weight_decay, "fused": fused}


def adamw(lr: float, weight_decay: float, momentum: float, fused: bool) -> Made:
    """Loshchilov and Hutter 2019: Adam whose weight decay acts on the weights, beside the gradient."""
    return eager_optim.AdamW, {"lr": lr, "weight_decay": weight_decay, "fused": fused}


def nadam(lr: float, weight_decay: float, momentum: float, fused: bool) -> Made:
    """Dozat 2016: Adam with Nesterov momentum."""
    return eager_optim.NAdam, {"lr": lr, "weight_decay": weight_decay}


def radam(lr: float, weight_decay: float, momentum: float, fused: bool) -> Made:
    """Liu et al. 2020: Adam that holds back while its variance is not yet known."""
    return eager_optim.RAdam, {"lr": lr, "weight_decay": weight_decay}


def sgd(lr: float, weight_decay: float, momentum: float, fused: bool) -> Made:
    """Stochastic gradient descent with momentum (Polyak 1964); momentum 0 is the plain method."""
    return eager_optim.SGD, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "fused": fused}


def nesterov(lr: float, weight_decay: float, momentum: float, fused: bool) -> Made:
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013)."""
    if momentum <= 0:
        raise UserError(f"optim=nesterov needs a momentum above 0, not {momentum:g}. Give one, or take optim=sgd.")
    made, settings = sgd(lr, weight_decay, momentum, fused)
    return made, {**settings, "nesterov": True}


def rmsprop(lr: float, weight_decay: float, momentum: float, fused: bool) -> Made:
    """Tieleman and Hinton 2012, without momentum, as they gave it."""
    return eager_optim.RMSprop, {"lr": lr, "weight_decay": weight_decay}


def adagrad(lr: float, weight_decay: float, momentum: float, fused: bool) -> Made:
    """Duchi, Hazan and Singer 2011."""
    return eager_optim.Adagrad, {"lr": lr, "weight_decay": weight_decay}


FUSED_DEVICES, FUSED_WHEN_CUT = ("cpu", "cuda"), ("adam", "adamW")

OPTIMIZERS = {
    "adam": adam,
    "adamW": adamw,
    "nadam": nadam,
    "radam": radam,
    "sgd": sgd,
    "nesterov": nesterov,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
}


def torch_optimizers() -> dict[str, type[Optimizer]]:
    """The classes of `torch.optim` by name, but for those whose step needs a closure: the loop calls it without."""
    classes = {name: found for name, found in vars(torch.optim).items() if isinstance(found, type)}
    return {name: found for name, found in classes.items()
            if issubclass(found, Optimizer) and found is not Optimizer and not needs_closure(found)}  # fmt: skip


def needs_closure(optimizer_class: type[Optimizer]) -> bool:
    parameters = list(inspect.signature(optimizer_class.step).parameters.values())[1:]
    return any(parameter.kind in NAMED and parameter.default is parameter.empty for parameter in parameters)


def build_optimizer(
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
    optim: str = "adamW",
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    momentum: float = 0.9,
    fused: bool | None = None,
    optim_args: Mapping[str, Any] | None = None,
    is_sparse: bool = False,
) -> Optimizer:
    """Return the optimizer named `optim`.

    What is not named here keeps the default of `torch.optim`.

    Args:
        parameters: `module.parameters()`, or parameter groups, which may bring their own `lr` and `weight_decay`.
        optim: a name in `OPTIMIZERS`, that of a class of `torch.optim`, a registered one, or ``module:name``. A class
            gets those of `lr`, `weight_decay` and `momentum` that it takes.
        lr: learning rate, above 0.
        weight_decay: at least 0. "adamW" shrinks the weights by it; all others add it to the gradient (an L2 penalty).
        momentum: from 0 to below 1, for "sgd" and "nesterov"; the others have none to set.
        fused: one kernel for the whole step, for "adam", "adamW", "sgd" and "nesterov"; the others have none. None
            takes it where the parameters' devices have it.
        optim_args: further arguments of the class, such as {"betas": [0.9, 0.95]}; they count where both say something.
        is_sparse: whether there are sparse gradients, for which there is no fused kernel.

    Raises:
        UserError: when the name is unknown, a setting is out of range, the class does not take one of the arguments, or
            cannot make a step with them.
    """
    if not (lr > 0 and weight_decay >= 0 and 0 <= momentum < 1):
        raise UserError(
            f"lr={lr:g}, weight_decay={weight_decay:g}, momentum={momentum:g}: the learning rate must be above 0, the "
            f"weight decay at least 0, the momentum from 0 to below 1."
        )
    parameters = [parameter if isinstance(parameter, Tensor) else with_list(parameter) for parameter in parameters]
    if optim in OPTIMIZERS:
        fused = (not is_sparse and can_fuse(parameters, optim)) if fused is None else fused
        made, given = OPTIMIZERS[optim](lr=lr, weight_decay=weight_decay, momentum=momentum, fused=fused)
    else:
        made = find_class(optim)
        given = taken(made, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
    optimizer = call(made, given, optim_args or {}, "--optim_args", first=[parameters])
    if not isinstance(optimizer, Optimizer) or needs_closure(type(optimizer)):
        raise UserError(f"optim={optim} makes no torch.optim.Optimizer whose step can be called without arguments.")
    if optim not in OPTIMIZERS or optim_args:
        try_out(optim, made, given, optim_args or {}, optimizer, is_sparse)
    return optimizer


def try_out(
    optim: str, made: Callable[..., Optimizer], given: Mapping[str, Any], optim_args: Mapping[str, Any],
    optimizer: Optimizer, is_sparse: bool,
) -> None:  # fmt: skip
    """Raise UserError when an optimizer of this kind cannot make a step, and its arguments, or torch, are at fault."""
    device = optimizer.param_groups[0]["params"][0].device

    def fault(arguments: Mapping[str, Any]) -> str:
        make = lambda parameters: made(parameters, **{**given, **arguments})  # noqa: E731 - it is that short
        return fault_of_optimizer(make, device, is_sparse)

    if not (found := fault(optim_args)):
        return
    if str(made.__module__).startswith(OF_TORCH) or (optim_args and not fault({})):
        given_text = f" with --optim_args {shown(json.dumps(optim_args))}" if optim_args else ""
        raise UserError(f"optim={optim}{given_text} cannot make a step: {found}")


def find_class(optim: str) -> Callable[..., Optimizer]:
    """The class or function that a name outside of `OPTIMIZERS` stands for."""
    if made := find_own("optimizer", optim):
        return made
    classes = torch_optimizers()
    if optim not in classes:
        raise UserError(
            f"optim={optim} is unknown{nearest(optim, OPTIMIZERS)}: use one of {', '.join(OPTIMIZERS)}, or of "
            f"torch.optim: {', '.join(classes)}."
        )
    return eager_optim.eager(classes[optim])


def has_sparse_gradients(network: nn.Module) -> bool:
    """Whether a layer of the network gives sparse gradients, as `nn.Embedding` does when it is asked to."""
    return any(getattr(module, "sparse", False) is True for module in network.modules())


def with_list(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group whose parameters are a list, so that they can be gone through more than once."""
    parameters = group["params"]
    return group | {"params": [parameters] if isinstance(parameters, Tensor) else list(parameters)}


def can_fuse(parameters: list[Tensor] | list[dict[str, Any]], optim: str) -> bool:
    """Whether there are fused kernels for all of these parameters. For those that are cut up, torch has Adam's."""
    groups = [[entry] if isinstance(entry, Tensor) else entry["params"] for entry in parameters]
    tensors = [tensor for group in groups for tensor in group]
    if any(map(is_cut, tensors)) and optim not in FUSED_WHEN_CUT:
        return False
    return all(tensor.device.type in FUSED_DEVICES and tensor.is_floating_point() for tensor in tensors)
