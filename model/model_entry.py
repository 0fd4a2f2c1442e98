"""Select the network by --model_type.

To add a model: write it in a file of its own, and name it here with the task that it is for. One of your own that
stands elsewhere needs no line here, see docs/options.md.
"""

import json
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from engine.options.arguments import call, name_of, split_arguments, taken
from engine.options.plugins import choices, find_own
from extras.library_models import build_library_model, fault_on_images, split_name
from utils.errors import UserError, shown

MODEL_TYPES = {
    "Vanilla": "classification",
    "LeNet": "classification",
    "ResNet18": "classification",
    "UNet": "segmentation",
    "UNetpp": "segmentation",
    "DCGAN": "generation",
}

# The options that decide which weights a network has; a checkpoint fits only a network with the same values.
NETWORK_OPTIONS = (
    "model_type", "model_args", "n_channels", "n_classes", "width", "up", "deep_supervision", "latent", "batch_norm",
    "judge_type",
)  # fmt: skip
SHAPES = {"n_channels": "n_channels", "in_chans": "n_channels", "n_classes": "n_classes", "num_classes": "n_classes"}
TRIED_SIZE = 64  # pixels, of the images that a network for any size is tried on


def model_types(task: str | None) -> list[str]:
    """The names for --model_type that fit a task; all of them for None."""
    return choices("model", [name for name, of_task in MODEL_TYPES.items() if task in (None, of_task)])


def build_networks(opt: Namespace) -> dict[str, nn.Module]:
    """Return the networks of a run by name; most tasks have one, called "model". --model_args goes to its class.

    Of several networks, --model_args has a mapping for each, by its name.

    Raises:
        UserError: when one cannot be made with what it is given, or then takes no images.
    """
    arguments = getattr(opt, "model_args", {})
    if opt.model_type is None:
        raise UserError("--model_type is needed: MODULE:NAME, since no network is known for this task.")
    if opt.model_type == "DCGAN":
        return build_dcgan(opt, arguments)
    own = find_own("model", opt.model_type)
    if not own:
        check_shapes(arguments, {"n_channels": opt.n_channels, "n_classes": opt.n_classes})
    if of_library := split_name(opt.model_type):
        shape = {"n_channels": opt.n_channels, "n_classes": opt.n_classes, "size": size_of_images(opt)}
        return {"model": build_library_model(*of_library, **shape, arguments=arguments)}
    make, given = find_network(opt, own)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # such a network is refused below
        model = call(make, given, arguments, "--model_args")
    if not isinstance(model, nn.Module):
        raise UserError(f"--model_type {opt.model_type}: {name_of(make)} makes no nn.Module, but {type(model)}.")
    if arguments and (size := size_of_images(opt)):
        fault = fault_on_images(lambda: model, opt.n_channels, size)
        if fault and not (own and fault_on_images(partial(make, **given), opt.n_channels, size)):
            given_text = f"--model_type {opt.model_type} with --model_args {shown(json.dumps(arguments))}"
            raise UserError(f"{given_text} cannot take images of {size} x {size} pixels: {fault}")
    return {"model": model}


def check_shapes(arguments: Mapping[str, Any], shapes: Mapping[str, int]) -> None:
    """Raise UserError when --model_args says something else of the channels or the classes than the options."""
    for name, option in SHAPES.items():
        if name in arguments and arguments[name] != shapes[option]:
            raise UserError(
                f"--model_args: {name} {shown(arguments[name])} contradicts --{option} {shapes[option]}, by which the "
                f"loss and the data go as well: leave it out."
            )


def find_network(opt: Namespace, own: Callable | None) -> tuple[Callable, dict[str, Any]]:
    """Return what makes the network of --model_type (`own`, if it is somebody's own), and what the options give it."""
    channels_and_classes = {"n_channels": opt.n_channels, "n_classes": opt.n_classes}
    if own:
        return own, taken(own, channels_and_classes)

    if opt.model_type == "Vanilla":
        from model.vanilla_model import VanillaModel

        return VanillaModel, channels_and_classes

    if opt.model_type in ("LeNet", "ResNet18"):
        from model.LeNet import LeNet
        from model.ResNet import ResNet18

        return LeNet if opt.model_type == "LeNet" else ResNet18, channels_and_classes

    if opt.model_type in ("UNet", "UNetpp"):
        from model.UNet import UNet
        from model.UNetpp import UNetpp

        shape = {**channels_and_classes, "up": opt.up, **({"width": opt.width} if opt.width else {})}
        if opt.model_type == "UNetpp":
            return UNetpp, shape | {"deep_supervision": opt.deep_supervision}
        if opt.deep_supervision:
            raise UserError("--deep_supervision is a part of UNet++: use it with --model_type UNetpp.")
        return UNet, shape
    raise NotImplementedError(f"{opt.model_type} is named in MODEL_TYPES, but find_network has no branch for it.")


def build_dcgan(opt: Namespace, arguments: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Return a generator and its discriminator. --model_args has a mapping for each, by its name.

    Raises:
        UserError: when the one does not take the images of the other, or they are not those of the data.
    """
    from extras.gan.DCGAN import Discriminator, Generator

    kinds = {"generator": Generator, "discriminator": Discriminator}
    own = split_arguments(arguments, kinds, "--model_args", "network")
    offered = {"latent": opt.latent, "n_channels": opt.n_channels, "width": opt.width, "batch_norm": opt.batch_norm}
    networks = {name: call(kind, taken(kind, offered), own[name], f"--model_args {name}")
                for name, kind in kinds.items()}  # fmt: skip
    made, seen = networks["generator"].image, networks["discriminator"].image
    size = size_of_images(opt) or made[1]
    wanted = (opt.n_channels, size, size)
    if made != seen or made != wanted:
        shapes = [" x ".join(map(str, shape)) for shape in (made, seen, wanted)]
        raise UserError(
            f"--model_args: the generator makes images of {shapes[0]}, the discriminator takes {shapes[1]}, and those "
            f"of the data are {shapes[2]}: leave n_channels and size out, or give both networks those of the data."
        )
    return networks


def size_of_images(opt: Namespace) -> int | None:
    """Height and width in pixels of images to try a network on; None where only the data knows it."""
    data_type = getattr(opt, "data_type", "")
    return 28 if data_type.startswith("FashionMNIST") else TRIED_SIZE if data_type.startswith("Carvana") else None


def build_judge(opt: Namespace) -> nn.Module:
    """Return the classifier of --judge_type that judges generated images; it does not learn."""
    classifier = Namespace(model_type=opt.judge_type, n_channels=opt.n_channels, n_classes=opt.n_classes)
    return build_networks(classifier)["model"].requires_grad_(False)
