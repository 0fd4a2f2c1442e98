"""Classifiers of torchvision and of timm, by ``torchvision:NAME`` and ``timm:NAME``, fitted to the images and classes.

They come without weights. https://docs.pytorch.org/vision/stable/models.html, https://huggingface.co/docs/timm
"""

import copy
import warnings
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from engine.options.arguments import call
from utils.errors import UserError, nearest

LIBRARIES = ("torchvision", "timm")
# By default these return a second output in training.
ONE_OUTPUT = {"aux_logits": False, "init_weights": True}
SETTINGS = {"googlenet": ONE_OUTPUT, "inception_v3": ONE_OUTPUT}


def split_name(text: str) -> tuple[str, str] | None:
    """The library and the name in it, or None for a name of another kind.

    >>> split_name("torchvision:resnet18"), split_name("LeNet"), split_name("mine:Net")
    (('torchvision', 'resnet18'), None, None)
    """
    library, colon, name = text.partition(":")
    return (library, name) if colon and library in LIBRARIES else None


def library_model(kind: Callable[[str], str]) -> Callable[[str], str]:
    """Return an argparse type that takes what `kind` takes, and the names of these libraries."""

    def convert(text: str) -> str:
        found = split_name(text)
        if found is None:
            return kind(text)
        try:
            check_name(*found)
        except UserError as error:
            raise ArgumentTypeError(str(error)) from None
        return text

    return convert


def names_of(library: str) -> list[str]:
    """The names of the classifiers of a library; UserError when it is not installed."""
    try:
        if library == "timm":
            import timm

            return timm.list_models()
        from torchvision import models
    except ImportError as error:
        missing = error.name or library
        raise UserError(f"{library}:NAME needs the package {library}, and {missing} is missing: install it.") from None
    return models.list_models(module=models)


def check_name(library: str, name: str) -> None:
    """Raise UserError when the library has no such classifier, or is not installed."""
    if name not in (names := names_of(library)):
        raise UserError(f"{library} has no classifier {name[:60]!r}{nearest(name[:60], names)}")


def build_library_model(
    library: str, name: str, n_channels: int, n_classes: int, size: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> nn.Module:  # fmt: skip
    """Return a classifier with random weights.

    Args:
        library, name: see `split_name`.
        n_channels: channels of an image.
        n_classes: number of classes, the length of the output.
        size: height and width of the images in pixels, where they are known: then it is seen whether these go through.
        arguments: further ones for the library's function, such as {"dropout": 0.2}.

    Raises:
        UserError: when there is no such network, or it cannot take the images.
    """
    check_name(library, name)
    if library == "timm":
        import timm

        given = {"pretrained": False, "in_chans": n_channels, "num_classes": n_classes}
        network = call(timm.create_model, given, arguments or {}, "--model_args", first=[name])
    else:
        from torchvision import models

        given = {"weights": None, "num_classes": n_classes, **SETTINGS.get(name, {})}
        network = call(models.get_model_builder(name), given, arguments or {}, "--model_args")
        fit_channels(network, n_channels)
    if size is not None:
        try_size(network, f"{library}:{name}", n_channels, size)
    return network


def fit_channels(network: nn.Module, n_channels: int) -> None:
    """Put a convolution for `n_channels` in the place of the first one, which is for 3."""
    name, first = next((n, module) for n, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels == n_channels:
        return
    how: dict[str, Any] = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    parent, _, last = name.rpartition(".")
    fitted = nn.Conv2d(n_channels, first.out_channels, **how, bias=first.bias is not None)
    setattr(network.get_submodule(parent), last, fitted)


def try_size(network: nn.Module, name: str, n_channels: int, size: int) -> None:
    """Raise UserError when images of this size do not go through the network; nothing is computed."""
    if reason := fault_on_images(lambda: network, n_channels, size):
        raise UserError(
            f"--model_type {name} cannot take images of {size} x {size} pixels ({reason}). Take one for small images, "
            f"such as ResNet18 or torchvision:resnet18."
        )


def fault_on_images(make: Callable[[], nn.Module], n_channels: int, size: int) -> str:
    """What goes wrong when two images go through a network that is made for it, or in making it; "" when nothing does.

    >>> fault_on_images(lambda: nn.Conv2d(3, 8, 3), n_channels=3, size=16)
    ''
    """
    images = torch.empty(2, n_channels, size, size, device="meta")  # so nothing is computed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = copy.deepcopy(make()).to("meta")
            network(images)
    except Exception as error:  # a network of somebody's own may raise anything
        return " ".join(str(error).split())[:120] or type(error).__name__
    empty = [name for name, parameter in network.named_parameters() if not parameter.numel()]
    return f"{empty[0]} has no elements" if empty else ""
