"""The optimizers of `torch.optim` without torch's compiler: `utils.optimizer.AdamW`, and so on.

Those of torch import the whole compiler when they are made: more than a second before the first update, for nothing
unless the optimizer's own step is compiled. (A compiled network is no such case.) The classes here are the same to the
bit, with the methods that torch wraps.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")  # wrapped only for the compiler
FUSED_ON = ("cpu", "cuda")


@functools.cache
def eager(optimizer_class: type[Optimizer]) -> type[Optimizer]:
    """Return a subclass of an optimizer's class whose methods do not import the compiler."""
    plain_step = inspect.unwrap(optimizer_class.step)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):  # all else that torch's wrapper does
            return plain_step(self, closure)

    methods = {method: inspect.unwrap(getattr(optimizer_class, method)) for method in METHODS}
    name = optimizer_class.__name__
    about = {"__doc__": f"`torch.optim.{name}` without the compiler.", "__module__": __name__}
    return type(name, (optimizer_class,), {**methods, **about, "step": step})


def __getattr__(name: str) -> type[Optimizer]:
    """Return the class of `torch.optim` of this name, made by `eager`; pickle also finds classes by their names."""
    found = getattr(torch.optim, name, None)
    if not isinstance(found, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return eager(found)


def can_fuse(network: nn.Module, only_whole: bool = False) -> bool:
    """Return whether a fused kernel, which makes the whole step at once, can step all parameters of a network.

    There is none for sparse gradients, such as those of `nn.Embedding(..., sparse=True)`.

    Args:
        network: on its device.
        only_whole: whether the kernel takes no sharded parameters; among those of torch, Adam's do.
    """
    parameters = list(network.parameters())
    is_sparse = any(getattr(module, "sparse", False) is True for module in network.modules())
    is_sharded = any(hasattr(parameter, "full_tensor") for parameter in parameters)  # a DTensor, without its import
    if is_sparse or (is_sharded and only_whole):
        return False
    return all(parameter.device.type in FUSED_ON and parameter.is_floating_point() for parameter in parameters)
