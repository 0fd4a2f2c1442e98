"""Tensors that stand in files beside a checkpoint, in shards: what the checkpoint says of them, and what is checked.

    RUN/PREFIX_last_ckpt.pth        all but the tensors of `PARTS`, and an entry "shards": the record of this module
    RUN/shards/UPDATE/*.distcp      their numbers: each process of the run has written one file

The record is data as the rest of a checkpoint is: names, sizes and SHA-256 of the files, and for each tensor its shape,
its type and its pieces. So nothing has to be taken from torch's own index of the files (`.metadata`), which is a pickle
that may run any program when it is opened: that one is for other programs, and is never opened here.
"""

import hashlib
import math
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoints.sharded_state import is_cut
from utils.errors import DamagedError, UserError

DIRECTORY = "shards"
PARTS = ("networks", "optimizers", "averaging")  # what is large
DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
DIRECTORY_NAME, FILE_NAME = re.compile(r"[0-9]+(-[0-9]+)?"), re.compile(r"__[0-9]+_[0-9]+\.distcp")
NUM_READERS = 8  # threads that compute digests


# ---- tensors, out and in ---------------------------------------------------------------------------------------------
def take_out(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the state with None in the place of each tensor of `PARTS`, and those tensors by their places.

    One of no dimension, such as an optimizer's count of steps, stays: it is smaller than what a shard says about it.

    >>> take_out({"networks": {"w": torch.ones(2)}, "optimizers": {}, "epoch": 1})
    ({'networks': {'w': None}, 'optimizers': {}, 'epoch': 1}, {"['networks']['w']": tensor([1., 1.])})
    """
    taken: dict[str, Tensor] = {}

    def take(place: str, value: Any) -> Any:
        if not torch.is_tensor(value) or not (value.ndim or is_cut(value)):
            return value
        taken[place] = value
        return None

    return {name: walk(part, f"[{name!r}]", take) if name in PARTS else part for name, part in state.items()}, taken


def put_in(state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the state with the tensors in their places, and without the record of them."""
    put = lambda place, value: tensors.get(place, value)  # noqa: E731
    rest = {name: part for name, part in state.items() if name != "shards"}
    return {name: walk(part, f"[{name!r}]", put) if name in PARTS else part for name, part in rest.items()}


def walk(state: Any, place: str, change: Callable[[str, Any], Any]) -> Any:
    """Return the state with ``change(place, value)`` for all that is no list, tuple or dictionary."""
    if isinstance(state, dict):
        return {name: walk(entry, f"{place}[{name!r}]", change) for name, entry in state.items()}
    if type(state) in (list, tuple):
        return type(state)(walk(entry, f"{place}[{number}]", change) for number, entry in enumerate(state))
    return change(place, state)


# ---- the record ------------------------------------------------------------------------------------------------------
@dataclass
class Stored:
    """A tensor in shards.

    Attributes:
        shape: of the whole.
        dtype: of its numbers.
        pieces: one row for each piece: the number of its file, where it begins there and how long it is, in bytes; then
            for each dimension where it begins in the tensor, and then for each its size. int64, (pieces, 3 + 2 * dims).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Tensor

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class Shards:
    """Where the tensors of a checkpoint are.

    Attributes:
        directory: the plain name of a directory in `DIRECTORY`.
        files: the size in bytes and the SHA-256 of each file in it, by name.
        tensors: by their places in the state.
    """

    directory: str
    files: dict[str, tuple[int, str]]
    tensors: dict[str, Stored]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds as "shards"."""
        tensors = {
            place: {"shape": list(stored.shape), "dtype": str(stored.dtype)[6:], "pieces": stored.pieces}
            for place, stored in self.tensors.items()
        }
        return {"directory": self.directory, "files": {k: list(v) for k, v in self.files.items()}, "tensors": tensors}

    @classmethod
    def of(cls, state: Mapping[str, Any], path: str | Path) -> "Shards":
        """Read the record in the content of a checkpoint, which anybody may have written.

        Raises:
            UserError: when it is not one that this template writes.
        """
        try:
            record = state["shards"]
            files = {name: (size, digest) for name, (size, digest) in record["files"].items()}
            tensors = {
                place: Stored(tuple(entry["shape"]), DTYPES[entry["dtype"]], entry["pieces"])
                for place, entry in record["tensors"].items()
            }
            found = cls(record["directory"], files, tensors)
            is_sound = found.is_sound()
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):
            is_sound = False
        if not is_sound:
            raise UserError(f"{path} does not tell as this template does in which files its tensors are.")
        return found

    def is_sound(self) -> bool:
        """Whether names are plain ones, and every tensor is made of pieces that lie within it and within their files.

        Then opening it takes no more memory than its files have bytes, and reads no file outside of the directory.
        """
        names = [DIRECTORY_NAME.fullmatch(self.directory), *map(FILE_NAME.fullmatch, self.files)]
        sizes = [size for size, _ in self.files.values()]
        lengths = [length for stored in self.tensors.values() for length in stored.shape]
        if not all(names) or not all(type(number) is int and 0 <= number < 2**48 for number in (*sizes, *lengths)):
            return False
        if any(math.prod(max(length, 1) for length in stored.shape) > 2**60 for stored in self.tensors.values()):
            return False  # no file is so large; torch would count it wrong
        if sum(stored.num_bytes for stored in self.tensors.values()) > sum(sizes):
            return False
        return all(is_covered(stored, torch.tensor(sizes, dtype=torch.int64)) for stored in self.tensors.values())

    def at(self, path: str | Path) -> Path:
        """The directory, for the checkpoint at `path`."""
        return Path(path).parent / DIRECTORY / self.directory

    def check_files(self, path: str | Path, deep: bool = True) -> None:
        """Raise DamagedError when a file is missing or of another size, or (deep) of other content, than once written.

        Args:
            path: of the checkpoint.
            deep: read the files and compare their SHA-256.
        """
        for name, (size, _) in self.files.items():
            file = self.at(path) / name
            there = file.stat().st_size if file.is_file() else None
            if there != size:
                how = "is missing" if there is None else f"has {there:,} bytes, not {size:,}"
                raise DamagedError(f"The checkpoint {path} is damaged: its shard {file} {how}.")
        if not deep:
            return
        with ThreadPoolExecutor(NUM_READERS) as threads:
            found = [*threads.map(file_digest, [self.at(path) / name for name in self.files])]
        for (name, (_, digest)), now in zip(self.files.items(), found, strict=True):
            if now != digest:
                file = self.at(path) / name
                raise DamagedError(f"The checkpoint {path} is damaged: its shard {file} does not fit its SHA-256.")


