"""Which files belong together: an index that is read once and stays small, also for a million samples.

A sample has one file in each of several directories, such as an image and its mask. A directory is listed once. Of
each sample the index keeps its name and the ends of its file names, which are few different ones; a path is put
together when it is asked for. So a sample costs about a hundred bytes, and is found in the same time whatever their
number.
"""

import hashlib
import itertools
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import UserError

EXTENSIONS = {"jpg", "jpeg", "png", "bmp", "tif", "tiff", "gif", "webp", "ppm", "pgm"}
FOLDERS = ("train", "train_masks")
MASK_END = "_mask"
LINES = 1000  # that are hashed at once


class Pair(NamedTuple):
    """One sample: "<car>_<view>", the car, and the two files."""

    name: str
    car: str
    image_path: str
    mask_path: str


class MatchedFiles(Sequence):
    """The files of several directories, put together by name; each sample is made a tuple of paths when asked for.

    Args:
        folders: the directories.
        names: of the samples.
        ends: of each sample, what follows its name in the file name in each directory, such as (".jpg", "_mask.gif").
    """

    def __init__(self, folders: Sequence[str | Path], names: list[str], ends: list[tuple[str, ...]]):
        self.folders = tuple(map(str, folders))
        self.names = names
        self.ends = ends
        self._status: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[str, ...]:
        return tuple(self.path(index, which) for which in range(len(self.folders)))

    def path(self, index: int, which: int) -> str:
        """The path of a sample's file in the directory number `which`."""
        return f"{self.folders[which]}{os.sep}{self.names[index]}{self.ends[index][which]}"

    def select(self, indices: Sequence[int]) -> "MatchedFiles":
        """Some of the samples."""
        return MatchedFiles(self.folders, *self.of(indices))

    def of(self, indices: Sequence[int]) -> tuple[list[str], list[tuple[str, ...]]]:
        """The names and the ends of some of the samples."""
        return [self.names[i] for i in indices], [self.ends[i] for i in indices]

    def status(self) -> np.ndarray:
        """Size in bytes and time of the last change in nanoseconds, of each file of a sample, (N, 2 * files) int64.

        Asked of the file system once. A file that is not there any more has -1; it is named when it is loaded.
        """
        if self._status is None:
            width = len(self.folders)
            paths = (self.path(index, which) for index in range(len(self)) for which in range(width))
            numbers = itertools.chain.from_iterable(map(size_and_time, paths))  # one by one: few are in memory at once
            count = 2 * width * len(self)
            self._status = np.fromiter(numbers, dtype=np.int64, count=count).reshape(-1, 2 * width)
        return self._status

    def fingerprint(self) -> str:
        """SHA-256 of the names and the sizes of the files, which is quick and finds most changes."""
        digest, sizes = hashlib.sha256(), self.status()[:, ::2]
        for first in range(0, len(self), LINES):
            named = zip(self.names[first : first + LINES], sizes[first : first + LINES].tolist(), strict=True)
            text = "\n".join(" ".join([name, *map(str, of_files)]) for name, of_files in named)
            digest.update(("\n" * (first > 0) + text).encode(errors="surrogateescape"))
        return digest.hexdigest()


class Pairs(MatchedFiles):
    """Images of `data_dir/train` with their masks of `data_dir/train_masks`, each made a `Pair` when asked for.

    Args:
        data_dir: holds the two directories.
        names: "<car>_<view>" of each sample.
        ends: what follows the name in the names of its two files, such as (".jpg", "_mask.gif").
    """

    def __init__(self, data_dir: str | Path, names: list[str], ends: list[tuple[str, str]]):
        super().__init__([Path(data_dir, folder) for folder in FOLDERS], names, ends)
        self.data_dir = data_dir

    def __getitem__(self, index: int) -> Pair:
        name = self.names[index]
        return Pair(name, car_of(name), self.path(index, 0), self.path(index, 1))

    def cars(self) -> list[str]:
        """The car of each sample; one text for all views of a car."""
        known: dict[str, str] = {}
        return [known.setdefault(car, car) for car in map(car_of, self.names)]

    def select(self, indices: Sequence[int]) -> "Pairs":
        """Some of the samples."""
        return Pairs(self.data_dir, *self.of(indices))


class MaskPaths(Sequence):
    """The paths of the masks, which are in the directory number `which`, each put together when it is asked for."""

    def __init__(self, files: MatchedFiles, which: int = 1):
        self.files = files
        self.which = which

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> str:
        return self.files.path(index, self.which)


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


