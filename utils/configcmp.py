"""Compare the options of two or more runs.

    python -m utils.configcmp Results/Vanilla/1663932921 Results/Vanilla/1663940000
"""

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.options.files import read_text, without_comments, without_duplicates
from engine.options.parser import OptionParser, printable
from utils.errors import UserError

DESCRIPTION = """Compare two or more config files, or run directories (the one config_*.json in each).

Two files: every key that differs, marked - (only in the first), + (only in the second) or ~ (changed).
More files: a table of the keys that differ, one column a file. A dot stands where a file lacks the key.
1 and 1.0 are the same value; 1, true and "1" are three different ones."""

EPILOG = """--json prints {"files": [A, B, ...], "different": {key: {file: value, ...}, ...}}; a file that lacks
the key is left out of that key's values, and NaN is written NaN as in the configs.

exit status: 0 all the same, 1 different, 2 a file cannot be read"""

MAX_FILE_SIZE = 2**24  # bytes
RED, GREEN, YELLOW, PLAIN = "\033[31m", "\033[32m", "\033[33m", "\033[0m"
MARK_COLOURS = {"-": RED, "+": GREEN, "~": YELLOW}


class Missing:
    """The value of a key that is not there. None would not do: JSON has null."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = Missing()


def same(a: Any, b: Any) -> bool:
    """Tell whether two JSON values are equal: 1 and 1.0 are, NaN and NaN are, 1 and true are not.

    >>> same(1, 1.0), same(1, True), same(float("nan"), float("nan"))
    (True, False, True)
    """
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    both_nan = a != a and b != b
    return both_nan or a == b


def compare(configs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the keys on which the configs differ, each with its value in every config.

    Args:
        configs: two or more mappings of option to value, as JSON gives them.

    Returns:
        {key: [value in the first, value in the second, ...]}, MISSING where a config lacks the key; the keys in the
        order in which they first appear. Empty when all configs are the same.

    >>> compare([{"lr": 0.1, "seed": 0}, {"lr": 0.2, "seed": 0, "viz": True}])
    {'lr': [0.1, 0.2], 'viz': [MISSING, True]}
    """
    different = {}
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [config.get(key, MISSING) for config in configs]
        if not all(same(values[0], value) for value in values[1:]):
            different[key] = values
    return different


def read_config(path: str) -> dict[str, Any]:
    """Read a config file, or the one `config_*.json` of a run directory.

    Raises:
        UserError: when there is no such file, more than one in the directory, or it is not one JSON object.
    """
    file = Path(path)
    if os.path.isdir(path):
        found = sorted(file.glob("config_*.json"))
        if len(found) != 1:
            names = ", ".join(one.name for one in found) or "none"
            raise UserError(f"{path}: a run directory holds one config_*.json, this one has {len(found)}: {names}")
        file = found[0]
    try:
        text = without_comments(read_text(file, MAX_FILE_SIZE))
        config = json.loads(text, object_pairs_hook=without_duplicates)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{file}: a config is one JSON object {{...}}, this is {type(config).__name__}")
    return config


def cell(value: Any) -> str:
    """Show a value as JSON, so that 1, true and "1" look different; a dot for one that is missing."""
    return "." if value is MISSING else printable(json.dumps(value, ensure_ascii=False))


@dataclass
class Row:
    """One line of the table: the mark, the key, and for each config its value as text and the colour of it."""

    mark: str
    key: str
    cells: list[str]
    colours: list[str]


def make_row(key: str, values: list[Any]) -> Row:
    """Mark and colour one difference: two configs have a mark, with more the values unlike the first are coloured."""
    cells = [cell(value) for value in values]
    if len(values) > 2:
        return Row("", printable(key), cells, [PLAIN if same(values[0], value) else YELLOW for value in values])
    mark = "+" if values[0] is MISSING else "-" if values[1] is MISSING else "~"
    return Row(mark, printable(key), cells, [MARK_COLOURS[mark]] * 2)


def paint(text: str, colour: str, is_coloured: bool) -> str:
    return f"{colour}{text}{PLAIN}" if is_coloured and colour != PLAIN else text


def as_table(names: list[str], rows: list[Row], is_coloured: bool) -> list[str]:
    """Lay the rows out in aligned columns under the names of the configs."""
    rows = [Row("", "", names, [PLAIN] * len(names)), *rows]
    mark_width = max(len(row.mark) for row in rows)
    widths = [max(map(len, column)) for column in zip(*([row.key, *row.cells] for row in rows), strict=True)]
    lines = []
    for row in rows:
        line = f"{row.mark:{mark_width + 1}}" if mark_width else ""
        line += row.key.ljust(widths[0])
        for text, colour, width in zip(row.cells, row.colours, widths[1:], strict=True):
            # Padded after painting: the colour codes take no room on the screen.
            line += "  " + paint(text, colour, is_coloured) + " " * (width - len(text))
        lines.append(line.rstrip())
    return lines


def as_list(names: list[str], rows: list[Row], is_coloured: bool) -> list[str]:
    """Lay the rows out one value a line, for a terminal that is too narrow for the table."""
    name_width = max(map(len, names))
    lines = []
    for row in rows:
        lines.append(f"{row.mark} {row.key}".lstrip())
        for name, text, colour in zip(names, row.cells, row.colours, strict=True):
            lines.append(f"    {name:{name_width}}  {paint(text, colour, is_coloured)}")
    return lines


def render(
    names: list[str], different: dict[str, list[Any]], width: int | None = None, is_coloured: bool = False
) -> str:
    """Show the differences as text.

    Args:
        names: what to call each config.
        different: what `compare` returned.
        width: columns of the terminal; None for no limit.
        is_coloured: whether to add terminal colours.
    """
    names = [printable(name) for name in names]
    rows = [make_row(key, values) for key, values in different.items()]
    needed = max(map(len, as_table(names, rows, is_coloured=False)))
    layout = as_table if width is None or needed <= width else as_list
    return "\n".join(layout(names, rows, is_coloured))


def report(names: list[str], configs: list[dict[str, Any]], different: dict[str, list[Any]], is_json: bool) -> str:
    """Return what the command prints."""
    if is_json:
        values_by_key = {
            key: {name: value for name, value in zip(names, values, strict=True) if value is not MISSING}
            for key, values in different.items()
        }
        return json.dumps({"files": names, "different": values_by_key}, indent=2)
    if not different:
        return f"All the same: {len(configs[0])} keys in each of {len(configs)} configs."
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else None
    is_coloured = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return render(names, different, width, is_coloured)


def main(arguments: list[str] | None = None) -> int:
    parser = OptionParser(
        prog="python -m utils.configcmp",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("configs", type=str, nargs="+", metavar="CONFIG", help="a config file or a run directory; two or more")
    add("--json", action="store_true", help="print the differences as JSON, for programs")
    opt = parser.parse_args(arguments)
    if len(opt.configs) < 2:
        parser.error("give two or more configs, there is only one")
    try:
        configs = [read_config(path) for path in opt.configs]
    except UserError as error:
        print(f"configcmp: error: {printable(str(error))}", file=sys.stderr)
        return 2
    different = compare(configs)
    try:
        print(report(opt.configs, configs, different, opt.json), flush=True)
    except BrokenPipeError:
        # The reader (`| head -1`) has gone. Python flushes once more at its exit, so give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if different else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter shows its code
    sys.exit(main())
