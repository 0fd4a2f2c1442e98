"""The Carvana data set: photos of cars on a turntable, and the masks that cut them out.

The directory holds `train/<car>_<view>.jpg` and `train_masks/<car>_<view>_mask.gif`. The original is from the Kaggle
competition "Carvana Image Masking Challenge" (2017): 318 cars, 16 views of each, 1918 x 1280 pixels. Any images and
masks with such names work. The parts are cut by car, because two views of one car are nearly the same picture.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.masks import ClassMap, image_size, load_image, load_mask, scan_masks
from data.split import split_by_group
from utils.errors import UserError, nearest

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".ppm", ".pgm"}
MODES = ("direct", "padding")


class Pair(NamedTuple):
    """One sample: "<car>_<view>", the car, and the two files."""

    name: str
    car: str
    image_path: str
    mask_path: str


def list_images(folder: Path, name_of: Callable[[str], str]) -> dict[str, list[Path]]:
    """Return the image files of a folder by sample name; `name_of` turns the stem of a file into that name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            found.setdefault(name_of(path.stem), []).append(path)
    return found


def find_pairs(data_dir: str | Path) -> list[Pair]:
    """Return the images of `data_dir/train` with their masks of `data_dir/train_masks`, sorted by name.

    Raises:
        UserError: a directory is missing or empty, or the files do not pair up one to one.
    """
    folders = [Path(data_dir, "train"), Path(data_dir, "train_masks")]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"There is no directory {folder}. Unpack train.zip and train_masks.zip of the Kaggle competition "
                f'"Carvana Image Masking Challenge" into {data_dir}, or make data of the same layout:\n'
                f"python -m data.make_carvana_like --data_dir {data_dir} --cars 32 --views 16 --size 480x320"
            )
    images = list_images(folders[0], str)
    masks = list_images(folders[1], lambda stem: stem.removesuffix("_mask"))
    problems = {
        "without a mask": [images[name][0].name for name in sorted(images.keys() - masks.keys())],
        "without an image": [masks[name][0].name for name in sorted(masks.keys() - images.keys())],
        "doubled": [path.name for paths in (*images.values(), *masks.values()) for path in paths if len(paths) > 1],
    }
    if any(problems.values()):
        told = "; ".join(f"{kind}: {shorten(files)}" for kind, files in problems.items() if files)
        raise UserError(
            f"The files of {folders[0]} and {folders[1]} do not pair up: {told}.\n"
            f"Each train/<car>_<view>.jpg needs one train_masks/<car>_<view>_mask.gif. Add or remove files."
        )
    if not images:
        raise UserError(f"There is no image in {folders[0]}. Expected <car>_<view>.jpg, or another image format.")
    names = sorted(images)
    return [Pair(name, car_of(name), str(images[name][0]), str(masks[name][0])) for name in names]


def car_of(name: str) -> str:
    """Return the car of "<car>_<view>": what stands before the last underscore; all of it when there is none."""
    return name.rpartition("_")[0] or name


def shorten(files: list[str], most: int = 10) -> str:
    more = f" and {len(files) - most} more ({len(files)} in all)" if len(files) > most else ""
    return ", ".join(files[:most]) + more


