"""The columns of a table as inputs of a network: standardized numbers, and a 0 or 1 for each value of a category.

How a column becomes inputs is a dictionary, its form, which the training part decides and the checkpoint keeps:

    {"name": "age", "mean": 54.1, "std": 12.8}      a number x becomes (x - mean) / std; a missing one 0, the mean
    {"name": "smoker", "values": ["no", "yes"]}     a text becomes as many numbers: 1 for its value, 0 for the others
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.errors import UserError, shown

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]*)?")  # 1,234 may be 1.234, too
DECIMALS = ("comma", "point")
MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "?")  # cells without a value, in lower letters
MOST_VALUES = 100  # of a category
LARGEST = 1e30  # a number that float32 holds, with room for its square root


@dataclass
class Column:
    """The cells of a column of a table.

    Attributes:
        name: the name in the header.
        texts: of the cells; "" for a missing one.
        numbers: float64 (N,), NaN for a missing cell; and for one that is no number.
        unclear: a cell such as 1,234 where nothing tells whether its comma separates thousands or decimals; or "".
    """

    name: str
    texts: Sequence[str]
    numbers: np.ndarray
    unclear: str = ""

    @property
    def is_missing(self) -> np.ndarray:
        return np.array([text == "" for text in self.texts], dtype=bool)

    @property
    def is_wrong(self) -> np.ndarray:
        """Which cells hold a text that is no number."""
        return np.isnan(self.numbers) & ~self.is_missing

    def select(self, indices: Sequence[int]) -> "Column":
        return Column(self.name, [self.texts[index] for index in indices], self.numbers[indices], self.unclear)

    def check_clear(self, where: str) -> None:
        """Raise UserError when the numbers may be a thousand times as large; `where` names the column."""
        if self.unclear:
            raise UserError(
                f"{where} has {shown(self.unclear)}, and nothing tells whether its comma separates decimals: say so by "
                f"--set data_args.decimal=comma; or that it separates thousands, by --set data_args.decimal=point."
            )


def make_column(
    name: str,
    cells: Sequence[str],
    missing: Sequence[str] = (),
    decimal_comma: bool = False,
    decimal: str | None = None,
) -> Column:
    """Return a column of the texts in a file.

    >>> make_column("x", ["1", " 2.5 ", "", "NA", "big"]).numbers
    array([1. , 2.5, nan, nan, nan])

    Args:
        name: of the column.
        cells: their texts; white space around them does not count.
        missing: further texts that stand for a missing cell.
        decimal_comma: whether 1,5 is a number, as where semicolons separate the cells.
        decimal: then what separates decimals, comma or point; None if the column tells it: 1,5 has a comma before
            decimals, and 1,234,567 and 1,234 beside 1.5 have thousands.
    """
    absent = {*MISSING, *(text.lower() for text in missing)}
    texts = [" ".join(cell.split()) for cell in cells]
    texts = ["" if text.lower() in absent else text for text in texts]
    plain, unclear = without_commas(texts, decimal) if decimal_comma else (texts, "")
    numbers = [float(text) if NUMBER.fullmatch(text) else math.nan for text in plain]
    return Column(name, texts, np.array(numbers, dtype=np.float64), unclear)


def without_commas(texts: Sequence[str], decimal: str | None) -> tuple[list[str], str]:
    """Return the texts of a column with the numbers as Python writes them, and one that is unclear, see `Column`."""
    grouped = [text for text in texts if THOUSANDS.fullmatch(text)]
    with_decimals = [text.replace(",", ".") for text in texts]
    if decimal == "comma" or (decimal is None and not grouped):
        return with_decimals, ""
    if decimal is None:
        others = [text for text in texts if "," in text and not THOUSANDS.fullmatch(text)]
        if any(NUMBER.fullmatch(text.replace(",", ".")) for text in others):
            return with_decimals, ""
        has_point = any("." in text and (NUMBER.fullmatch(text) or THOUSANDS.fullmatch(text)) for text in texts)
        if not has_point and all(text.count(",") == 1 for text in grouped):
            return with_decimals, grouped[0]
    return [text.replace(",", "") if THOUSANDS.fullmatch(text) else text for text in texts], ""


# ---- decide ----------------------------------------------------------------------------------------------------------
def form_of(column: Column, source: Any, is_category: bool = False) -> dict[str, Any]:
    """Return how a column becomes inputs, decided by the cells of the training part.

    Args:
        column: of the training part.
        source: the table, for messages.
        is_category: whether its numbers are codes, of which each is a value of its own.

    Raises:
        UserError: all cells are missing, most but not all are numbers, or a category has too many values.
    """
    there = ~column.is_missing
    where = f"{source}: the column {shown(column.name)}"
    if not there.any():
        raise UserError(f"{where} is empty in the training part: add it to --leave_out.")
    wrong = column.is_wrong
    if not is_category and not wrong.any():
        column.check_clear(where)
        return {"name": column.name} | scale_of(column.numbers, where)
    if not is_category and wrong.sum() < there.sum() / 2:
        text = column.texts[int(wrong.argmax())]
        raise UserError(
            f"{where} has {shown(text)} among its numbers. If this is a missing value, add it to data_args.missing; if "
            f"the numbers are codes, name the column by --categories."
        )
    values = in_order({text for text in column.texts if text})
    if len(values) > MOST_VALUES:
        raise UserError(
            f"{where} has {len(values):,} different texts, such as {shown(values[0])}, too many for a category. Add it "
            f"to --leave_out; or if rows of one value belong together, name it by --group."
        )
    for text in values:
        if not text.isprintable():
            raise UserError(f"{where} has the text {shown(text)}, which cannot be printed.")
    return {"name": column.name, "values": values}


def scale_of(numbers: np.ndarray, where: str) -> dict[str, float]:
    """Return mean and standard deviation of the numbers that are there; 1 where all are the same."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(np.nanmean(numbers)), float(np.nanstd(numbers))
    if not (abs(mean) < LARGEST and std < LARGEST):
        raise UserError(f"{where} has numbers that are too large. Check them, or add it to --leave_out.")
    return {"mean": mean, "std": std if std > 1e-12 * max(abs(mean), 1e-12) else 1.0}


