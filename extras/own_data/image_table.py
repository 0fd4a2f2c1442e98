"""Images that a table lists: `--data_type ImageTable --data_args '{"table": "labels.csv"}'`.

The table is a CSV file with a header and the columns file and label, and perhaps split and group.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from data.pairs import shorten
from extras.own_data.cells import PART_OF
from extras.own_data.columns import in_order
from extras.own_data.csv_file import read_csv
from extras.own_data.images import ImageFiles, make_parts, ordered_classes
from utils.errors import UserError, nearest, shown


def build_image_table(
    table: str,
    *,
    data_dir: str | Path,
    n_channels: int | None = None,
    image_size: int | None = None,
    class_names: Sequence[str] | None = None,
    file: str = "file",
    label: str = "label",
    split: str = "split",
    group: str = "group",
    white: int | None = None,
    background: str | None = None,
) -> dict[str, ImageFiles]:
    """Return the parts that the column `split` makes, or all samples as "all".

    Args:
        table: the CSV file, as seen from `data_dir`; separated by commas, semicolons or tabs.
        data_dir: where the table and the files are.
        n_channels, image_size, white, background: see `images.read_input`; None for what the files have.
        class_names: the labels in the order of the classes; None for ascending order, of numbers by their size.
        file, label, split, group: the names of the columns. `split` has train, val or test; samples of one `group` are
            in one part.

    Raises:
        UserError: the table cannot be read, lacks a column, or names a file that is missing or named twice.
    """
    path = Path(data_dir, table).expanduser()
    lines = read_csv(path).lines
    columns = {"file": file, "label": label, "split": split, "group": group}
    known = lines[0][1].keys()
    for name in ("file", "label"):
        if columns[name] not in known:
            raise UserError(
                f"{path} has no column {shown(columns[name])}{nearest(columns[name], known)}; it has "
                f"{', '.join(known)}. Name it by --set data_args.{name}=COLUMN."
            )
    rows: dict[str, list[tuple[str, str, str, str | None]]] = {}
    for number, line in lines:
        values = {name: line[column].strip() for name, column in columns.items() if column in known}
        for name, value in values.items():
            if not value:
                raise UserError(f"{path}, line {number}: the column {columns[name]} is empty.")
        part = PART_OF.get(values.get("split", "").lower())
        if "split" in values and part is None:
            raise UserError(f"{path}, line {number}: {shown(values['split'])} is no part: give train, val or test.")
        row = (str(Path(data_dir, values["file"])), values["file"], values["label"], values.get("group"))
        rows.setdefault(part or "all", []).append(row)
    check_files(rows, path)
    found = in_order({label for part in rows.values() for _, _, label, _ in part})
    classes = ordered_classes(found, class_names, path)
    return make_parts(rows, classes, n_channels=n_channels, image_size=image_size, white=white, background=background)


def check_files(rows: dict[str, list[tuple[str, str, str, str | None]]], table: Path) -> None:
    """Raise UserError when files of the table are missing, or one is named twice."""
    names: dict[str, list[str]] = {}
    for path, name, *_ in (row for part in rows.values() for row in part):
        names.setdefault(os.path.realpath(path), []).append(name)  # a.png, ./a.png and a link are one file
    if twice := sorted(" and ".join(dict.fromkeys(same)) for same in names.values() if len(same) > 1):
        raise UserError(f"{table} names files twice: {shorten(twice, 3)}. Give each one line.")
    if missing := [path for part in rows.values() for path, *_ in part if not Path(path).is_file()]:
        raise UserError(f"{table} names files that are not there: {shorten(missing, 3)}.")
