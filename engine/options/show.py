"""All options of a parser with where each value came from, as YAML that --config takes again."""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from engine.options.parser import NOT_SAVED, OptionParser, printable

PLAIN_TEXT = re.compile(r"[A-Za-z./][\w./+-]*")  # what YAML needs no quotes for, unless it is one of these words
WORDS = re.compile(r"(?i:true|false|null|yes|no|on|off|none)")
WIDEST = 40  # characters before a source, where it is not put on a line of its own


def as_text(parser: OptionParser, values: Mapping[str, Any], width: int | None = None) -> str:
    """Show options in their groups, one a line with a comment that says where it came from.

    Args:
        parser: resolved the options, and so knows where each came from.
        values: by the name of the option.
        width: columns that there are; None for those of the terminal, or no limit when the output is no terminal.
    """
    if width is None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    blocks = []
    for group in parser._action_groups:
        rows = [row for action in group._group_actions for row in rows_of(parser, action, values)]
        if rows:
            blocks.append("\n".join([f"# {group.title}", *lines_of(rows, width)]))
    return "\n\n".join(blocks)


def rows_of(parser: OptionParser, action: argparse.Action, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each line of an option, and where it came from."""
    name = action.dest
    value, source = values.get(name), printable(parser.sources.get(name, "default"))
    if name in ("help", "print_config") or (name in NOT_SAVED and value in (None, False, 0)):
        return
    if name in NOT_SAVED:  # it cannot stand in a file
        given = [f"{'='.join(entry)}" if isinstance(entry, tuple) else str(entry)
                 for entry in (value if isinstance(value, list) else [value])]  # fmt: skip
        yield f"# --{name} {printable(' '.join(given))}", source
    elif isinstance(value, dict) and value:
        yield f"{name}:", ""
        for key, entry in value.items():
            inside = [of for place, of in parser.sources.items() if f"{place}.".startswith(f"{name}.{key}.")]
            yield f"  {key}: {as_yaml(entry, is_argument=True)}", printable(inside[-1]) if inside else source
    else:
        yield f"{name}: {as_yaml(value)}", source


def as_yaml(value: Any, is_argument: bool = False) -> str:
    """A value on one line, as an option file reads it; an argument keeps its type, all else is text."""
    if isinstance(value, list) and not is_argument:
        return f"[{', '.join(map(as_yaml, value))}]"
    if value is None:
        return "null"
    if isinstance(value, str) and not is_argument and PLAIN_TEXT.fullmatch(value) and not WORDS.fullmatch(value):
        return value
    if isinstance(value, (str, list, dict)):
        return json.dumps(value)
    return json.dumps(value) if isinstance(value, bool) else str(value)


def lines_of(rows: list[tuple[str, str]], width: int | None) -> list[str]:
    """Put the sources in a column of their own, or, where there is no room for one, each on a line before its value."""
    column = min(max(len(text) for text, _ in rows), WIDEST)
    side_by_side = [f"{text:<{column}}  # {source}" if source else text for text, source in rows]
    if width is None or max(map(len, side_by_side)) <= width:
        return side_by_side
    lines, last = [], None
    for text, source in rows:
        indent = " " * (len(text) - len(text.lstrip(" ")))
        lines += [f"{indent}# {source}", text] if source and source != last else [text]
        last = source
    return lines
