"""Which files belong together: an index that is read once and stays small, also for a million samples.

A sample has one file in each of several directories, such as an image and its mask. A directory is listed once. The
index keeps the name of each sample and the ends of its file names, of which there are few different ones. Paths
are put together from these.
"""

import hashlib
import os
import sys
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from engine.registry import load
from utils.errors import UserError

EXTENSIONS = {"jpg", "jpeg", "jfif", "png", "bmp", "tif", "tiff", "gif", "webp", "ppm", "pgm"}
FOLDERS = ("train", "train_masks")
MASK_END = "_mask"


class MatchedFiles(Sequence):
    """The files of several directories, matched by name; a sample is a tuple of paths.

    Args:
        folders: the directories.
        names: of the samples.
        ends: of each sample, what follows its name in the file name in each directory, such as (".jpg", "_mask.gif");
            or, behind a separator, the whole file name, where it spells the name in other bytes.
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
        """Return the path of a sample's file in the directory number `which`."""
        end = self.ends[index][which]
        return f"{self.folders[which]}{end if end.startswith(os.sep) else f'{os.sep}{self.names[index]}{end}'}"

    def paths(self, which: int) -> list[str]:
        """Return the paths of all samples in the directory number `which`."""
        return [self.path(index, which) for index in range(len(self))]

    def select(self, indices: Sequence[int]) -> "MatchedFiles":
        """Return some of the samples."""
        return MatchedFiles(self.folders, [self.names[i] for i in indices], [self.ends[i] for i in indices])

    def status(self) -> np.ndarray:
        """Return size in bytes and time of the last change in nanoseconds, of each file, (N, 2 * files) int64.

        The file system is asked once. A missing file has -1; an error names it when it is loaded.
        """
        if self._status is None:
            rows = (number for paths in self for path in paths for number in size_and_time(path))
            width = 2 * len(self.folders)
            self._status = np.fromiter(rows, dtype=np.int64, count=width * len(self)).reshape(-1, width)
        return self._status

    def fingerprint(self) -> str:
        """Return SHA-256 of the names, the sizes, and the contents of some files, and how many these are."""
        digest = hashlib.sha256()
        separator = ""
        for name, sizes in zip(self.names, self.status()[:, ::2], strict=True):
            line = " ".join([name, *map(str, sizes)])
            digest.update(f"{separator}{line}".encode(errors="surrogateescape"))
            separator = "\n"
        return load("extras.own_data.content:with_contents", "data_dir")(digest, self)


