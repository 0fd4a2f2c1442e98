"""Compare the options of two or more runs.

    python -m utils.configcmp Results/Vanilla/1663932921 Results/Vanilla/1663940000
"""

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

DESCRIPTION = """Compare two or more config files, JSON or YAML, or run directories (the one config_*.json in each).

Two files: every key that differs, marked - (only in the first), + (only in the second) or ~ (changed).
More files: a table of the keys that differ, one column a file. A dot stands where a file lacks the key.
1 and 1.0 are the same value; 1, true and "1" are three different ones."""

EPILOG = """--json prints {"files": [A, B, ...], "different": {key: {file: value, ...}, ...}}; a file that lacks
the key is left out of that key's values, and NaN is written NaN as in the configs.

exit status: 0 all the same, 1 different, 2 a file cannot be read"""

MAX_FILE_SIZE = 2**24  # bytes
COMMENT = re.compile(r'("(?:[^"\\]|\\.)*")|//[^\n]*|/\*.*?\*/', re.DOTALL)  # the group is a string, which is none
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+")  # 1e-3, which YAML 1.1 takes for text
MARK_COLOURS = {"-": "\033[31m", "+": "\033[32m"}  # red, green
YELLOW = "\033[33m"
PLAIN = "\033[0m"


class Missing:
    """The value of a missing key; None would not do, because JSON has null."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = Missing()


def same(a: Any, b: Any) -> bool:
    """Return whether two JSON values are equal: 1 and 1.0 are, NaN and NaN are, 1 and true are not.

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
        configs: two or more mappings of option to value.

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
        OSError: there is no such file.
        ValueError: there is not exactly one in the directory, or it is not one mapping.
    """
    file = Path(path)
    if file.is_dir():
        found = sorted(file.glob("config_*.json"))
        if len(found) != 1:
            names = ", ".join(one.name for one in found) or "none"
            raise ValueError(f"a run directory holds one config_*.json, this one has {len(found)}: {names}")
        file = found[0]
    if file.stat().st_size > MAX_FILE_SIZE or not file.is_file():
        raise ValueError(f"it is no regular file of at most {MAX_FILE_SIZE:,} bytes")
    is_yaml = file.suffix in (".yaml", ".yml")
    try:
        text = file.read_text(encoding="utf-8-sig")
        config = read_yaml(text) if is_yaml else read_json(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid {'YAML' if is_yaml else 'JSON'}: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"a config is one JSON object {{...}}, this is {type(config).__name__}")
    return config


def read_json(text: str) -> Any:
    """Parse JSON that may have comments."""

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if doubled := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{doubled[0]!r} is given twice")
        return dict(pairs)

    return json.loads(COMMENT.sub(lambda found: found[1] or " ", text), object_pairs_hook=without_duplicates)


def read_yaml(text: str) -> Any:
    """Parse YAML; 1e-3 is a number."""
    import yaml

    def with_numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(name): with_numbers(entry) for name, entry in value.items()}
        if isinstance(value, list):
            return [with_numbers(entry) for entry in value]
        return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value

    try:
        return with_numbers(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


# ---- output ----------------------------------------------------------------------------------------------------------
def printable(text: str) -> str:
    r"""Escape control characters, which a terminal would obey.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def cell(value: Any) -> str:
    """Format a value as JSON, so that 1, true and "1" look different; a missing one as a dot."""
    return "." if value is MISSING else printable(json.dumps(value, ensure_ascii=False, default=str))


def mark_of(values: list[Any]) -> str:
    """Return the mark of a difference between two configs; none with more."""
    if len(values) > 2:
        return ""
    return "+" if values[0] is MISSING else "-" if values[1] is MISSING else "~"


def paint(text: str, mark: str) -> str:
    """Colour a text like its mark; yellow without one."""
    return f"{MARK_COLOURS.get(mark, YELLOW)}{text}{PLAIN}"


def render(
    names: list[str], different: dict[str, list[Any]], width: int | None = None, is_coloured: bool = False
) -> str:
    """Format the differences.

    Args:
        names: of the configs.
        different: the result of `compare`.
        width: columns of the terminal; None for no limit. Where the table is wider, each value has a line of its own.
        is_coloured: whether to add terminal colours.
    """
    names = [printable(name) for name in names]
    rows = [(mark_of(values), printable(key), values) for key, values in different.items()]
    mark_width = 2 if len(names) == 2 else 0
    key_width = max(len(key) for _, key, _ in rows)
    columns = [[name, *(cell(values[place]) for _, _, values in rows)] for place, name in enumerate(names)]
    widths = [max(map(len, column)) for column in columns]
    is_table = width is None or mark_width + key_width + sum(size + 2 for size in widths) <= width

    def show(value: Any, mark: str, first: Any, size: int = 0) -> str:
        text = cell(value)
        is_marked = is_coloured and (bool(mark) or not same(first, value))
        # Padded after painting: colour codes take no room on the screen.
        return (paint(text, mark) if is_marked else text) + " " * (size - len(text))

    lines = []
    if is_table:
        titles = "".join(f"  {name:{size}}" for name, size in zip(names, widths, strict=True))
        lines.append(" " * (mark_width + key_width) + titles)
    for mark, key, values in rows:
        if is_table:
            cells = [show(value, mark, values[0], size) for value, size in zip(values, widths, strict=True)]
            lines.append("  ".join([f"{mark:{mark_width}}{key:{key_width}}", *cells]))
            continue
        lines.append(f"{mark} {key}".lstrip())
        for name, value in zip(names, values, strict=True):
            lines.append(f"    {name:{max(map(len, names))}}  {show(value, mark, values[0])}")
    return "\n".join(line.rstrip() for line in lines)


def report(names: list[str], configs: list[dict[str, Any]], different: dict[str, list[Any]], is_json: bool) -> str:
    """Return the output of the command."""
    if is_json:
        values_by_key = {
            key: {name: value for name, value in zip(names, values, strict=True) if value is not MISSING}
            for key, values in different.items()
        }
        return json.dumps({"files": names, "different": values_by_key}, indent=2, default=str)
    if not different:
        return f"All the same: {len(configs[0])} keys in each of {len(configs)} configs."
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else None
    is_coloured = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return render(names, different, width, is_coloured)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m utils.configcmp",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="a config file or a run directory; two or more")
    parser.add_argument("--json", action="store_true", help="print the differences as JSON, for programs")
    opt = parser.parse_args(arguments)
    if len(opt.configs) < 2:
        parser.error("give two or more configs, there is only one")
    configs = []
    for path in opt.configs:
        try:
            configs.append(read_config(path))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            print(f"configcmp: error: {printable(f'{path}: {reason}')}", file=sys.stderr)
            return 2
    different = compare(configs)
    try:
        print(report(opt.configs, configs, different, opt.json), flush=True)
    except BrokenPipeError:  # the reader has gone (`| head -1`), and Python would flush once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if different else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal that cannot show a letter
    sys.exit(main())
