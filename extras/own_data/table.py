"""Tables: `--data_type Table --data_dir patients.csv --target risk` predicts a column of a table from the others.

A table is a CSV file with a header, or an npz file with an array for each column. Where --data_dir is a directory with
train.csv, and perhaps val.csv and test.csv, these are the parts; a column `split` makes them, too.
"""

import hashlib
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.FashionMNIST import already_batched
from extras.own_data.cells import MOST_LISTED, PART_OF, Cells, find_tables, read_cells
from extras.own_data.columns import MISSING, Column, check_forms, encode, form_of, in_order, num_unknown
from extras.own_data.images import ordered_classes
from utils.errors import UserError, nearest, shown


# ---- make the parts --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Recipe:
    """How rows become samples, the same in all parts.

    Attributes:
        inputs: the names of the columns that the network gets.
        target: the name of the column to predict.
        categories: the columns whose numbers are codes.
        classes: the names of the classes; None to predict a number.
        forms: how columns become numbers, see extras/own_data/columns.py; None if the training part decides it.
    """

    inputs: tuple[str, ...]
    target: str
    categories: tuple[str, ...]
    classes: tuple[str, ...] | None
    forms: Mapping[str, Any] | None


def build_table(
    data_dir: str | Path,
    *,
    target: str | None = None,
    features: Sequence[str] | None = None,
    leave_out: Sequence[str] | None = None,
    group: str | None = None,
    categories: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    columns: Mapping[str, Any] | None = None,
    split: str = "split",
    missing: Sequence[str] = (),
    decimal: str | None = None,
) -> dict[str, Dataset]:
    """Return the parts of a table, or all rows as "all".

    Args:
        data_dir: the table, or the directory that it is alone in.
        target: the column to predict: a text, a number with two values only, or one of `categories` is a class; any
            other number is predicted as such.
        features: the columns to predict it from, as names or patterns such as "x*"; None for all others.
        leave_out: columns that are not among them.
        group: a column; rows of the same value are in one part. None: equal rows are.
        categories: columns of numbers that are codes.
        class_names: the classes in their order; None for that of the texts.
        columns: how a checkpoint has them become inputs; None if the training part decides it.
        split: a column with train, val or test, if there is one.
        missing: texts that stand for a missing cell, beside the usual ones.
        decimal: comma or point, where cells such as 1,234 do not tell it, see `make_column`.

    Raises:
        UserError: a file cannot be read, lacks a column, or a cell of the target is missing.
    """
    tables = {part: read_cells(path, missing, decimal) for part, path in find_tables(data_dir).items()}
    first = tables.get("train") or tables["all"]
    known = list(first.columns)
    if target is None:
        raise UserError(f"--target names the column to predict: {first.path} has {', '.join(known[:MOST_LISTED])}.")
    for cells in tables.values():
        check_columns([target, *filter(None, [group])], cells, "--target or --group")
    if list(tables) == ["all"] and split in known:
        tables = cut_by_column(first, split)
    keeping = {"--target": [target], "--group": [group], "data_args.split": [split]}
    keeping["--leave_out"] = matching(leave_out or (), known, "--leave_out")
    inputs = inputs_of(matching(features or ["*"], known, "--features"), keeping)
    codes = matching(categories or (), known, "--categories")
    inputs = inputs if columns is None else names_of(columns)
    refuse_idle(features or (), keeping, categories or (), [*inputs, target])
    if not inputs:
        raise UserError(f"No column of {first.path} is left to predict {target} from: see --features and --leave_out.")
    is_number = columns is not None and columns.get("target") is not None
    targets = check_target(tables, target)
    classes = None if is_number else classes_of(targets, first.path, target in codes, class_names)
    recipe = Recipe(tuple(inputs), target, tuple(codes), classes, columns)
    parts: dict[str, Any] = {}
    for part, cells in tables.items():
        check_columns(inputs, cells, "--features")
        parts[part] = Rows(cells, recipe, group_of(cells, group, [*inputs, target]))
    return parts["train"].prepared(parts) if len(parts) == 3 else parts