def size_and_time(path: str) -> tuple[int, int]:
    """Return the size of a file and the time of its last change, in nanoseconds; -1 for both when it is missing."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def car_of(name: str) -> str:
    """Return the car of "<car>_<view>": what stands before the last underscore; all of it when there is none."""
    return sys.intern(name.rpartition("_")[0] or name)


def shorten(files: list[str], most: int = 10) -> str:
    """Join the names of files for a message, and count those beyond the first ones."""
    more = f" and {len(files) - most} more ({len(files)} in all)" if len(files) > most else ""
    return ", ".join(files[:most]) + more


def index_folder(
    folder: str | Path,
    name_end: str,
    extensions: Collection[str] | None = EXTENSIONS,
    ends_here: Collection[str] = (),
) -> tuple[dict[str, str], set[str]]:
    """List a directory. Hidden files are skipped, and directories where all extensions count.

    Names that look alike are one name, in whatever way their accents are encoded (in NFC, or NFD as on a Mac).

    Args:
        folder: the directory.
        name_end: what is removed from the end of a stem to get the name of the sample, such as "_mask".
        extensions: of the files that count, in small letters; None for all.
        ends_here: of all samples' files that share the directory; a file belongs to the longest that it has.

    Returns:
        What follows the name in the name of the file, by name; and all files that share their name with another one.
    """
    ends: dict[str, str] = {}
    doubled: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, extension = os.path.splitext(entry.name)
            counts = entry.is_file() if extensions is None else extension[1:].lower() in extensions
            if not counts or stem.startswith("."):
                continue
            if ends_here and name_end != max(filter(stem.endswith, ends_here), key=len, default=None):
                continue
            spelled = stem.removesuffix(name_end)
            name = unicodedata.normalize("NFC", spelled)
            # There are few different ends, unless the names are spelled otherwise.
            end = sys.intern(entry.name[len(name) :]) if name == spelled else os.sep + entry.name
            if name in ends:
                doubled |= {name + ends[name], name + end}
                end = min(end, ends[name])
            ends[name] = end
    return ends, doubled


def match_files(
    folders: Sequence[str | Path],
    name_ends: Sequence[str] | None = None,
    extensions: Collection[str] | None = EXTENSIONS,
) -> MatchedFiles:
    """Return the files of several directories that have one name, sorted by name.

    Args:
        folders: the directories, without those below them.
        name_ends: of each directory, what a file name may have behind the name of the sample, see `index_folder`.
        extensions: of the files that count, in small letters; None for all. They do not belong to the name.

    Raises:
        UserError: a directory is missing or empty, or some name is not in all of them, or twice in one.
    """
    indexes, problems = [], []
    folders = [os.path.normpath(os.path.expanduser(folder)) for folder in folders]
    name_ends = name_ends or [""] * len(folders)
    for folder, name_end in zip(folders, name_ends, strict=True):
        if not os.path.isdir(folder):
            raise UserError(f"There is no directory {folder}.")
        ends_here = {end for other, end in zip(folders, name_ends, strict=True) if other == folder} - {name_end}
        try:
            index, doubled = index_folder(folder, name_end, extensions, ends_here and ends_here | {name_end})
        except OSError as error:
            raise UserError(f"The directory {folder} cannot be read: {error.strerror}.") from None
        if not index:
            kinds = "" if extensions is None else f" with one of the extensions {', '.join(sorted(extensions))}"
            hint = load("extras.file_advice:hint_of_folders", "data_dir")(folder)
            raise UserError(f"There is no file{kinds} in {folder}{hint}.")
        indexes.append(index)
        if doubled:
            problems.append(f"{folder} has names with more than one file: {shorten(sorted(doubled))}")
    union = set().union(*indexes)
    for folder, index in zip(folders, indexes, strict=True):
        if missing := sorted(union - index.keys()):
            problems.append(f"{folder} lacks {len(missing):,} of {len(union):,} names: {shorten(missing)}")
    if problems:
        where = ", ".join(dict.fromkeys(map(str, folders)))
        hint = load("extras.file_advice:nearest_names", "data_dir")(indexes)
        raise UserError(
            f"The files of {where} do not belong together one by one: {'; '.join(problems)}.{hint} "
            f"Add or remove files: each directory needs one file of each name, the extension aside."
        )
    names = sorted(union)
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # equal ends are one object
    of_names = (tuple(index[name] for index in indexes) for name in names)
    return MatchedFiles(folders, names, [known.setdefault(ends, ends) for ends in of_names])


def find_pairs(data_dir: str | Path) -> MatchedFiles:
    """Return the images of `data_dir/train` with their masks of `data_dir/train_masks`, sorted by name.

    Raises:
        UserError: a directory is missing or empty, or the files do not pair up one to one.
    """
    data_dir = Path(data_dir).expanduser()
    folders = [data_dir / folder for folder in FOLDERS]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"There is no directory {folder}. Unpack train.zip and train_masks.zip of the Kaggle competition "
                f'"Carvana Image Masking Challenge" into {data_dir}, or give --data_type MultiImage for files that lie '
                f"otherwise, or make data of the same layout:\n"
                f"python -m tools.synthetic.make_carvana_like --data_dir {data_dir} --cars 32 --views 16 --size 480x320"
            )
    try:
        return match_files(folders, ["", MASK_END])
    except UserError as error:
        raise UserError(f"{error}\nEach train/<car>_<view>.jpg needs one train_masks/<car>_<view>_mask.gif.") from None
