"""The Carvana data set: photos of cars on a turntable, and the masks that cut them out.

The directory holds `train/<car>_<view>.jpg` and `train_masks/<car>_<view>_mask.gif`. The original is from the Kaggle
competition "Carvana Image Masking Challenge" (2017): 318 cars, 16 views of each, 1918 x 1280 pixels. Any images and
masks with such names work. The parts are cut by car, because two views of one car are nearly the same picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.masks import ClassMap, read_classes, scan_masks
from data.pairs import MatchedFiles, car_of, find_pairs
from data.split import split_by_group
from engine.registry import load
from utils.errors import UserError, nearest, shown
from utils.image_file import image_size, read_pixels, to_float

MODES = ("direct", "padding")


def augment_pair(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Flip image and mask with probability 0.5, and change the image's brightness and contrast by up to a fifth.

    The three random numbers come from torch's global generator.

    Args:
        image: float32 (C, H, W) in [0, 1].
        mask: int64 (H, W).
    """
    images, masks = augment_batch(image[None].clone(), mask[None].clone(), torch.rand(1, 3))
    return images[0], masks[0]


def augment_batch(images: Tensor, masks: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Augment a batch; each sample gets the same bits as alone, see `augment_pair`.

    Args:
        images: float32 (N, C, H, W) in [0, 1]; is changed.
        masks: (N, H, W); is changed.
        draws: (N, 3) in [0, 1): of each sample, whether it is flipped, and its brightness and contrast.
    """
    return change_light(flip_some(images, draws), draws), flip_some(masks, draws)


def flip_some(planes: Tensor, draws: Tensor) -> Tensor:
    """Flip planes (N, ..., W) in place where the first of the `draws`, (N, 3) in [0, 1), is below 0.5."""
    for i in (draws[:, 0] < 0.5).nonzero().flatten().tolist():
        planes[i] = planes[i].flip(-1)
    return planes


def change_light(images: Tensor, draws: Tensor) -> Tensor:
    """Change brightness and contrast of float32 (N, C, H, W) in [0, 1], in place; (N, 3) `draws` as above."""
    brightness, contrast = (0.8 + 0.4 * draws[:, 1:].double()).float().T[..., None, None, None]  # (N, 1, 1, 1) each
    images *= brightness
    # In double precision the sum of up to 1.7 million 8-bit values is exact. So neither the number of threads, which
    # sum parts, nor the size of the batch changes a bit of it.
    means = torch.stack([image.double().mean() for image in images]).float()[:, None, None, None]
    return images.sub_(means).mul_(contrast).add_(means).clamp_(0, 1)


@dataclass(eq=False)
class CarvanaDataset(Dataset):
    """Images with their masks, read from files.

    Args:
        pairs: the samples, see `data.pairs.find_pairs`.
        class_map: which colour of the masks is which class, see `data.masks.scan_masks`.
        size: width and height to resize to; None keeps each image's own size.
        n_channels: 3 for RGB, 1 for grey.
        augment: whether to flip and to change brightness and contrast at random, see `augment_pair`.
        report: a line on the masks for the log.
        summary: a line on the size of the parts for the log.
        cache: whether `open_cache` keeps the decoded pixels in a file.
        cache_dir: the directory of that file, see `extras.pixel_cache.cache_directories`.
        white: see `utils.image_file.scaled_levels`.

    Attributes:
        names: "<car>_<view>" of each sample.
        groups: the car of each sample.
        is_random: whether a sample differs from time to time.
        found_options: the values of the masks, which are saved with a run.
    """

    pairs: MatchedFiles
    class_map: ClassMap
    size: tuple[int, int] | None = None
    n_channels: int = 3
    augment: bool = False
    report: str = ""
    summary: str = ""
    cache: bool = False
    cache_dir: str | Path | None = None
    white: int | None = None

    def __post_init__(self) -> None:
        self.names = self.pairs.names
        self.groups = [car_of(name) for name in self.names]
        self.is_random = self.augment
        self.found_options = {"mask_values": self.class_map.values}
        self.cache_note = ""

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """Return SHA-256 of the names, the sizes, and the contents of some files, and how many these are."""
        return self.pairs.fingerprint()

    def files(self, index: int) -> tuple[Any, Any]:
        """Return the image file and the mask file of a sample: paths, or what else Pillow can open."""
        return self.pairs.path(index, 0), self.pairs.path(index, 1)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the pixels, uint8 (C, H, W), and the classes, int64 (H, W), of a sample from its files."""
        image_path, mask_path = self.files(index)
        check_sizes(image_path, mask_path)
        pixels = read_pixels(image_path, self.n_channels, self.size, self.white)
        return pixels, read_classes(mask_path, self.class_map, self.size)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the image, float32 (C, H, W) in [0, 1], and the mask, int64 (H, W)."""
        pixels, classes = self.read(index)
        image, mask = to_float(torch.from_numpy(pixels)), torch.from_numpy(classes)
        return augment_pair(image, mask) if self.is_random else (image, mask)

    def open_cache(self) -> Dataset:
        """Return a data set that loads the same samples from a file of decoded pixels; or this one."""
        if not self.cache or self.size is None:
            return self
        return load("extras.pixel_cache:cached_carvana", "cache")(self)


def check_sizes(image_path: Any, mask_path: Any) -> None:
    """Raise UserError when an image and its mask, both upright, are not of one size; files are as Pillow takes them."""
    (width, height), mask_size = image_size(image_path), image_size(mask_path)
    if (width, height) != mask_size:
        raise UserError(
            f"{image_path} has {width} x {height} pixels, but {mask_path} has {mask_size[0]} x {mask_size[1]}. An "
            f"image and its mask must be of one size, each turned upright as its own EXIF data says."
        )


def check_options(n_channels: int, mode: str, white: Any = None, **at_least_one: int) -> None:
    """Raise UserError when one of the options of image data is out of range."""
    if n_channels not in (1, 3):
        raise UserError(f"--n_channels {n_channels} does not fit images: give 3 for RGB or 1 for grey.")
    if mode not in MODES:
        raise UserError(f"--mode {mode} is unknown: give {' or '.join(MODES)}{nearest(mode, MODES)}.")
    if white is not None and not (type(white) is int and 0 < white < 1 << 32):
        raise UserError(f"data_args.white {shown(white)} is no level: give a whole number, such as 4095 for 12 bits.")
    for option, value in at_least_one.items():
        if value < 1:
            raise UserError(f"--{option} {value} is out of range: give 1 or more.")


def build_carvana(
    data_dir: str | Path,
    *,
    patch_size: int = 256,
    crop: int | None = None,
    n_channels: int = 3,
    n_classes: int = 2,
    train_val_sample_rate: float = 0.08,
    test_sample_rate: float = 0.02,
    val_split: float = 0.15,
    split_seed: int = 0,
    mode: str = "direct",
    augment: bool = False,
    skip_bad_samples: int = 0,
    cache: bool = True,
    cache_dir: str | Path | None = None,
    white: int | None = None,
    mask_values: Sequence[int | str] | None = None,
    ignored_values: Sequence[int | str] | None = None,
) -> dict[str, CarvanaDataset]:
    """Return the data sets `train`, `val` and `test`, with no car in two of them.

    Args:
        data_dir: holds `train` and `train_masks`, see `find_pairs`.
        patch_size: width and height in pixels that images are resized to.
        crop: training cuts squares of this side out of images at their own size instead, see extras/crops.py.
        n_channels: 3 for RGB, 1 for grey.
        n_classes: the most values that may occur in the masks; 1 and 2 both mean background and car.
        train_val_sample_rate, test_sample_rate, val_split, split_seed: see `data.split.split_by_group`.
        mode: "direct" resizes the images of all parts; "padding" leaves those of val and test at their own size.
        augment: whether to augment the training images, see `augment_pair`.
        skip_bad_samples: how many masks may be bad, for loaders that skip them.
        cache, cache_dir, white: see `CarvanaDataset`.
        mask_values: the values of the masks in the order of the classes; None for those found, see `scan_masks`.
        ignored_values: the values of the masks that are no class.

    Raises:
        UserError: an option out of range, files that are missing or do not fit together, a part that is empty.
    """
    check_options(n_channels, mode, white, patch_size=patch_size, n_classes=n_classes)
    pairs = find_pairs(data_dir)
    cars = [car_of(name) for name in pairs.names]
    parts = split_by_group(cars, train_val_sample_rate, test_sample_rate, val_split, split_seed)
    class_map, report = scan_masks(
        pairs.paths(1), n_classes, max_bad=skip_bad_samples, values=mask_values, ignored=ignored_values
    )
    using = ", ".join(f"{len(indices):,} for {part}" for part, indices in parts.items())
    summary = f"{len(pairs):,} images of {len(set(cars)):,} cars; using {using}"
    if sum(map(len, parts.values())) < len(pairs):
        summary += "; --train_val_sample_rate 1 uses all"
    datasets = {}
    for part, indices in parts.items():
        size = (patch_size, patch_size) if mode == "direct" or (part == "train" and not crop) else None
        random = augment and part == "train"
        datasets[part] = CarvanaDataset(
            pairs.select(indices), class_map, size, n_channels, random, report, summary, cache, cache_dir, white
        )
    return datasets