def names_of(columns: Mapping[str, Any]) -> list[str]:
    """Return the columns that a checkpoint has as inputs; UserError for what is no description of columns."""
    check_forms(columns)
    return [form["name"] for form in columns["inputs"]]


def inputs_of(names: Sequence[str], keeping: Mapping[str, Sequence[str | None]]) -> list[str]:
    """Return the columns that no option keeps from the inputs."""
    return [name for name in names if not any(name in kept for kept in keeping.values())]


def refuse_idle(
    features: Sequence[str],
    keeping: Mapping[str, Sequence[str | None]],
    categories: Sequence[str],
    used: Sequence[str],
) -> None:
    """Raise UserError when an option names a column on which it does not act. Patterns may mean such columns, too.

    Args:
        features, categories: names and patterns of these options.
        keeping: the columns that an option keeps from the inputs.
        used: inputs and target.
    """
    for option, names in keeping.items():
        if both := [name for name in features if name in names]:
            raise UserError(f"--features names {shown(both[0])}, which {option} keeps from the inputs: give it once.")
    if idle := [name for name in categories if not is_pattern(name) and name not in used]:
        raise UserError(f"--categories {shown(idle[0])} has no effect: it is neither an input nor the target.")


def is_pattern(name: str) -> bool:
    return any(letter in name for letter in "*?[")


def matching(patterns: Sequence[str], known: Sequence[str], option: str) -> list[str]:
    """Return the columns that names or patterns mean, in the order of the table; UserError for one that means none."""
    found = set()
    for pattern in patterns:
        of_pattern = {pattern} & set(known) or {name for name in known if fnmatchcase(name, pattern)}
        if not of_pattern:
            listed = ", ".join(known[:MOST_LISTED])
            raise UserError(f"{option} {shown(pattern)} is no column{nearest(pattern, known)}: there are {listed}.")
        found |= of_pattern
    return [name for name in known if name in found]


def check_columns(names: Sequence[str], cells: Cells, option: str) -> None:
    """Raise UserError when a table lacks a column."""
    for name in names:
        if name not in cells.columns:
            listed = ", ".join(list(cells.columns)[:MOST_LISTED])
            hint = nearest(name, cells.columns)
            raise UserError(f"{cells.path} has no column {shown(name)} ({option}){hint}; it has {listed}.")


def cut_by_column(cells: Cells, split: str) -> dict[str, Cells]:
    """Return the rows of each part that a column names."""
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(cells.columns[split].texts):
        part = PART_OF.get(text.lower())
        if part is None:
            raise UserError(
                f"{cells.path}, {cells.rows[row]}: {shown(text)} in the column {split} is no part: give train, val or "
                f"test. If this column is something else, name another one: --set data_args.split=NAME"
            )
        rows.setdefault(part, []).append(row)
    return {part: cells.select(indices) for part, indices in rows.items()}


def check_target(tables: Mapping[str, Cells], target: str) -> list[Column]:
    """Return the columns of the target; UserError when one lacks a cell."""
    columns = [cells.columns[target] for cells in tables.values()]
    for cells, column in zip(tables.values(), columns, strict=True):
        if (absent := column.is_missing).any():
            row = cells.rows[int(absent.argmax())]
            raise UserError(
                f"{cells.path}, {row}: the cell of the target {target} is missing, as in {int(absent.sum()):,} rows. "
                f"Leave these rows out of the table; predict.py predicts them. Cells count as missing that are empty "
                f"or {', '.join(filter(None, MISSING))}: a class of such a name needs another one."
            )
    return columns


