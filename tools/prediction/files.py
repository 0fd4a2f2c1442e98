"""The files of a prediction: those that a person names, and a name for what is written of each."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError


@dataclass(frozen=True)
class Found:
    """A file to predict: its path, and its place below the directory that was named."""

    path: Path
    place: Path


@dataclass(frozen=True)
class Sample:
    """A sample to predict: its file, its name in it, its input, and its cells by column where the file is a table."""

    found: Found
    name: str
    inputs: Any
    cells: Mapping[str, str]


def find_files(named: Sequence[str], suffixes: set[str] | None = None) -> tuple[list[Found], int]:
    """Return the files that a person has named, and how many in directories were passed over.

    Args:
        named: files, and directories that are walked, in the order of names. Links to directories, and what is hidden,
            are passed over. A link to a file is a file of its own.
        suffixes: of the files to take from directories, in lower letters; None for all.

    Raises:
        UserError: one does not exist, or there is no file.
    """
    found: dict[str, Found] = {}
    num_others = 0
    for text in named:
        root = Path(text)
        if not root.exists():
            raise UserError(f"{text}: there is no such file or directory.")
        for path in walk(root) if root.is_dir() else [root]:
            if root.is_dir() and suffixes is not None and path.suffix.lower() not in suffixes:
                num_others += 1
            else:
                place = path.relative_to(root) if root.is_dir() else Path(path.name)
                found.setdefault(os.path.abspath(path), Found(path, place))
    if not found:
        others = f"; {num_others} files of other kinds are" if num_others else ""
        raise UserError(f"{', '.join(named)}: no file to predict is there{others}.")
    return list(found.values()), num_others


def walk(root: Path) -> Iterator[Path]:
    """Yield the files below a directory in the order of their names."""
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        yield from (Path(directory, name) for name in sorted(names) if not name.startswith("."))


class FreeNames:
    """Gives a name to each file that is written: its own, and a number if another one has that."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def name(self, stem: Path) -> Path:
        """Return a free name for a file without its suffix. The case of letters distinguishes none."""
        number, free = 1, stem
        while str(free).lower() in self.used:
            number += 1
            free = stem.with_name(f"{stem.name}_{number}")
        self.used.add(str(free).lower())
        return free
