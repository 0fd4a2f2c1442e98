"""Files of options: JSON that may have comments, or YAML. One may build on others, which it names as its ``base``.

    {"base": "../carvana.yaml", "lr": 5e-4}   // relative to this file; a list of several, too, and later ones win
"""

import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError, shown

MAX_FILE_SIZE = 2**16  # bytes of an option file; one with every option has three thousand
MAX_FILES = 100  # that one may build on
MAX_DEPTH = 8  # of a value: a list in a mapping in a mapping ...
YAML_TAGS = ("map", "seq", "str", "int", "float", "bool", "timestamp", "merge", "value")  # what text may look like
TOKENS = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"?|//[^\n]*|/\*.*?\*/|/\*|[{}\[\]]', re.DOTALL)
COLON = re.compile(r"\s*:")
WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


@dataclass(frozen=True)
class OptionFile:
    """What one file says.

    Attributes:
        path: the file.
        values: by the name of the option.
        lines: the line that each name stands in, from 1.
    """

    path: str
    values: dict[str, Any]
    lines: dict[str, int]


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a mapping; a name that is given twice is an error, where JSON and YAML would silently take the last."""
    built: dict[str, Any] = {}
    for name, value in pairs:
        if name in built:
            raise ValueError(f"{shown(name)} is given twice")
        built[name] = value
    return built


def read_text(path: str | Path, max_size: int = MAX_FILE_SIZE) -> str:
    """Read a text file in UTF-8 of at most `max_size` bytes.

    Raises:
        OSError: when it is missing or cannot be read.
        ValueError: when it is no regular file (a device may have no end), too large, or not UTF-8.
    """
    if not Path(path).is_dir() and not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")
    with open(path, "rb") as file:
        data = file.read(max_size + 1)
    if len(data) > max_size:
        raise ValueError(f"it has more than {max_size:,} bytes")
    return data.decode("utf-8-sig")


# ---- JSON ------------------------------------------------------------------------------------------------------------
def without_comments(text: str) -> str:
    """Put spaces in the place of ``// ...`` and ``/* ... */``, but not inside of strings; lines stay where they are.

    >>> without_comments('{"a": "// no"}  // yes')
    '{"a": "// no"}        '
    """

    def blank(token: re.Match) -> str:
        if token[0] == "/*":
            line = text.count("\n", 0, token.start()) + 1
            raise ValueError(f"the comment of line {line} is never closed")
        return re.sub(r"[^\n]", " ", token[0]) if token[0][0] == "/" else token[0]

    return TOKENS.sub(blank, text)


def read_json(text: str) -> tuple[Any, dict[str, int]]:
    """Read JSON with comments; return it, and the line of each name of the outermost object."""
    text = without_comments(text)
    values = json.loads(text, object_pairs_hook=without_duplicates)
    lines, depth, line, counted = {}, 0, 1, 0
    for token in TOKENS.finditer(text):
        line, counted = line + text.count("\n", counted, token.start()), token.start()
        if token[0] in "{[":
            depth += 1
        elif token[0] in "}]":
            depth -= 1
        elif depth == 1 and COLON.match(text, token.end()):
            lines[json.loads(token[0])] = line
    return values, lines


# ---- YAML ------------------------------------------------------------------------------------------------------------
def typed(text: str) -> Any:
    """What a text stands for as an argument of a class: a JSON value, True, False or None; else it is the text.

    >>> typed("64"), typed("1e-3"), typed("[0.9, 0.95]"), typed("True"), typed("bilinear"), typed('"64"')
    (64, 0.001, [0.9, 0.95], True, 'bilinear', '64')

    Raises:
        ValueError: for what begins as JSON and is none.
    """
    if text in WORDS:
        return WORDS[text]
    try:
        return json.loads(text, object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as error:
        if text[:1] in ("[", "{", '"'):
            raise ValueError(f"{shown(text)} is not JSON ({error.msg})") from None
        return text


def read_yaml(text: str) -> tuple[Any, dict[str, int]]:
    """Read YAML, leaving everything but null the text that it is, as on the command line; return it as `read_json`.

    YAML itself would make the text "1e-3" of 1e-3, but 8 of 010, and False of no. Inside of a mapping, where no option
    says what it takes, what is not quoted is `typed`. Aliases are refused, since a few lines of them stand for
    gigabytes, and so are tags, which ask for more than text.
    """
    import yaml

    def plain(node: yaml.Node | None, of_mapping: bool) -> Any:
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return None
        if node.tag.removeprefix("tag:yaml.org,2002:") not in YAML_TAGS:
            raise ValueError(f"the tag {shown(node.tag)} has no meaning here")
        if isinstance(node, yaml.MappingNode):
            return without_duplicates([(plain(name, False), plain(value, True)) for name, value in node.value])
        if isinstance(node, yaml.SequenceNode):
            return [plain(entry, of_mapping) for entry in node.value]
        return typed(node.value) if of_mapping and node.style is None else node.value

    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:  # brackets in brackets take the longer the deeper they are
                raise ValueError("it is nested too deeply")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("aliases (*name) are not allowed")
        top = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    if not isinstance(top, yaml.MappingNode) or top.tag != "tag:yaml.org,2002:map":
        return plain(top, False), {}
    pairs = [(plain(name, False), value) for name, value in top.value]
    lines = {name: node.start_mark.line + 1 for (name, _), (node, _) in zip(pairs, top.value, strict=True)}
    values = [(name, plain(value, of_mapping="." in str(name))) for name, value in pairs]
    return without_duplicates(values), lines


# ---- files -----------------------------------------------------------------------------------------------------------
def check_depth(value: Any, most: int = MAX_DEPTH) -> None:
    """Raise ValueError for a value that is nested too deeply."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if entries and not most:
        raise ValueError("it is nested too deeply")
    for entry in entries:
        check_depth(entry, most - 1)


