"""The plan of a sweep: options and their values, read from texts NAME=VALUES into Optuna's distributions."""

import argparse
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.options.parser import number
from utils.errors import UserError, nearest, shown

RANGE_KINDS = ("int", "log")
MAX_TRIALS = 10_000


@dataclass
class Plan:
    """The options that a sweep tries with their values, and the metric by which it compares.

    Attributes:
        task: the name of the trainer.
        metric: the name of the monitored metric, without val/.
        mode: "max" or "min": which values of the metric are best.
        spaces: Optuna's distributions of the swept options, by name.
        grid: the settings of the trials, as texts by name; empty for a search.
        effective: returns settings without the options that have no effect beside the others.
    """

    task: str
    metric: str
    mode: str
    spaces: Mapping[str, Any]
    grid: Sequence[Mapping[str, str]] = ()
    effective: Callable[[dict[str, str]], Mapping[str, str]] = dict

    def as_texts(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Return values of a study as they stand on a command line; UserError if one is not in its space."""
        return {name: as_text(values[name], name, space) for name, space in self.spaces.items() if name in values}


def import_optuna() -> Any:
    """Return the package Optuna (https://optuna.org); UserError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("A sweep needs Optuna, which is not installed: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="The reported value is ignored")  # of an epoch before a kill
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


def is_whole(text: str) -> bool:
    """Say whether each bracket and quote of a text has its other half."""
    bare = re.sub(r'"(\\.|[^"\\])*"', "", text)
    return '"' not in bare and all(bare.count(left) == bare.count(right) for left, right in ("[]", "{}"))


def parse_choice(name: str, text: str, flag: str) -> Any:
    """Return the distribution over values between commas; a comma in brackets or quotes belongs to its value.

    >>> parse_choice("optim_args.betas", "[0.9,0.95],[0.9,0.999]", "--grid").choices
    ('[0.9,0.95]', '[0.9,0.999]')
    """
    values: list[str] = []
    for piece in text.split(","):
        if values and not is_whole(values[-1]):
            values[-1] += f",{piece}"
        else:
            values.append(piece)
    entry = f"{flag} {shown(f'{name}={text}')}"
    if not is_whole(values[-1]):
        raise UserError(f"{entry} has a bracket or quote without its other half.")
    if not all(value.strip() for value in values):
        raise UserError(f"{entry} has an empty value.")
    if len(set(values)) < len(values):
        raise UserError(f"{entry} has a value twice.")
    return import_optuna().distributions.CategoricalDistribution(values)


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
    """Read LOW..HIGH, with int: or log: or both before it, or a list of values to choose from."""
    match = re.fullmatch(r"((?:\w*:)*)([^/,:]*)\.\.([^/,:]*)", text)  # ../data is a path
    if not match:
        return parse_choice(name, text, "--search")
    entry = shown(f"{name}={text}")
    kinds = match[1].split(":")[:-1]
    for kind in kinds:
        if kind not in RANGE_KINDS:
            raise UserError(f"--search {entry}: {kind!r} is not one of int, log{nearest(kind, RANGE_KINDS)}.")
    convert = number(int if "int" in kinds else float)
    try:
        low = convert(match[2])
        high = convert(match[3])
        distributions = import_optuna().distributions
        distribution = distributions.IntDistribution if "int" in kinds else distributions.FloatDistribution
        return distribution(low, high, log="log" in kinds)
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise UserError(f"--search {entry}: {error}") from None


# ---- settings --------------------------------------------------------------------------------------------------------
def as_text(value: str | float, name: str, space: Any) -> str:
    """Return a value of a study as it stands on a command line; UserError if it is not in its space."""
    is_choice = hasattr(space, "choices")
    if not (value in space.choices if is_choice else space.low <= value <= space.high):
        raise UserError(f"The study has {name}={shown(value)}, which is not in {space}. Was its file changed?")
    return value if is_choice else repr(value)


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
    texts = {name: [as_text(value, name, spaces[name]) for value in values] for name, values in ends.items()}
    first = {name: values[0] for name, values in texts.items()}
    return [first | {name: value} for name, values in texts.items() for value in values]
