"""Read CSV files: the lines below a header, separated by commas, semicolons or tabs."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError, shown


@dataclass
class CsvFile:
    """The content of a CSV file.

    Attributes:
        names: of the columns, from the header. A column without a name is left out, such as the index of pandas.
        lines: those below the header, each with the number of the line that it ends in, and its cells by column.
        delimiter: what separates the cells.
    """

    names: list[str]
    lines: list[tuple[int, dict[str, str]]]
    delimiter: str


def read_csv(path: Path) -> CsvFile:
    """Read a CSV file; UserError when it is none, or has no line below a header."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8. Save it as CSV in UTF-8.") from None
    except OSError as error:
        raise UserError(f"The table {path} cannot be read: {error.strerror}.") from None
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines = []
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        check_names(names, path)
        reader.fieldnames = names
        for line in reader:
            if None in line or None in line.values():
                raise UserError(f"{path}, line {reader.line_num}: it has not as many values as the header has names.")
            line.pop("", None)
            lines.append((reader.line_num, line))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}, is not CSV: {error}.") from None
    if not lines:
        raise UserError(f"{path} has no line below a header.")
    return CsvFile([name for name in names if name], lines, delimiter)


def check_names(names: list[str], path: Path) -> None:
    """Raise UserError when a name in the header is there twice, or cannot be printed."""
    for place, name in enumerate(names):
        if not name.isprintable():
            raise UserError(f"{path}: the column {shown(name)} cannot be printed. Rename it in the first line.")
        if name and name in names[:place]:
            raise UserError(f"{path}: two columns have the name {shown(name)}. Rename one in the first line.")