def is_covered(stored: Stored, sizes: Tensor) -> bool:
    """Whether a tensor has as many numbers as its pieces together, each within the tensor and within its file."""
    pieces, dims = stored.pieces, len(stored.shape)
    if pieces.dtype != torch.int64 or pieces.ndim != 2 or pieces.shape[1] != 3 + 2 * dims or (pieces < 0).any():
        return False
    if not len(pieces) or not len(sizes) or pieces[:, 0].max() >= len(sizes):
        return False
    shape = torch.tensor(stored.shape, dtype=torch.int64)
    counts = pieces[:, 3 + dims :].prod(1)
    is_inside = (pieces[:, 3 : 3 + dims] + pieces[:, 3 + dims :] <= shape).all()
    is_in_file = (pieces[:, 1] + pieces[:, 2] <= sizes[pieces[:, 0]]).all()
    is_long_enough = (counts * stored.dtype.itemsize <= pieces[:, 2]).all()
    return bool(is_inside and is_in_file and is_long_enough) and int(counts.sum()) == math.prod(stored.shape)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- directories -----------------------------------------------------------------------------------------------------
def new_directory(run_dir: Path, update: int) -> str:
    """A name for the shards of an update that no directory has yet: the same update may be saved twice."""
    names = (f"{update}-{number}" if number else f"{update}" for number in range(10**6))
    return next(name for name in names if not (run_dir / DIRECTORY / name).exists())


def remove_others(run_dir: Path, kept: set[str]) -> None:
    """Remove all shards but those of these names: of checkpoints that are gone, or that never became whole."""
    for path in (run_dir / DIRECTORY).glob("*/"):
        if DIRECTORY_NAME.fullmatch(path.name) and path.name not in kept and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