def classes_of(
    targets: Sequence[Column], source: Path, is_code: bool, class_names: Sequence[str] | None
) -> tuple[str, ...] | None:
    """Return the names of the classes; None when the target is a number to be predicted."""
    texts = {text for column in targets for text in column.texts}
    is_number = not any(column.is_wrong.any() for column in targets)
    if is_number and len(texts) == 1 and not is_code and class_names is None:
        name = shown(targets[0].name)
        raise UserError(f"{source}: all cells of the target {name} are {texts.pop()}: there is nothing to predict.")
    if is_number and len(texts) > 2 and not is_code and class_names is None:
        return None
    return tuple(ordered_classes(in_order(texts), class_names, source))


def group_of(cells: Cells, group: str | None, used: Sequence[str]) -> list[str]:
    """Return the group of each row: that of the column, or what its cells hold."""
    if group is not None:
        if (absent := cells.columns[group].is_missing).any():
            row = cells.rows[int(absent.argmax())]
            raise UserError(f"{cells.path}, {row}: the cell of the group {group} is missing.")
        return list(cells.columns[group].texts)
    lines = zip(*(cells.columns[name].texts for name in used), strict=True)
    return [hashlib.blake2b(repr(line).encode(), digest_size=8).hexdigest() for line in lines]


class Rows(Dataset):
    """Rows of a table that are not inputs of a network yet: the training part decides how they become them.

    Args:
        cells: the table.
        recipe: which columns are used.
        groups: the group of each row.

    Attributes:
        targets: of each row, the number of its class, or the number to predict.
    """

    def __init__(self, cells: Cells, recipe: Recipe, groups: Sequence[str], summary: str = ""):
        self.cells = cells
        self.recipe = recipe
        self.groups = groups
        self.summary = summary
        column = cells.columns[recipe.target]
        if recipe.classes is None:
            column.check_clear(f"{cells.path}: the target {recipe.target}")
            if (wrong := column.is_wrong).any():
                row, text = cells.rows[int(wrong.argmax())], column.texts[int(wrong.argmax())]
                raise UserError(f"{cells.path}, {row}: the target {recipe.target} is no number: {shown(text)}.")
            self.targets = column.numbers.tolist()
        else:
            number_of = {name: number for number, name in enumerate(recipe.classes)}
            self.targets = [number_of[text] for text in column.texts]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> "Rows":
        return self.select([index])

    def select(self, indices: Sequence[int]) -> "Rows":
        """Return some of the rows."""
        return Rows(self.cells.select(indices), self.recipe, [self.groups[index] for index in indices], self.summary)

    def prepared(self, parts: Mapping[str, "Rows"]) -> dict[str, "TableData"]:
        """Return all parts as data sets, in the form that this one decides, unless a checkpoint has."""
        forms = self.recipe.forms
        if forms is None:
            if not len(self):
                raise UserError("The training part is empty, and decides how columns become inputs: give it rows.")
            columns, source = self.cells.columns, self.cells.path
            codes = self.recipe.categories
            inputs = [form_of(columns[name], source, name in codes) for name in self.recipe.inputs]
            target = None if self.recipe.classes else form_of(columns[self.recipe.target], source)
            forms = {"inputs": inputs, "target": target}
        recipe = replace(self.recipe, forms=forms)
        return {part: TableData(replaced(rows, recipe), part) for part, rows in parts.items()}


def replaced(rows: Rows, recipe: Recipe) -> Rows:
    """Return the same rows with another recipe."""
    return Rows(rows.cells, recipe, rows.groups, rows.summary)


def encode_rows(cells: Cells, forms: Mapping[str, Any]) -> Tensor:
    """Return the inputs that rows make, float32 (N, F)."""
    check_columns([form["name"] for form in forms["inputs"]], cells, "the training table has it")
    inputs = [encode(cells.columns[form["name"]], form, cells.rows, cells.path) for form in forms["inputs"]]
    return torch.from_numpy(np.concatenate(inputs, axis=1))


