"""Show all options of a parser, each with its source, as YAML that --config takes."""

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from engine.options.parser import NOT_SAVED, OptionParser, printable

PLAIN_TEXT = re.compile(r"[A-Za-z./][\w./+-]*")  # needs no quotes in YAML, unless it is one of these words
WORDS = re.compile(r"(?i:true|false|null|yes|no|on|off|none)")
WIDEST = 40  # characters before the column of the sources


def as_text(parser: OptionParser, values: Mapping[str, Any]) -> str:
    """Return options in their groups, one a line, with its source as a comment.

    Args:
        parser: resolved the options, and so knows the source of each.
        values: by the name of the option.
    """
    blocks = []
    for group in parser._action_groups:
        rows = [row for action in group._group_actions for row in rows_of(parser, action, values)]
        column = min(max((len(text) for text, _ in rows), default=0), WIDEST)
        lines = [f"{text:<{column}}  # {source}" if source else text for text, source in rows]
        if lines:
            blocks.append("\n".join([f"# {group.title}", *lines]))
    return "\n\n".join(blocks)


def rows_of(parser: OptionParser, action: argparse.Action, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each line of an option, and its source."""
    name = action.dest
    value, source = values.get(name), printable(parser.sources.get(name, "default"))
    if name in ("help", "print_config") or (name in NOT_SAVED and value in (None, False, 0)):
        return
    if name in NOT_SAVED:  # it cannot stand in a file
        entries = value if isinstance(value, list) else [value]
        texts = ["=".join(entry) if isinstance(entry, tuple) else str(entry) for entry in entries]
        yield f"# --{name} {printable(' '.join(texts))}", source
    elif isinstance(value, dict) and value:
        yield f"{name}:", ""
        for key, entry in value.items():
            inside = [of for place, of in parser.sources.items() if f"{place}.".startswith(f"{name}.{key}.")]
            yield f"  {key}: {as_yaml(entry, is_argument=True)}", printable(inside[-1]) if inside else source
    else:
        yield f"{name}: {as_yaml(value)}", source


def as_yaml(value: Any, is_argument: bool = False) -> str:
    """Return a value on one line, as an option file reads it; an argument keeps its type, all else is text."""
    if isinstance(value, list) and not is_argument:
        return f"[{', '.join(map(as_yaml, value))}]"
    if value is None:
        return "null"
    if isinstance(value, str) and not is_argument and PLAIN_TEXT.fullmatch(value) and not WORDS.fullmatch(value):
        return value
    if isinstance(value, (str, list, dict)):
        return json.dumps(value)
    return json.dumps(value) if isinstance(value, bool) else str(value)
