"""Optimizers by name. To add one, name its class in `OPTIMIZERS`.

The optimizers of `torch.optim` import the whole compiler when they are made: more than a second before the first
update, for nothing unless the optimizer's own step is compiled. (A compiled network is no such case.) The classes here
are the same to the bit, with the methods that torch wraps.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from utils.errors import UserError, nearest

METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")  # wrapped only for the compiler


def eager(optimizer_class: type[Optimizer]) -> type[Optimizer]:
    """Return a subclass of an optimizer's class whose methods do not import the compiler."""
    plain_step = inspect.unwrap(optimizer_class.step)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):  # all else that torch's wrapper does
            return plain_step(self, closure)

    methods = {method: inspect.unwrap(getattr(optimizer_class, method)) for method in METHODS}
    name = optimizer_class.__name__
    about = {"__doc__": f"`torch.optim.{name}` without the compiler.", "__module__": __name__}  # so it can be pickled
    return type(name, (optimizer_class,), {**methods, **about, "step": step})


Adam = eager(optim.Adam)  # Kingma and Ba 2015; weight decay is an L2 penalty, added to the gradient
AdamW = eager(optim.AdamW)  # Loshchilov and Hutter 2019; weight decay acts on the weights, beside the gradient
NAdam = eager(optim.NAdam)  # Dozat 2016: Adam with Nesterov momentum
RAdam = eager(optim.RAdam)  # Liu et al. 2020: Adam that holds back while its variance is not yet known
SGD = eager(optim.SGD)  # with momentum (Polyak 1964)
RMSprop = eager(optim.RMSprop)  # Tieleman and Hinton 2012, without momentum, as they gave it
Adagrad = eager(optim.Adagrad)  # Duchi, Hazan and Singer 2011


class Nesterov(SGD):
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013)."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        fused: bool | None = None,
    ):
        if momentum <= 0:
            raise UserError(f"optim=nesterov needs a momentum above 0, not {momentum:g}. Give one, or take optim=sgd.")
        super().__init__(params, lr, momentum, weight_decay=weight_decay, nesterov=True, fused=fused)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adam": Adam,
    "adamW": AdamW,
    "nadam": NAdam,
    "radam": RAdam,
    "sgd": SGD,
    "nesterov": Nesterov,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
}
WITH_MOMENTUM = ("sgd", "nesterov")
FUSED = ("adam", "adamW", "sgd", "nesterov")  # one kernel for the whole step reads and writes the memory once
FUSED_ON = ("cpu", "cuda")
FUSED_WHEN_SHARDED = ("adam", "adamW")


def build_optimizer(
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
    optim: str | Callable[..., Optimizer] = "adamW",
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    momentum: float = 0.9,
    fused: bool | None = None,
    optim_args: Mapping[str, Any] | None = None,
    is_sparse: bool = False,
) -> Optimizer:
    """Return the optimizer named `optim`. Settings that are not named here keep the default of `torch.optim`.

    Args:
        parameters: `module.parameters()`, or parameter groups, which may have their own `lr` and `weight_decay`.
        optim: a name in `OPTIMIZERS`, or a class of optimizers, which gets the settings that it takes.
        lr: learning rate, above 0.
        weight_decay: at least 0. "adamW" shrinks the weights by it; all others add it to the gradient (an L2 penalty).
        momentum: from 0 to below 1, for "sgd" and "nesterov".
        fused: one kernel for the whole step, for the names in `FUSED`. None uses it where the parameters' devices have
            it.
        optim_args: further arguments of the class, such as {"betas": [0.9, 0.95]}; they win over the others.
        is_sparse: whether there are sparse gradients, for which there is no fused kernel.

    Raises:
        UserError: when the name is unknown or a setting is out of range.
    """
    parameters = as_lists(parameters)
    optimizer_class, settings = choose_optimizer(parameters, optim, lr, weight_decay, momentum, fused, is_sparse)
    return optimizer_class(parameters, **{**settings, **(optim_args or {})})


def choose_optimizer(
    parameters: list[Tensor] | list[dict[str, Any]],
    optim: str | Callable[..., Optimizer],
    lr: float,
    weight_decay: float,
    momentum: float,
    fused: bool | None = None,
    is_sparse: bool = False,
) -> tuple[Callable[..., Optimizer], dict[str, Any]]:
    """Return the class of an optimizer and its settings; the arguments are those of `build_optimizer`."""
    if not (lr > 0 and weight_decay >= 0 and 0 <= momentum < 1):
        raise UserError(
            f"lr={lr:g}, weight_decay={weight_decay:g}, momentum={momentum:g}: the learning rate must be above 0, the "
            f"weight decay at least 0, the momentum from 0 to below 1."
        )
    settings = {"lr": lr, "weight_decay": weight_decay}
    if not isinstance(optim, str):
        names = inspect.signature(optim).parameters
        settings = {name: value for name, value in {**settings, "momentum": momentum}.items() if name in names}
        is_eager = is_of_torch(optim) and not needs_closure(optim)
        return (eager(optim) if is_eager else optim), settings
    if optim not in OPTIMIZERS:
        raise UserError(f"optim={optim} is unknown{nearest(optim, OPTIMIZERS)}: use one of {', '.join(OPTIMIZERS)}.")
    if optim in WITH_MOMENTUM:
        settings["momentum"] = momentum
    if optim in FUSED:
        settings["fused"] = (not is_sparse and can_fuse(parameters, optim)) if fused is None else fused
    return OPTIMIZERS[optim], settings


def is_of_torch(optimizer_class: Any) -> bool:
    return isinstance(optimizer_class, type) and optimizer_class.__module__.startswith("torch.optim.")


def needs_closure(optimizer_class: type[Optimizer]) -> bool:
    """Whether the step of an optimizer cannot be called without arguments, as that of LBFGS."""
    parameters = list(inspect.signature(optimizer_class.step).parameters.values())[1:]
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def has_sparse_gradients(network: nn.Module) -> bool:
    """Whether a layer of the network has sparse gradients, such as `nn.Embedding(..., sparse=True)`."""
    return any(getattr(module, "sparse", False) is True for module in network.modules())


def as_lists(parameters: Iterable[Tensor] | Iterable[dict[str, Any]]) -> list[Any]:
    """Return parameters, or groups with theirs, as lists, which can be iterated more than once."""
    lists = []
    for entry in parameters:
        if isinstance(entry, dict):
            group = entry["params"]
            entry = {**entry, "params": [group] if isinstance(group, Tensor) else list(group)}
        lists.append(entry)
    return lists


def can_fuse(parameters: list[Tensor] | list[dict[str, Any]], optim: str) -> bool:
    """Whether there are fused kernels for all of these parameters; for sharded ones, torch has those of Adam."""
    groups = [entry["params"] if isinstance(entry, dict) else [entry] for entry in parameters]
    tensors = [tensor for group in groups for tensor in group]
    is_sharded = any(hasattr(tensor, "full_tensor") for tensor in tensors)  # a DTensor, without its import
    if is_sharded and optim not in FUSED_WHEN_SHARDED:
        return False
    return all(tensor.device.type in FUSED_ON and tensor.is_floating_point() for tensor in tensors)
