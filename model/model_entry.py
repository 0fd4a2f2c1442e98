"""Make the networks that --model_type selects. A network of the template is named in engine/registry.py."""

import warnings
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from engine.registry import BUILT_INS, LIBRARIES, call, find, load
from utils.errors import UserError, shown

# The options that decide which weights a network has; a checkpoint fits only a network with the same values.
OFFERED = ("n_channels", "n_classes", "width", "up", "deep_supervision", "latent", "batch_norm", "image_size")
NETWORK_OPTIONS = ("model_type", "model_args", *OFFERED, "judge_type", "input_mean", "input_std")
SHAPES = {"n_channels": "n_channels", "in_chans": "n_channels", "n_classes": "n_classes", "num_classes": "n_classes"}


def build_networks(opt: Namespace) -> dict[str, nn.Module]:
    """Return the networks of a run by name; most tasks have one, called "model".

    A network, also a user-defined one, gets those of the options `OFFERED` that it names among its parameters.
    --model_args adds arguments. With --input_mean it normalizes its input, see extras/input_scale.py.

    Raises:
        UserError: when a network cannot be made with its arguments.
    """
    if opt.model_type is None:
        raise UserError("--model_type is needed: MODULE:NAME, since no network is known for this task.")
    arguments = getattr(opt, "model_args", {})
    offered = {name: getattr(opt, name) for name in OFFERED if getattr(opt, name, None) is not None}
    if opt.model_type in BUILT_INS["model"] and "image_size" in offered:
        offered["size"] = offered["image_size"]
    if arguments and (opt.model_type in BUILT_INS["model"] or opt.model_type.partition(":")[0] in LIBRARIES["model"]):
        check_shape(arguments, {"n_channels": opt.n_channels, "n_classes": opt.n_classes})
    component = find("model", opt.model_type)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # such a network is refused below
        networks = call(component, offered, arguments, "--model_args")
    networks = networks if isinstance(networks, dict) else {"model": networks}
    for network in networks.values():
        check_network(network, f"--model_type {opt.model_type}")
    if getattr(opt, "input_mean", None) or getattr(opt, "input_std", None):
        load("extras.input_scale:put_on", "input_mean")(networks, opt)
    return networks


def check_network(network: Any, source: str) -> None:
    """Raise UserError unless it is a module all of whose parameters have elements, or have no shape yet."""
    if not isinstance(network, nn.Module):
        raise UserError(f"{source} makes no nn.Module, but {type(network)}.")
    for name, parameter in network.named_parameters():
        if not is_lazy(parameter) and not parameter.numel():
            raise UserError(f"{source}: {name} has no elements, its shape is {tuple(parameter.shape)}.")


def check_shape(arguments: Mapping[str, Any], shape: Mapping[str, int]) -> None:
    """Raise UserError when --model_args contradicts the options of the channels or the classes."""
    for name, option in SHAPES.items():
        if name in arguments and arguments[name] != shape[option]:
            raise UserError(
                f"--model_args: {name} {shown(arguments[name])} contradicts --{option} {shape[option]}, which the loss "
                f"and the data follow as well: leave it out."
            )