def read_file(path: str | Path) -> OptionFile:
    """Read one JSON or YAML file; UserError when it is missing, unreadable or no mapping of names to values."""
    try:
        text = read_text(path)
        values, lines = read_yaml(text) if str(path).lower().endswith((".yaml", ".yml")) else read_json(text)
        check_depth(values)
    except OSError as error:
        raise UserError(f"Cannot read the option file {path}: {error.strerror}.") from None
    except RecursionError:
        raise UserError(f"Cannot read the option file {path}: it is nested too deeply.") from None
    except (ValueError, TypeError) as error:  # TypeError: a list as a name
        raise UserError(f"Cannot read the option file {path}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"The option file {path} is not a mapping of option names to values.")
    return OptionFile(str(path), values, lines)


def read_options(path: str | Path) -> dict[str, Any]:
    """The values of one file, without those that it builds on."""
    return read_file(path).values


def read_with_bases(
    path: str | Path, found: list[OptionFile] | None = None, above: Sequence[str] = ()
) -> list[OptionFile]:
    """Read a file and those that it builds on; of what several say, the last counts.

    Args:
        path: the file.
        found: those before it; it is added to them.
        above: the files that build on it.

    Raises:
        UserError: when one is missing or unreadable, or builds on itself.
    """
    found, chain = [] if found is None else found, [*above, str(path)]
    if os.path.realpath(path) in map(os.path.realpath, above):
        raise UserError(f"The option file {above[0]} builds on itself: {' -> '.join(chain)}.")
    if len(found) + len(chain) > MAX_FILES:
        raise UserError(f"The option file {chain[0]} builds on more than {MAX_FILES} files.")
    try:
        file = read_file(path)
    except UserError as error:
        raise UserError(f"{error} It is a base of {above[-1]}." if above else str(error)) from None
    bases = file.values.pop("base", [])
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) and base.strip() and base.isprintable() for base in bases):
        raise UserError(f"The option file {path}: base is the name of a file or a list of names, not {shown(bases)}.")
    for base in bases:
        read_with_bases(Path(path).parent / base, found, chain)
    found.append(file)
    return found
