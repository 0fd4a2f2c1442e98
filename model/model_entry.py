"""Select the network by --model_type.

To add a model: write it in a file of its own, and name it here with the task that it is for.
"""

from argparse import Namespace

from torch import nn

from model.library import build_library_model, split_name
from utils.errors import UserError

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
    "model_type", "n_channels", "n_classes", "width", "up", "deep_supervision", "latent", "batch_norm", "judge_type",
)  # fmt: skip


def model_types(task: str | None) -> list[str]:
    """The names for --model_type that fit a task; all of them for None."""
    return [name for name, of_task in MODEL_TYPES.items() if task in (None, of_task)]


def build_networks(opt: Namespace) -> dict[str, nn.Module]:
    """Return the networks of a run by name; most tasks have one, called "model"."""
    channels_and_classes = {"n_channels": opt.n_channels, "n_classes": opt.n_classes}
    if opt.model_type == "Vanilla":
        from model.vanilla_model import VanillaModel

        return {"model": VanillaModel(**channels_and_classes)}

    if of_library := split_name(opt.model_type):
        size = 28 if getattr(opt, "data_type", "").startswith("FashionMNIST") else None  # else nobody knows it here
        return {"model": build_library_model(*of_library, **channels_and_classes, size=size)}

    if opt.model_type in ("LeNet", "ResNet18"):
        from model.LeNet import LeNet
        from model.ResNet import ResNet18

        return {"model": (LeNet if opt.model_type == "LeNet" else ResNet18)(**channels_and_classes)}

    if opt.model_type == "DCGAN":
        from model.DCGAN import Discriminator, Generator

        shape = {"n_channels": opt.n_channels, "width": opt.width, "batch_norm": opt.batch_norm}
        return {"generator": Generator(opt.latent, **shape), "discriminator": Discriminator(**shape)}

    if opt.model_type in ("UNet", "UNetpp"):
        from model.UNet import UNet
        from model.UNetpp import UNetpp

        shape = {**channels_and_classes, "up": opt.up, **({"width": opt.width} if opt.width else {})}
        if opt.model_type == "UNetpp":
            return {"model": UNetpp(**shape, deep_supervision=opt.deep_supervision)}
        if opt.deep_supervision:
            raise UserError("--deep_supervision is a part of UNet++: use it with --model_type UNetpp.")
        return {"model": UNet(**shape)}
    raise NotImplementedError(f"{opt.model_type} is named in MODEL_TYPES, but build_networks has no branch for it.")


def build_judge(opt: Namespace) -> nn.Module:
    """Return the classifier of --judge_type that judges generated images; it does not learn."""
    classifier = Namespace(model_type=opt.judge_type, n_channels=opt.n_channels, n_classes=opt.n_classes)
    return build_networks(classifier)["model"].requires_grad_(False)