class TableData(Dataset):
    """Rows of a table in memory.

    Args:
        rows: with the forms of the columns in the recipe.
        part: the name of the part, for the log.

    Attributes:
        inputs: float32 (N, F).
        values: the targets: classes, int64 (N,); or numbers, float32 (N, 1).
    """

    collate_fn = staticmethod(already_batched)
    is_random = False
    in_memory = True

    def __init__(self, rows: Rows, part: str = ""):
        recipe = rows.recipe
        self.names = rows.cells.rows
        self.groups = rows.groups
        self.inputs = encode_rows(rows.cells, recipe.forms)
        is_class = recipe.classes is not None
        self.values = torch.tensor(rows.targets, dtype=torch.int64 if is_class else torch.float32)
        self.values = self.values if is_class else self.values[:, None]
        if is_class:
            self.targets = rows.targets
        self.found_options = {"n_channels": self.inputs.shape[1], "n_classes": 1, "columns": dict(recipe.forms)}
        if is_class:
            self.found_options |= {"n_classes": len(recipe.classes), "class_names": list(recipe.classes)}
        self.summary = "; ".join(filter(None, [describe(rows, part, self.inputs.shape[1]), rows.summary]))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def device(self) -> torch.device:
        """Where the inputs and targets are."""
        return self.values.device

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that they take."""
        return self.inputs.nbytes + self.values.nbytes

    def to(self, device: torch.device | str) -> "TableData":
        """Return the same samples, held on `device`."""
        moved = object.__new__(type(self))
        vars(moved).update(vars(self), inputs=self.inputs.to(device), values=self.values.to(device))
        return moved

    def fingerprint(self) -> str:
        """Return SHA-256 of inputs and targets."""
        digest = hashlib.sha256(self.inputs.cpu().numpy())
        digest.update(self.values.cpu().numpy())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the inputs of a row, (F,) float32, and its target, () int64 or (1,) float32."""
        inputs, values = self.__getitems__([range(len(self))[index]])
        return inputs[0], values[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the inputs (B, F) and the targets, (B,) or (B, 1), of a whole batch."""
        indices = torch.as_tensor(indices, device=self.device)
        return self.inputs.index_select(0, indices), self.values.index_select(0, indices)


def describe(rows: Rows, part: str, num_inputs: int) -> str:
    """Return a line for the log on a part of a table."""
    recipe, columns = rows.recipe, rows.cells.columns
    names = [form["name"] for form in recipe.forms["inputs"]]
    listed = ", ".join(names[:MOST_LISTED]) + (", ..." if len(names) > MOST_LISTED else "")
    if recipe.classes is None:
        form = recipe.forms["target"]
        target = f"the number {recipe.target}, {form['mean']:.4g} with a standard deviation of {form['std']:.4g}"
    else:
        counts = Counter(recipe.classes[number] for number in rows.targets)
        target = f"the class {recipe.target}: " + ", ".join(f"{name} {counts[name]:,}" for name in recipe.classes)
    line = f"{rows.cells.path.name}: {len(rows):,} {part} rows predict {target}; {num_inputs} inputs from {listed}"
    absent = {name: int(columns[name].is_missing.sum()) for name in names}
    if any(absent.values()):
        line += "; missing cells: " + ", ".join(f"{name} {count:,}" for name, count in absent.items() if count)
    unknown = {form["name"]: num_unknown(columns[form["name"]], form) for form in recipe.forms["inputs"]}
    if any(unknown.values()):
        counts_of = ", ".join(f"{name} {count:,}" for name, count in unknown.items() if count)
        line += f"; values that the training part does not have: {counts_of}"
    return line


# ---- predict ---------------------------------------------------------------------------------------------------------
def read_rows(path: Path, opt: Namespace) -> list[tuple[str, Tensor]]:
    """Return the name and the inputs (F,) of each row of a table, which needs no target, as in training.

    Args:
        path: the table.
        opt: the options of the checkpoint.
    """
    check_forms(opt.columns)
    how = {name: value for name, value in (opt.data_args or {}).items() if name in ("missing", "decimal")}
    cells = read_cells(path, **how)
    return list(zip(cells.rows, encode_rows(cells, opt.columns), strict=True))
