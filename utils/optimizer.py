"""Optimizers by name. To add one, write a function and give it a name in `OPTIMIZERS`."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from utils import eager_optim as optim
from utils.errors import UserError, nearest
from utils.sharded_state import is_cut

# Every function takes all settings and uses those that its method has. `fused` asks for one kernel for the whole step,
# where there is one: it reads and writes the memory once.


def adam(parameters: Iterable, lr: float, weight_decay: float, momentum: float, fused: bool) -> Optimizer:
    """Kingma and Ba 2015. Here weight decay is an L2 penalty: it is added to the gradient."""
    return optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=fused)


def adamw(parameters: Iterable, lr: float, weight_decay: float, momentum: float, fused: bool) -> Optimizer:
    """Loshchilov and Hutter 2019: Adam whose weight decay acts on the weights, beside the gradient."""
    return optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=fused)


def nadam(parameters: Iterable, lr: float, weight_decay: float, momentum: float, fused: bool) -> Optimizer:
    """Dozat 2016: Adam with Nesterov momentum."""
    return optim.NAdam(parameters, lr=lr, weight_decay=weight_decay)


def radam(parameters: Iterable, lr: float, weight_decay: float, momentum: float, fused: bool) -> Optimizer:
    """Liu et al. 2020: Adam that holds back while its variance is not yet known."""
    return optim.RAdam(parameters, lr=lr, weight_decay=weight_decay)


def sgd(parameters: Iterable, lr: float, weight_decay: float, momentum: float, fused: bool) -> Optimizer:
    """Stochastic gradient descent with momentum (Polyak 1964); momentum 0 is the plain method."""
    return optim.SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=momentum, fused=fused)


def nesterov(parameters: Iterable, lr: float, weight_decay: float, momentum: float, fused: bool) -> Optimizer:
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013)."""
    if momentum <= 0:
        raise UserError(f"optim=nesterov needs a momentum above 0, not {momentum:g}. Give one, or take optim=sgd.")
    return optim.SGD(parameters, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=True, fused=fused)


def rmsprop(parameters: Iterable, lr: float, weight_decay: float, momentum: float, fused: bool) -> Optimizer:
    """Tieleman and Hinton 2012, without momentum, as they gave it."""
    return optim.RMSprop(parameters, lr=lr, weight_decay=weight_decay)


def adagrad(parameters: Iterable, lr: float, weight_decay: float, momentum: float, fused: bool) -> Optimizer:
    """Duchi, Hazan and Singer 2011."""
    return optim.Adagrad(parameters, lr=lr, weight_decay=weight_decay)


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


def build_optimizer(
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
    optim: str = "adamW",
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    momentum: float = 0.9,
    fused: bool | None = None,
) -> Optimizer:
    """Return the optimizer named `optim`.

    What is not named here keeps the default of `torch.optim`.

    Args:
        parameters: `module.parameters()`, or parameter groups, which may bring their own `lr` and `weight_decay`.
        optim: a name in `OPTIMIZERS`.
        lr: learning rate, above 0.
        weight_decay: at least 0. "adamW" shrinks the weights by it; all others add it to the gradient (an L2 penalty).
        momentum: from 0 to below 1, for "sgd" and "nesterov"; the others have none to set.
        fused: one kernel for the whole step, for "adam", "adamW", "sgd" and "nesterov"; the others have none. None
            takes it where the parameters' devices have it. False is needed for sparse gradients.

    Raises:
        UserError: when the name is unknown, or a setting is out of range.
    """
    if optim not in OPTIMIZERS:
        raise UserError(f"optim={optim} is unknown{nearest(optim, OPTIMIZERS)}: use one of {', '.join(OPTIMIZERS)}.")
    if not (lr > 0 and weight_decay >= 0 and 0 <= momentum < 1):
        raise UserError(
            f"lr={lr:g}, weight_decay={weight_decay:g}, momentum={momentum:g}: the learning rate must be above 0, the "
            f"weight decay at least 0, the momentum from 0 to below 1."
        )
    parameters = [parameter if isinstance(parameter, Tensor) else with_list(parameter) for parameter in parameters]
    fused = can_fuse(parameters, optim) if fused is None else fused
    return OPTIMIZERS[optim](parameters, lr=lr, weight_decay=weight_decay, momentum=momentum, fused=fused)


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
