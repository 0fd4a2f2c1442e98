"""Data sets of torchvision for classification, by name: `--data_type torchvision:CIFAR10`.

https://docs.pytorch.org/vision/stable/datasets.html
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.FashionMNIST import FashionMNIST
from engine.registry import import_module
from extras.own_data.images import DEFAULT_SIZE
from utils.errors import UserError, nearest, shown
from utils.image_file import to_float

# The argument of a class that selects a part, and its values; "all" is cut by the template.
TRAIN_OR_TEST = ("train", {"train": True, "test": False})
SPLIT = ("split", {"train": "train", "test": "test"})
SPLIT_OF_THREE = ("split", {"train": "train", "val": "val", "test": "test"})
WHOLE = (None, {"all": None})
DATASETS = {
    **dict.fromkeys(("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "CIFAR10", "CIFAR100", "USPS"), TRAIN_OR_TEST),
    **dict.fromkeys(("EMNIST",), TRAIN_OR_TEST),
    **dict.fromkeys(("SVHN", "STL10", "Food101", "GTSRB"), SPLIT),
    **dict.fromkeys(("DTD", "Flowers102", "FGVCAircraft", "RenderedSST2", "PCAM"), SPLIT_OF_THREE),
    "Country211": ("split", {"train": "train", "val": "valid", "test": "test"}),
    "OxfordIIITPet": ("split", {"train": "trainval", "test": "test"}),
    "Imagenette": ("split", {"train": "train", "val": "val"}),
    **dict.fromkeys(("EuroSAT", "SUN397"), WHOLE),
}
SETTINGS = {"EMNIST": {"split": "balanced"}}


class InMemory(FashionMNIST):
    """Pictures and labels in memory, of any size and with 1 or 3 channels; see `data.FashionMNIST.FashionMNIST`.

    Args:
        found_options: what the data has decided.
    """

    def __init__(self, images: Tensor, labels: Tensor, names: Sequence[str], found_options: dict, summary: str = ""):
        super().__init__(images, labels, names, summary)
        self.found_options = found_options

    @property
    def groups(self) -> Sequence[str]:
        """Each sample is its own group: that some pictures are there twice belongs to these data sets."""
        return self.names

    @property
    def targets(self) -> list[int]:
        """The class of each sample."""
        return self.labels.tolist()

    def to(self, device: torch.device | str) -> "InMemory":
        """Return the same samples, held on `device`."""
        names, found = self.names, self.found_options
        return InMemory(self.images.to(device), self.labels.to(device), names, found, self.summary)

    def select(self, indices: Sequence[int]) -> "InMemory":
        """Return some of the samples."""
        names = [self.names[index] for index in indices]
        return InMemory(self.images[indices], self.labels[indices], names, self.found_options, self.summary)


class Decoded(Dataset):
    """Pictures that torchvision decodes, each when it is asked for, resized to a square.

    Args:
        source: a data set of torchvision without transforms.
        targets: the class of each sample.
        part: of the names.
        n_channels, image_size: of the images.
        found_options: what the data has decided.
    """

    is_random = False

    def __init__(
        self,
        source: Dataset,
        targets: Sequence[int],
        part: str,
        n_channels: int,
        image_size: int,
        found_options: dict[str, Any],
        summary: str = "",
    ):
        self.source = source
        self.places = range(len(source))  # in the source
        self.targets = targets
        self.names = [f"{part}/{index:05d}" for index in self.places]
        self.n_channels = n_channels
        self.image_size = image_size
        self.found_options = found_options
        self.summary = summary

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image, (C, H, W) float32 in [0, 1], and its class."""
        image, _ = self.source[self.places[index]]
        image = image.convert("L" if self.n_channels == 1 else "RGB").resize((self.image_size, self.image_size))
        pixels = np.array(image).reshape(self.image_size, self.image_size, self.n_channels)
        return to_float(torch.from_numpy(pixels.transpose(2, 0, 1).copy())), self.targets[index]

    def select(self, indices: Sequence[int]) -> "Decoded":
        """Return some of the samples."""
        part = copy.copy(self)
        for name in ("places", "targets", "names"):
            setattr(part, name, [getattr(self, name)[index] for index in indices])
        return part


