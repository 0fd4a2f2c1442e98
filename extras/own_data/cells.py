"""Read tables as columns of texts: CSV files, and npz files with an array for each column."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extras.own_data.columns import DECIMALS, Column, make_column
from extras.own_data.csv_file import read_csv
from utils.errors import UserError, shown

SUFFIXES = (".csv", ".tsv", ".txt", ".npz")
PART_OF = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MOST_LISTED = 20


@dataclass
class Cells:
    """The content of a table.

    Attributes:
        path: the file.
        rows: the name of each row.
        columns: by name.
    """

    path: Path
    rows: list[str]
    columns: dict[str, Column]

    def select(self, indices: Sequence[int]) -> "Cells":
        columns = {name: column.select(indices) for name, column in self.columns.items()}
        return Cells(self.path, [self.rows[index] for index in indices], columns)


def read_cells(path: Path, missing: Sequence[str] = (), decimal: str | None = None) -> Cells:
    """Read a table; UserError when it is none.

    Args:
        path: a CSV or npz file.
        missing: texts that stand for a missing cell, beside the usual ones.
        decimal: see `extras.own_data.columns.make_column`.
    """
    if not isinstance(missing, list | tuple) or not all(isinstance(text, str) for text in missing):
        raise UserError(f'data_args.missing {shown(missing)} is no list of texts: give such as ["unknown"].')
    if decimal not in (None, *DECIMALS):
        raise UserError(f"data_args.decimal {shown(decimal)} is unknown: give {' or '.join(DECIMALS)}.")
    if path.suffix.lower() == ".npz":
        columns = {name: make_column(name, cells, missing) for name, cells in read_arrays(path).items()}
        num_rows = len(next(iter(columns.values())).texts)
        return Cells(path, [f"row {number}" for number in range(num_rows)], columns)
    file = read_csv(path)
    has_commas = file.delimiter != ","
    columns = {
        name: make_column(name, [line[name] for _, line in file.lines], missing, has_commas, decimal)
        for name in file.names
    }
    return Cells(path, [f"line {number}" for number, _ in file.lines], columns)


def read_arrays(path: Path) -> dict[str, list[str]]:
    """Return the columns of an npz file as texts: of arrays (N,), and of (N, K) as NAME.0, NAME.1, ..."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as an npz file: {' '.join(str(error).split())[:200]}") from None
    columns: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.ndim not in (1, 2) or array.dtype.kind not in "biufUS":
            raise UserError(f"{path}: {name} is {array.dtype} of shape {array.shape}: give numbers or texts, (N,).")
        array = array.astype(str) if array.dtype.kind in "bS" else array
        columns |= {name: array} if array.ndim == 1 else {f"{name}.{k}": array[:, k] for k in range(array.shape[1])}
    sizes = {len(array) for array in columns.values()}
    if len(sizes) != 1 or not min(sizes):
        raise UserError(
            f"{path} has columns of {', '.join(map(str, sorted(sizes))) or 'no'} rows: give as many to each."
        )
    return {name: list(map(str, array.tolist())) for name, array in columns.items()}


def find_tables(data_dir: str | Path) -> dict[str, Path]:
    """Return the files of the parts by their names; one file alone as "all".

    Raises:
        UserError: there is none, or several that are no parts.
    """
    place = Path(data_dir).expanduser()
    if not place.is_dir():
        if not place.exists():
            raise UserError(f"There is no table {place}. --data_dir names it: a CSV or npz file.")
        return {"all": place}
    files = sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
    parts = [PART_OF.get(path.stem.lower()) for path in files]
    if "train" in parts and None not in parts and len(set(parts)) == len(parts):
        return dict(zip(parts, files, strict=True))
    if len(files) != 1:
        names = f": {', '.join(path.name for path in files[:MOST_LISTED])}" if files else ""
        raise UserError(
            f"{place} has {len(files)} tables{names}. Name one by --data_dir, or name them train, val, test."
        )
    return {"all": files[0]}


def texts_of(path: Path) -> list[dict[str, str]]:
    """Return the cells of each row of a table as they stand there, by column."""
    if path.suffix.lower() == ".npz":
        columns = read_arrays(path)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [line for _, line in read_csv(path).lines]


def text_lines(path: Path, column: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file, which must have a column; of any other file a row for each line, with this column.

    Raises:
        UserError: it cannot be read.
    """
    if path.suffix.lower() in (".csv", ".tsv"):
        rows = texts_of(path)
        if column not in rows[0]:
            raise UserError(f"{path} has no column {shown(column)} with the texts; it has {', '.join(rows[0])}.")
        return rows
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    return [{column: line} for line in (lines if lines[-1] else lines[:-1])]
