"""Which image belongs to which mask: an index that is read once and stays small, also for a million samples.

A directory is listed once. Of each sample the index keeps its name and the ends of its two file names, which are few
different ones; a path is put together when it is asked for. So a sample costs about a hundred bytes, and is found in
the same time whatever their number.
"""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import UserError

EXTENSIONS = {"jpg", "jpeg", "png", "bmp", "tif", "tiff", "gif", "webp", "ppm", "pgm"}
FOLDERS = ("train", "train_masks")
MASK_END = "_mask"


class Pair(NamedTuple):
    """One sample: "<car>_<view>", the car, and the two files."""

    name: str
    car: str
    image_path: str
    mask_path: str


class Pairs(Sequence):
    """Images of `data_dir/train` with their masks of `data_dir/train_masks`, each made a `Pair` when asked for.

    Args:
        data_dir: holds the two directories.
        names: "<car>_<view>" of each sample.
        ends: what follows the name in the names of its two files, such as (".jpg", "_mask.gif").
    """

    def __init__(self, data_dir: str | Path, names: list[str], ends: list[tuple[str, str]]):
        self.folders = tuple(str(Path(data_dir, folder)) for folder in FOLDERS)
        self.data_dir = data_dir
        self.names = names
        self.ends = ends
        self._status: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Pair:
        name = self.names[index]
        return Pair(name, car_of(name), self.path(index, 0), self.path(index, 1))

    def path(self, index: int, which: int) -> str:
        """The path of the image (`which` 0) or of the mask (1) of a sample."""
        return f"{self.folders[which]}{os.sep}{self.names[index]}{self.ends[index][which]}"

    def cars(self) -> list[str]:
        """The car of each sample; one text for all views of a car."""
        known: dict[str, str] = {}
        return [known.setdefault(car, car) for car in map(car_of, self.names)]

    def select(self, indices: Sequence[int]) -> "Pairs":
        """Some of the samples."""
        return Pairs(self.data_dir, [self.names[i] for i in indices], [self.ends[i] for i in indices])

    def status(self) -> np.ndarray:
        """Size in bytes and time of the last change in nanoseconds, of the image and of the mask, (N, 4) int64.

        Asked of the file system once. A file that is not there any more has -1; it is named when it is loaded.
        """
        if self._status is None:
            paths = (self.path(index, which) for index in range(len(self)) for which in (0, 1))
            numbers = itertools.chain.from_iterable(map(size_and_time, paths))  # one by one: few are in memory at once
            self._status = np.fromiter(numbers, dtype=np.int64, count=4 * len(self)).reshape(-1, 4)
        return self._status


class MaskPaths(Sequence):
    """The paths of the masks, each put together when it is asked for."""

    def __init__(self, pairs: Pairs):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> str:
        return self.pairs.path(index, 1)


def size_and_time(path: str) -> tuple[int, int]:
    """Return the size of a file and the time of its last change, in nanoseconds; -1 for both when it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def car_of(name: str) -> str:
    """Return the car of "<car>_<view>": what stands before the last underscore; all of it when there is none."""
    return name.rpartition("_")[0] or name


def shorten(files: list[str], most: int = 10) -> str:
    more = f" and {len(files) - most} more ({len(files)} in all)" if len(files) > most else ""
    return ", ".join(files[:most]) + more


def list_images(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield stem and extension of every image file of a folder, in any order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, _, extension = entry.name.rpartition(".")
            if stem and stem[0] != "." and extension.lower() in EXTENSIONS:
                yield stem, f".{extension}"


def find_pairs(data_dir: str | Path) -> Pairs:
    """Return the images of `data_dir/train` with their masks of `data_dir/train_masks`, sorted by name.

    Raises:
        UserError: a directory is missing or empty, or the files do not pair up one to one.
    """
    folders = [Path(data_dir, folder) for folder in FOLDERS]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"There is no directory {folder}. Unpack train.zip and train_masks.zip of the Kaggle competition "
                f'"Carvana Image Masking Challenge" into {data_dir}, or make data of the same layout:\n'
                f"python -m data.make_carvana_like --data_dir {data_dir} --cars 32 --views 16 --size 480x320"
            )
    images, masks = ({}, {})  # what follows the name in the name of the file, by name
    doubled: set[str] = set()
    for found, folder, mask_end in zip((images, masks), folders, ("", MASK_END), strict=True):
        for stem, extension in list_images(folder):
            name = stem.removesuffix(mask_end)
            end = sys.intern(stem[len(name) :] + extension)  # there are few different ones
            if name in found:
                doubled |= {name + found[name], name + end}
                end = min(end, found[name])
            found[name] = end
    problems = {
        "without a mask": [name + images[name] for name in sorted(images.keys() - masks.keys())],
        "without an image": [name + masks[name] for name in sorted(masks.keys() - images.keys())],
        "doubled": sorted(doubled),
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
    known: dict[tuple[str, str], tuple[str, str]] = {}  # so that equal ends are one object
    pairs_of_ends = ((images[name], masks[name]) for name in names)
    return Pairs(data_dir, names, [known.setdefault(ends, ends) for ends in pairs_of_ends])