def from_torchvision(name: str) -> Callable[..., dict[str, Dataset]]:
    """Return a function that makes the parts of a data set of torchvision; UserError when it is none of `DATASETS`."""
    module = import_module("torchvision.datasets", f"--data_type torchvision:{name}")
    if name not in DATASETS:
        raise UserError(
            f"--data_type torchvision:{shown(name)[1:-1]} is none of the data sets that can be trained on by name"
            f"{nearest(name[:60], DATASETS)}: {', '.join(DATASETS)}."
        )

    def build(
        data_dir: str | Path, *, n_channels: int | None = None, image_size: int | None = None, **arguments: Any
    ) -> dict[str, Dataset]:
        argument, values = DATASETS[name]
        parts = {}
        for part, value in values.items():
            chosen = SETTINGS.get(name, {}) | arguments | ({argument: value} if argument else {})
            source = find_or_download(getattr(module, name), Path(data_dir), chosen)
            parts[part] = as_part(source, f"{name}/{part}", n_channels, image_size)
        return parts

    build.__name__ = f"torchvision:{name}"
    return build


def find_or_download(make: Callable, data_dir: Path, arguments: dict[str, Any]) -> Dataset:
    """Return a data set of torchvision that is in `data_dir`, or is downloaded into it.

    Raises:
        UserError: it cannot be downloaded.
    """
    try:
        return make(data_dir, download=False, **arguments)
    except (RuntimeError, FileNotFoundError):  # "Dataset not found", with words of each class
        pass
    try:
        return make(data_dir, download=True, **arguments)
    except (OSError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"torchvision:{make.__name__} is not in {data_dir}, and cannot be downloaded: {why}. Download it where "
            f"there is a network, with the same command, and copy {data_dir} here."
        ) from None


def as_part(source: Any, part: str, n_channels: int | None, image_size: int | None) -> Dataset:
    """Return a data set of torchvision as one of the template, in memory if its pixels are and keep their size."""
    targets = targets_of(source)
    classes = names_of(source, max(targets) + 1)
    pixels = pixels_of(source)
    own = None if pixels is None else (pixels.shape[1], pixels.shape[-1])
    if own and n_channels in (None, own[0]) and image_size in (None, own[1]):
        found = {"n_channels": own[0], "image_size": own[1]} | classes
        names = [f"{part}/{index:05d}" for index in range(len(pixels))]
        return InMemory(pixels, torch.tensor(targets), names, found)
    image, _ = source[0]
    n_channels = n_channels or (1 if image.mode == "L" else 3)
    image_size = image_size or min(DEFAULT_SIZE, max(image.size))
    found = {"n_channels": n_channels, "image_size": image_size} | classes
    return Decoded(source, targets, part, n_channels, image_size, found)


def pixels_of(source: Any) -> Tensor | None:
    """Return the pixels that a data set holds, uint8 (N, C, S, S); None if it holds none, or no squares."""
    data = getattr(source, "data", None)
    if not isinstance(data, (np.ndarray, Tensor)):
        return None
    pixels = torch.as_tensor(data)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    is_fit = pixels.dtype == torch.uint8 and pixels.ndim == 4 and pixels.shape[2] == pixels.shape[3]
    return pixels.contiguous() if is_fit else None


def targets_of(source: Any) -> list[int]:
    """Return the class of each sample, wherever the data set keeps it; else of the samples one by one."""
    for name in ("targets", "labels", "_labels", "y"):
        values = getattr(source, name, None)
        if values is not None and len(values) == len(source):
            return [int(value) for value in values]
    if isinstance(samples := getattr(source, "_samples", None), list) and len(samples) == len(source):
        return [int(label) for _, label in samples]
    return [int(source[index][1]) for index in range(len(source))]


def names_of(source: Any, num_targets: int) -> dict[str, Any]:
    """Return the number of the classes, and their names if the data set has them."""
    names = [str(name) for name in getattr(source, "classes", None) or ()]
    known = [" ".join(name.split()) for name in names]
    if len(known) < num_targets or len(set(known)) < len(known):
        return {"n_classes": num_targets}
    return {"n_classes": len(known), "class_names": known}
