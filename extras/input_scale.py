"""Normalize a network's input by the mean and the standard deviation of each channel, as a part of the network.

Training, validation, prediction and export so agree, and the names of the parameters stay.
"""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from utils.errors import UserError

LARGEST = 1e30  # a number of float32
BUFFERS = ("input_mean", "input_std")  # of a network; not in its state, since the options are in each checkpoint


def normalize_input(network: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a network's call, the images (N, C, H, W) in the first one normalized; a forward hook."""
    images, *rest = arguments
    mean, std = (getattr(network, name).to(images.dtype) for name in BUFFERS)  # (C, 1, 1)
    return ((images - mean) / std, *rest)


def put_on(networks: Mapping[str, nn.Module], opt: Namespace) -> None:
    """Make the only network normalize its input by --input_mean and --input_std, if they are given.

    Raises:
        UserError: one of the two is missing or has another number of values than there are channels, or there are
            several networks.
    """
    if not (opt.input_mean or opt.input_std):
        return
    if len(networks) > 1:
        raise UserError(f"--input_mean is for one network, and there are {', '.join(networks)}: leave it out.")
    values = {name: getattr(opt, name) for name in BUFFERS}
    for name, numbers in values.items():
        if len(numbers or ()) != opt.n_channels:
            given = " ".join(map(str, numbers or ())) or "nothing"
            raise UserError(f"--{name} has {given}: give one number per channel, and --n_channels is {opt.n_channels}.")
    for network in networks.values():
        for name, numbers in values.items():
            network.register_buffer(name, torch.tensor(numbers)[:, None, None], persistent=False)
        network.register_forward_pre_hook(normalize_input)


def check_put_on(networks: Mapping[str, nn.Module]) -> None:
    """Raise UserError when no network normalizes its input: the task makes its own, without `put_on`."""
    if not any(is_put_on(network) for network in networks.values()):
        raise UserError(
            "--input_mean and --input_std have no effect, as the task's build_networks makes its own network: call "
            "extras.input_scale.put_on(networks, opt) there, or leave them out."
        )


def is_put_on(network: nn.Module) -> bool:
    """Return whether a network normalizes its input."""
    return normalize_input in network._forward_pre_hooks.values()


def is_scale(mean: Any, std: Any) -> bool:
    """Return whether two values from a file are a mean and a standard deviation, a list of finite numbers each."""
    lists = isinstance(mean, list | tuple) and isinstance(std, list | tuple) and len(mean) == len(std) > 0
    if not lists or not all(type(number) in (int, float) for number in (*mean, *std)):
        return False
    return all(-LARGEST < number < LARGEST for number in (*mean, *std)) and min(std) > 0  # NaN is not
