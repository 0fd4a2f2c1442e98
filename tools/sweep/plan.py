"""The plan of a sweep: options and their values, read from texts NAME=VALUES into Optuna's distributions."""

import argparse
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.options.parser import number
from utils.errors import UserError, nearest, shown

RANGE_KINDS = ("int", "log")
MAX_TRIALS = 10_000


def import_optuna() -> Any:
    """Return the package Optuna (https://optuna.org); UserError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("A sweep needs Optuna, which is not installed: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def by_name(entries: Sequence[str], flag: str) -> dict[str, str]:
    """Split entries NAME=REST. A name may have dots, as that of an argument of a class: optim_args.eps.

    Args:
        entries: the texts.
        flag: the option that they were given to, for the message.

    Raises:
        UserError: for an entry of another form, and for a name that comes twice.

    >>> by_name(["lr=1e-3,3e-4", "optim=sgd"], "--grid")
    {'lr': '1e-3,3e-4', 'optim': 'sgd'}
    """
    texts: dict[str, str] = {}
    for entry in entries:
        match = re.fullmatch(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)=(.*)", entry, re.DOTALL)
        if not match:
            raise UserError(f"{flag} {shown(entry)} is not NAME=VALUES with the name of an option, such as lr=1e-3.")
        name, text = match.groups()
        if name in texts:
            raise UserError(f"{flag} names {name} twice.")
        texts[name] = text
    return texts


def split_values(text: str) -> list[str]:
    """Split at the commas outside of brackets and quotes.

    Raises:
        ValueError: for a bracket or quote without its other half, an empty value, and a value that comes twice.

    >>> split_values("[0.9,0.95],[0.9,0.999]")
    ['[0.9,0.95]', '[0.9,0.999]']
    """
    values = [""]
    depth = 0
    is_quoted = False
    previous = ""
    for letter in text:
        if letter == '"' and previous != "\\":
            is_quoted = not is_quoted
        elif not is_quoted:
            depth += (letter in "[{") - (letter in "]}")
        if depth < 0:
            break
        if letter == "," and depth == 0 and not is_quoted:
            values.append("")
        else:
            values[-1] += letter
        previous = letter
    if depth or is_quoted:
        raise ValueError("has a bracket or quote without its other half")
    for value in values:
        if not value.strip():
            raise ValueError("has an empty value")
        if values.count(value) > 1:
            raise ValueError(f"has {value} twice")
    return values


def parse_choice(name: str, text: str, flag: str) -> Any:
    """Return the distribution over a list of texts; UserError when it cannot be read."""
    try:
        return import_optuna().distributions.CategoricalDistribution(split_values(text))
    except ValueError as error:
        raise UserError(f"{flag} {shown(f'{name}={text}')} {error}.") from None


def parse_grid(entries: Sequence[str]) -> dict[str, Any]:
    """Read the entries of --grid, NAME=VALUE,VALUE,...; UserError when one cannot be read."""
    return {name: parse_choice(name, text, "--grid") for name, text in by_name(entries, "--grid").items()}


def parse_search(entries: Sequence[str]) -> dict[str, Any]:
    """Read the entries of --search, NAME=SPACE; UserError when one cannot be read.

    >>> parse_search(["lr=log:1e-5..1e-1", "batch_size=int:16..128"])["batch_size"]
    IntDistribution(high=128, log=False, low=16, step=1)
    """
    return {name: parse_space(name, text) for name, text in by_name(entries, "--search").items()}


def parse_space(name: str, text: str) -> Any:
    """Read LOW..HIGH, with int: or log: or both before it, or a list of texts to choose from."""
    entry = shown(f"{name}={text}")
    *kinds, body = text.split(":")
    words = [kind for kind in kinds if re.fullmatch(r"[A-Za-z_]*", kind)]
    for word in words:
        if word not in RANGE_KINDS:
            raise UserError(f"--search {entry}: {word!r} is not one of int, log{nearest(word, RANGE_KINDS)}.")
    is_range = ".." in body and not {"/", ","} & set(body)  # ../data is a path
    if not is_range:
        if words:
            raise UserError(f"--search {entry} is not a range: after {words[-1]}: comes LOW..HIGH.")
        return parse_choice(name, text, "--search")
    if len(words) < len(kinds) or len(set(kinds)) < len(kinds):
        raise UserError(f"--search {entry} is not a range: before LOW..HIGH, write int:, log: or both.")
    convert = number(int if "int" in kinds else float)
    try:
        low, high = [convert(end) for end in body.split("..", 1)]
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--search {entry}: {error}.") from None
    if low >= high:
        raise UserError(f"--search {entry}: {low} is not below {high}.")
    if "log" in kinds and low <= 0:
        raise UserError(f"--search {entry}: a logarithmic range begins above 0, not at {low}.")
    distributions = import_optuna().distributions
    distribution = distributions.IntDistribution if "int" in kinds else distributions.FloatDistribution
    return distribution(low, high, log="log" in kinds)


# ---- settings --------------------------------------------------------------------------------------------------------
def as_text(value: str | float) -> str:
    """Return a value that Optuna has drawn, as it stands on a command line."""
    return value if isinstance(value, str) else repr(value)


def grid_settings(grid: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return every combination of a grid's values; UserError when there are too many.

    >>> grid_settings(parse_grid(["lr=1,2", "optim=sgd"]))
    [{'lr': '1', 'optim': 'sgd'}, {'lr': '2', 'optim': 'sgd'}]
    """
    choices = [space.choices for space in grid.values()]
    count = math.prod(map(len, choices))
    if count > MAX_TRIALS:
        raise UserError(f"--grid has {count:,} combinations; {MAX_TRIALS:,} are allowed. --search tries some of many.")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*choices)]


def extreme_settings(spaces: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return settings that have each end of each range, and each value of a list, at least once."""
    ends = {name: getattr(space, "choices", None) or (space.low, space.high) for name, space in spaces.items()}
    texts = {name: [as_text(value) for value in values] for name, values in ends.items()}
    first = {name: values[0] for name, values in texts.items()}
    return [first | {name: value} for name, values in texts.items() for value in values]
