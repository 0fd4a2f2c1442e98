"""Classifiers of torchvision and of timm, by ``torchvision:NAME`` and ``timm:NAME``, for any channels and classes.

They have random weights without --pretrained, see extras/weights_from.py.
https://docs.pytorch.org/vision/stable/models.html, https://huggingface.co/docs/timm
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from engine.registry import import_module
from utils.errors import UserError, nearest

# By default these return a second output in training.
ONE_OUTPUT = {"aux_logits": False, "init_weights": True}
SETTINGS = {"googlenet": ONE_OUTPUT, "inception_v3": ONE_OUTPUT}


def from_torchvision(name: str) -> Callable[..., nn.Module]:
    """Return a function that makes a classifier of torchvision; UserError when there is none of this name."""
    models = import_module("torchvision.models", f"--model_type torchvision:{name}")
    check_name("torchvision", name, models.list_models(module=models))

    def build(n_channels: int, n_classes: int, **arguments: Any) -> nn.Module:
        settings = {"num_classes": n_classes, **SETTINGS.get(name, {}), **arguments}
        network = models.get_model(name, weights=None, **settings)
        fit_channels(network, n_channels)
        return network

    build.__name__ = f"torchvision:{name}"
    return build


def from_timm(name: str) -> Callable[..., nn.Module]:
    """Return a function that makes a classifier of timm; UserError when there is none of this name."""
    timm = import_module("timm", f"--model_type timm:{name}")
    check_name("timm", name.partition(".")[0], timm.list_models())  # a tag of its weights may follow, see --pretrained

    def build(n_channels: int, n_classes: int, **arguments: Any) -> nn.Module:
        return timm.create_model(name, **{"in_chans": n_channels, "num_classes": n_classes, **arguments})

    build.__name__ = f"timm:{name}"
    return build


def check_name(library: str, name: str, known: Iterable[str]) -> None:
    """Raise UserError when a library has no such classifier."""
    if name not in known:
        raise UserError(f"{library} has no classifier {name[:60]!r}{nearest(name[:60], known)}")


def fit_channels(network: nn.Module, n_channels: int) -> None:
    """Replace the first convolution, which is for 3 channels, by one for `n_channels`."""
    name, first = next((n, module) for n, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels == n_channels:
        return
    how: dict[str, Any] = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    parent, _, last = name.rpartition(".")
    fitted = nn.Conv2d(n_channels, first.out_channels, **how, bias=first.bias is not None)
    setattr(network.get_submodule(parent), last, fitted)