def in_order(values: set[str]) -> list[str]:
    """Return texts in ascending order, numbers by their size.

    >>> in_order({"10", "9", "-1"}), in_order({"cat", "10", "9"})
    (['-1', '9', '10'], ['10', '9', 'cat'])
    """
    are_numbers = all(map(NUMBER.fullmatch, values))
    return sorted(values, key=(lambda text: (float(text), text)) if are_numbers else str)


def check_forms(forms: Any) -> None:
    """Raise UserError unless a value of --columns is one that training has decided; it may come from elsewhere."""
    inputs = forms.get("inputs") if isinstance(forms, Mapping) else None
    target = forms.get("target") if isinstance(forms, Mapping) else None
    is_known = isinstance(inputs, list) and inputs and all(map(is_form, inputs))
    if not is_known or not (target is None or (is_form(target) and "mean" in target)):
        raise UserError("--columns is no description of columns: leave it out, the training data decides it.")


def is_form(form: Any) -> bool:
    if not isinstance(form, Mapping) or not isinstance(form.get("name"), str):
        return False
    if "values" in form:
        return isinstance(form["values"], list) and all(isinstance(text, str) for text in form["values"])
    numbers = [form.get("mean"), form.get("std")]
    return all(type(number) in (int, float) and abs(number) < LARGEST for number in numbers) and form["std"] > 0


# ---- encode ----------------------------------------------------------------------------------------------------------
def encode(column: Column, form: Mapping[str, Any], rows: Sequence[str], source: Any) -> np.ndarray:
    """Return the inputs that a column makes, float32 (N, K). A missing cell makes zeros, and so does an unknown value.

    Args:
        column: the cells.
        form: see the top of this file.
        rows: the names of the rows, for messages.
        source: the table, for messages.

    Raises:
        UserError: a text is in a column of numbers.
    """
    if "values" in form:
        places = {value: place for place, value in enumerate(form["values"])}
        inputs = np.zeros((len(column.texts), len(places)), np.float32)
        for row, text in enumerate(column.texts):
            if text in places:
                inputs[row, places[text]] = 1
        return inputs
    if (wrong := column.is_wrong).any():
        place = int(wrong.argmax())
        raise UserError(
            f"{source}, {rows[place]}: {shown(column.texts[place])} in the column {shown(column.name)} is no number, "
            f"while the training part has numbers."
        )
    column.check_clear(f"{source}: the column {shown(column.name)}")
    scaled = (column.numbers - form["mean"]) / form["std"]
    return np.nan_to_num(scaled, nan=0.0).clip(-LARGEST, LARGEST).astype(np.float32)[:, None]


def num_unknown(column: Column, form: Mapping[str, Any]) -> int:
    """Return how many cells have a value of a category that the training part does not have."""
    known = {"", *form.get("values", column.texts)}
    return sum(text not in known for text in column.texts)