def list_files(folder: str | Path, extensions: Collection[str] | None) -> Iterator[tuple[str, str]]:
    """Yield stem and extension of the files of a folder, in any order; None for `extensions` takes all but hidden ones.

    Directories are passed over where all extensions are taken.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, dot, extension = entry.name.rpartition(".") if "." in entry.name else (entry.name, "", "")
            if not stem or stem[0] == ".":
                continue
            if extension.lower() in extensions if extensions is not None else entry.is_file():
                yield stem, f"{dot}{extension}"


def index_folder(
    folder: str | Path, name_end: str, extensions: Collection[str] | None = EXTENSIONS
) -> tuple[dict[str, str], set[str]]:
    """List a directory.

    Args:
        folder: the directory.
        name_end: what is taken off the end of a stem, if it is there, to get the name of the sample, such as "_mask".
        extensions: of the files that count, in small letters; None for all.

    Returns:
        What follows the name in the name of the file, by name; and the names of all files of which several have one
        name.
    """
    found: dict[str, str] = {}
    doubled: set[str] = set()
    for stem, extension in list_files(folder, extensions):
        name = stem.removesuffix(name_end)
        end = sys.intern(stem[len(name) :] + extension)  # there are few different ones
        if name in found:
            doubled |= {name + found[name], name + end}
            end = min(end, found[name])
        found[name] = end
    return found, doubled


def in_order(indexes: Sequence[dict[str, str]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The names that all indexes have, sorted, and of each its ends; equal ends are one object."""
    names = sorted(indexes[0])
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    of_names = (tuple(index[name] for index in indexes) for name in names)
    return names, [known.setdefault(ends, ends) for ends in of_names]


def match_files(
    folders: Sequence[str | Path],
    name_ends: Sequence[str] | None = None,
    extensions: Collection[str] | None = EXTENSIONS,
) -> MatchedFiles:
    """Return the files of several directories that have one name, sorted by name.

    Args:
        folders: the directories; what is below them in others is not looked at.
        name_ends: of each directory, what a file name may have behind the name of the sample, see `index_folder`.
        extensions: of the files that count, in small letters; None for all. They do not belong to the name.

    Raises:
        UserError: a directory is missing or empty, or some name is not in all of them, or twice in one.
    """
    indexes, problems = [], []
    for folder, name_end in zip(folders, name_ends or [""] * len(folders), strict=True):
        if not os.path.isdir(folder):
            raise UserError(f"There is no directory {folder}.")
        try:
            index, doubled = index_folder(folder, name_end, extensions)
        except OSError as error:
            raise UserError(f"The directory {folder} cannot be read: {error.strerror}.") from None
        if not index:
            kinds = "" if extensions is None else f" with one of the extensions {', '.join(sorted(extensions))}"
            raise UserError(f"There is no file{kinds} in {folder}.")
        indexes.append(index)
        if doubled:
            problems.append(f"{folder} has names with more than one file: {shorten(sorted(doubled))}")
    union = set().union(*indexes)
    for folder, index in zip(folders, indexes, strict=True):
        if missing := sorted(union - index.keys()):
            problems.append(f"{folder} lacks {len(missing):,} of {len(union):,} names: {shorten(missing)}")
    if problems:
        where = ", ".join(dict.fromkeys(map(str, folders)))
        raise UserError(
            f"The files of {where} do not belong together one by one: {'; '.join(problems)}. Add or remove files: each "
            f"directory needs one file of each name, the extension aside."
        )
    return MatchedFiles(folders, *in_order(indexes))


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
                f"python -m tools.synthetic.make_carvana_like --data_dir {data_dir} --cars 32 --views 16 --size 480x320"
            )
    images, doubled_images = index_folder(folders[0], "")
    masks, doubled_masks = index_folder(folders[1], MASK_END)
    problems = {
        "without a mask": [name + images[name] for name in sorted(images.keys() - masks.keys())],
        "without an image": [name + masks[name] for name in sorted(masks.keys() - images.keys())],
        "doubled": sorted(doubled_images | doubled_masks),
    }
    if any(problems.values()):
        told = "; ".join(f"{kind}: {shorten(files)}" for kind, files in problems.items() if files)
        raise UserError(
            f"The files of {folders[0]} and {folders[1]} do not pair up: {told}.\n"
            f"Each train/<car>_<view>.jpg needs one train_masks/<car>_<view>_mask.gif. Add or remove files."
        )
    if not images:
        raise UserError(f"There is no image in {folders[0]}. Expected <car>_<view>.jpg, or another image format.")
    return Pairs(data_dir, *in_order([images, masks]))
