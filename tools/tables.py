"""Tables of the tools, on a terminal and in CSV files."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.files import write_atomically


def aligned(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Return the rows of a table as lines with aligned columns; a row may be shorter than others.

    >>> aligned([["part", "samples"], ["train", "600"]])
    ['part   samples', 'train  600']
    """
    widths = [max(len(row[column]) for row in rows if len(row) > column) for column in range(max(map(len, rows)))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)) for row in rows]
    return [f"{indent}{line}".rstrip() for line in lines]


def write_table(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Write rows as a CSV file, as a whole or not at all."""
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows(rows)
    write_atomically(path, file.getvalue().encode())
