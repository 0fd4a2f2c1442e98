"""What a sweep tries: a grid of values, or ranges to search in, each written as NAME=VALUES."""

import argparse
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.options.parser import number
from utils.errors import UserError, nearest, shown

KINDS = ("int", "log")
MAX_TRIALS = 10_000


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; with `is_log`, each order of magnitude is as likely."""

    low: float
    high: float
    is_int: bool = False
    is_log: bool = False

    def ends(self) -> list[str]:
        """The lowest and the highest number, as text."""
        return [repr(self.low), repr(self.high)]


@dataclass(frozen=True)
class Choice:
    """One of some texts."""

    values: tuple[str, ...]

    def ends(self) -> list[str]:
        """All of them: each may be wrong."""
        return [*self.values]


def by_name(entries: Sequence[str], flag: str) -> dict[str, str]:
    """Split entries NAME=REST, where the name may have dots, as that of an argument of a class: optim_args.eps.

    Args:
        entries: the texts.
        flag: where they come from, for the message.

    Raises:
        UserError: for one that has not this form, and for a name that comes twice.

    >>> by_name(["lr=1e-3,3e-4", "optim=sgd"], "--grid")
    {'lr': '1e-3,3e-4', 'optim': 'sgd'}
    """
    found: dict[str, str] = {}
    for entry in entries:
        match = re.fullmatch(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)=(.*)", entry, re.DOTALL)
        if not match:
            raise UserError(f"{flag} {shown(entry)} is not NAME=VALUES with the name of an option, such as lr=1e-3.")
        if match[1] in found:
            raise UserError(f"{flag} names {match[1]} twice.")
        found[match[1]] = match[2]
    return found


def depths(text: str) -> Iterator[int]:
    """Yield for each letter how many brackets are open behind it, with 1 more inside of double quotes."""
    depth, is_quoted, before = 0, False, ""
    for letter in text:
        if letter == '"' and before != "\\":
            is_quoted = not is_quoted
        elif not is_quoted:
            depth += (letter in "[{") - (letter in "]}")
        before = letter
        yield depth + is_quoted


def is_open(text: str) -> bool:
    """Whether brackets or quotes have no other half."""
    found = [0, *depths(text)]
    return found[-1] != 0 or min(found) < 0


def split_values(text: str) -> list[str]:
    """Cut at the commas that stand in no brackets or quotes.

    >>> split_values("1e-3,3e-4"), split_values("[0.9,0.95],[0.9,0.999]")
    (['1e-3', '3e-4'], ['[0.9,0.95]', '[0.9,0.999]'])
    """
    values = [""]
    for letter, depth in zip(text, depths(text), strict=True):
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return values


def values_of(name: str, text: str, flag: str) -> list[str]:
    """The values of a comma-separated list; UserError when one is empty or comes twice, or a bracket stays open."""
    values = split_values(text)
    if is_open(text):
        raise UserError(f"{flag} {shown(f'{name}={text}')} has a bracket or quote without its other half.")
    if "" in map(str.strip, values):
        raise UserError(f"{flag} {shown(f'{name}={text}')} has an empty value.")
    if twice := [value for value in values if values.count(value) > 1]:
        raise UserError(f"{flag} {shown(f'{name}={text}')} has {twice[0]} twice.")
    return values


def parse_grid(entries: Sequence[str]) -> dict[str, list[str]]:
    """Read the entries of --grid, NAME=VALUE,VALUE,...; UserError when one cannot be read."""
    return {name: values_of(name, text, "--grid") for name, text in by_name(entries, "--grid").items()}


def combinations(grid: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of a grid's values; the last name changes fastest. UserError when there are too many.

    >>> combinations({"lr": ["1", "2"], "optim": ["sgd"]})
    [{'lr': '1', 'optim': 'sgd'}, {'lr': '2', 'optim': 'sgd'}]
    """
    if (count := math.prod(map(len, grid.values()))) > MAX_TRIALS:
        raise UserError(f"--grid has {count:,} combinations; {MAX_TRIALS:,} are allowed. --search tries some of many.")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def parse_search(entries: Sequence[str]) -> dict[str, Range | Choice]:
    """Read the entries of --search; UserError when one cannot be read.

    >>> parse_search(["lr=log:1e-5..1e-1", "batch_size=int:16..128"])["batch_size"]
    Range(low=16, high=128, is_int=True, is_log=False)
    """
    return {name: parse_space(name, text) for name, text in by_name(entries, "--search").items()}


def parse_space(name: str, text: str) -> Range | Choice:
    """Read LOW..HIGH, with int: or log: or both before it, or a list of texts to choose from."""
    entry = shown(f"{name}={text}")
    *kinds, body = text.split(":")
    named = [kind for kind in kinds if re.fullmatch(r"[A-Za-z_]*", kind)]
    for kind in named:
        if kind not in KINDS:
            raise UserError(f"--search {entry}: {kind!r} is none of {', '.join(KINDS)}{nearest(kind, KINDS)}.")
    is_range = ".." in body and not {"/", ","} & set(body)  # ../data is a path
    if not is_range:
        if named:
            raise UserError(f"--search {entry} is no range: after {named[-1]}: comes LOW..HIGH.")
        return Choice(tuple(values_of(name, text, "--search")))
    if len(named) < len(kinds) or len(set(kinds)) < len(kinds):
        raise UserError(f"--search {entry} is no range: before LOW..HIGH come int: and log: at most.")
    try:
        low, high = map(number(int if "int" in kinds else float), body.split("..", 1))
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--search {entry}: {error}.") from None
    if low >= high:
        raise UserError(f"--search {entry}: {low} is not below {high}.")
    if "log" in kinds and low <= 0:
        raise UserError(f"--search {entry}: a logarithmic range begins above 0, not at {low}.")
    return Range(low, high, "int" in kinds, "log" in kinds)