def augment_pair(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Flip image and mask with probability 0.5, and change the image's brightness and contrast by up to a fifth.

    The three random numbers come from torch's global generator.

    Args:
        image: float32 (C, H, W) in [0, 1].
        mask: int64 (H, W).
    """
    flip, brightness, contrast = torch.rand(3).tolist()
    if flip < 0.5:
        image, mask = image.flip(-1), mask.flip(-1)
    image = image * (0.8 + 0.4 * brightness)
    mean = image.mean()
    image = mean + (image - mean) * (0.8 + 0.4 * contrast)
    return image.clamp(0, 1), mask


class CarvanaDataset(Dataset):
    """Images with their masks, read from files.

    Args:
        pairs: the samples, see `find_pairs`.
        class_map: which colour of the masks is which class, see `data.masks.scan_masks`.
        size: width and height to resize to; None keeps each image's own size.
        n_channels: 3 for RGB, 1 for grey.
        augment: whether to flip and to change brightness and contrast at random, see `augment_pair`.
        report: what the scan of the masks found, for the log.
        summary: how many samples each part holds, for the log.

    Attributes:
        names: "<car>_<view>" of each sample.
        groups: the car of each sample.
        is_random: whether a sample differs from time to time.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        class_map: ClassMap,
        size: tuple[int, int] | None = None,
        n_channels: int = 3,
        augment: bool = False,
        report: str = "",
        summary: str = "",
    ):
        self.pairs = list(pairs)
        self.class_map = class_map
        self.size = size
        self.n_channels = n_channels
        self.is_random = augment
        self.report = report
        self.summary = summary
        self.names = [pair.name for pair in self.pairs]
        self.groups = [pair.car for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def fingerprint(self) -> str:
        """SHA-256 of the names and the sizes of the files, which is quick and finds most changes."""
        lines = [
            f"{pair.name} {os.path.getsize(pair.image_path)} {os.path.getsize(pair.mask_path)}" for pair in self.pairs
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the image, float32 (C, H, W) in [0, 1], and the mask, int64 (H, W)."""
        _, _, image_path, mask_path = self.pairs[index]
        sizes = image_size(image_path), image_size(mask_path)
        if sizes[0] != sizes[1]:
            raise UserError(
                f"{image_path} has {sizes[0][0]} x {sizes[0][1]} pixels, but {mask_path} has {sizes[1][0]} x "
                f"{sizes[1][1]}. An image and its mask must be of one size."
            )
        image = load_image(image_path, self.n_channels, self.size)  # (C, H, W)
        mask = load_mask(mask_path, self.class_map, self.size)  # (H, W)
        return augment_pair(image, mask) if self.is_random else (image, mask)


def build_carvana(
    data_dir: str | Path,
    *,
    patch_size: int = 256,
    n_channels: int = 3,
    n_classes: int = 2,
    train_val_sample_rate: float = 0.08,
    test_sample_rate: float = 0.02,
    val_split: float = 0.15,
    split_seed: int = 0,
    mode: str = "direct",
    augment: bool = False,
    max_bad_samples: int = 0,
) -> dict[str, CarvanaDataset]:
    """Return the data sets `train`, `val` and `test`, with no car in two of them.

    Args:
        data_dir: holds `train` and `train_masks`, see `find_pairs`.
        patch_size: width and height in pixels that images are resized to.
        n_channels: 3 for RGB, 1 for grey.
        n_classes: the most values that may occur in the masks; 1 and 2 both mean background and car.
        train_val_sample_rate, test_sample_rate, val_split, split_seed: see `data.split.split_by_group`.
        mode: "direct" resizes the images of all parts; "padding" leaves those of val and test at their own size.
        augment: whether to augment the training images, see `augment_pair`.
        max_bad_samples: how many masks may be bad, for loaders that leave them out.

    Raises:
        UserError: an option out of range, files that are missing or do not fit together, a part that is empty.
    """
    if n_channels not in (1, 3):
        raise UserError(f"--n_channels {n_channels} does not fit images: give 3 for RGB or 1 for grey.")
    if mode not in MODES:
        raise UserError(f"--mode {mode} is unknown: give {' or '.join(MODES)}{nearest(mode, MODES)}.")
    for option, value in (("--patch_size", patch_size), ("--n_classes", n_classes)):
        if value < 1:
            raise UserError(f"{option} {value} is out of range: give 1 or more.")
    pairs = find_pairs(data_dir)
    cars = [pair.car for pair in pairs]
    parts = split_by_group(cars, train_val_sample_rate, test_sample_rate, val_split, split_seed)
    class_map, report = scan_masks([pair.mask_path for pair in pairs], n_classes, max_bad=max_bad_samples)
    using = ", ".join(f"{len(indices):,} for {part}" for part, indices in parts.items())
    summary = f"{len(pairs):,} images of {len(set(cars)):,} cars; using {using}"
    if sum(map(len, parts.values())) < len(pairs):
        summary += "; --train_val_sample_rate 1 uses all"
    datasets = {}
    for part, indices in parts.items():
        size = (patch_size, patch_size) if mode == "direct" or part == "train" else None
        chosen = [pairs[index] for index in indices]
        random = augment and part == "train"
        datasets[part] = CarvanaDataset(chosen, class_map, size, n_channels, random, report, summary)
    return datasets
