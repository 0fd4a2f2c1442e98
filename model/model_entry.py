"""Select the network by --model_type.

To add a model: write it in a file of its own, and name it here with the task that it is for. One of your own that
stands elsewhere needs no line here, see docs/options.md.
"""

from argparse import Namespace

from torch import nn

from model.library import build_library_model, split_name
from utils.calls import call, name_of, taken
from utils.errors import UserError
from utils.own_code import choices, find_own

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


def model_types(task: str | None) -> list[str]:
    """The names for --model_type that fit a task; all of them for None."""
    return choices("model", [name for name, of_task in MODEL_TYPES.items() if task in (None, of_task)])


def build_networks(opt: Namespace) -> dict[str, nn.Module]:
    """Return the networks of a run by name; most tasks have one, called "model". --model_args goes to its class."""
    arguments = getattr(opt, "model_args", {})
    channels_and_classes = {"n_channels": opt.n_channels, "n_classes": opt.n_classes}
    if make := find_own("model", opt.model_type):
        model = call(make, taken(make, channels_and_classes), arguments, "--model_args")
        if not isinstance(model, nn.Module):
            raise UserError(f"--model_type {opt.model_type}: {name_of(make)} makes no nn.Module, but {type(model)}.")
        return {"model": model}

    if opt.model_type == "Vanilla":
        from model.vanilla_model import VanillaModel

        return {"model": call(VanillaModel, channels_and_classes, arguments, "--model_args")}

    if of_library := split_name(opt.model_type):
        size = 28 if getattr(opt, "data_type", "").startswith("FashionMNIST") else None  # else nobody knows it here
        return {"model": build_library_model(*of_library, **channels_and_classes, size=size, arguments=arguments)}

    if opt.model_type in ("LeNet", "ResNet18"):
        from model.LeNet import LeNet
        from model.ResNet import ResNet18

        make = LeNet if opt.model_type == "LeNet" else ResNet18
        return {"model": call(make, channels_and_classes, arguments, "--model_args")}

    if opt.model_type == "DCGAN":
        from model.DCGAN import Discriminator, Generator

        if arguments:
            raise UserError("--model_args is for a single network, and DCGAN has two: use its own options.")
        shape = {"n_channels": opt.n_channels, "width": opt.width, "batch_norm": opt.batch_norm}
        return {"generator": Generator(opt.latent, **shape), "discriminator": Discriminator(**shape)}

    if opt.model_type in ("UNet", "UNetpp"):
        from model.UNet import UNet
        from model.UNetpp import UNetpp

        shape = {**channels_and_classes, "up": opt.up, **({"width": opt.width} if opt.width else {})}
        if opt.model_type == "UNetpp":
            shape |= {"deep_supervision": opt.deep_supervision}
            return {"model": call(UNetpp, shape, arguments, "--model_args")}
        if opt.deep_supervision:
            raise UserError("--deep_supervision is a part of UNet++: use it with --model_type UNetpp.")
        return {"model": call(UNet, shape, arguments, "--model_args")}
    raise NotImplementedError(f"{opt.model_type} is named in MODEL_TYPES, but build_networks has no branch for it.")


def build_judge(opt: Namespace) -> nn.Module:
    """Return the classifier of --judge_type that judges generated images; it does not learn."""
    classifier = Namespace(model_type=opt.judge_type, n_channels=opt.n_channels, n_classes=opt.n_classes)
    return build_networks(classifier)["model"].requires_grad_(False)
