"""Files of options: JSON that may have comments, or YAML. One may build on others, which it names as its ``base``.

    {"base": "../carvana.yaml", "lr": 5e-4}   // relative to this file; a list of several, too, and later ones win
"""

import json
import math
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError, shown

MAX_FILE_SIZE = 2**16  # bytes of an option file; one with every option has three thousand
MAX_FILES = 100  # that one may build on
MAX_DEPTH = 8  # of a value: a list in a mapping in a mapping ...
YAML_TAGS = ("map", "seq", "str", "int", "float", "bool", "timestamp", "merge", "value")  # that plain text may have
STRINGS_AND_COMMENTS = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"?|//[^\n]*|/\*.*?\*/|/\*', re.DOTALL)
WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


def read_with_bases(path: str | Path, above: Sequence[str] = ()) -> list[tuple[str, dict[str, Any]]]:
    """Return the values of a file behind those of the files that it builds on, each with its path; later ones win.

    Args:
        path: the file.
        above: the files that build on it, for messages.

    Raises:
        UserError: when a file is missing or unreadable, or builds on itself.
    """
    chain = [*above, str(path)]
    if os.path.realpath(path) in map(os.path.realpath, above):
        raise UserError(f"The option file {above[0]} builds on itself: {' -> '.join(chain)}.")
    try:
        values = read_options(path)
    except UserError as error:
        raise UserError(f"{error} It is a base of {above[-1]}." if above else str(error)) from None
    bases = values.pop("base", [])
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) and base.strip() and base.isprintable() for base in bases):
        raise UserError(f"The option file {path}: base is the name of a file or a list of names, not {shown(bases)}.")
    files = []
    for base in bases:
        files += read_with_bases(Path(path).parent / base, chain)
        if len(files) > MAX_FILES:
            raise UserError(f"The option file {chain[0]} builds on more than {MAX_FILES} files.")
    return [*files, (str(path), values)]


def read_options(path: str | Path) -> dict[str, Any]:
    """Return the values of one JSON or YAML file, by the name of the option.

    Raises:
        UserError: when it is missing, unreadable, or no mapping of names to values.
    """
    try:
        text = read_text(path)
        is_yaml = str(path).lower().endswith((".yaml", ".yml"))
        values = read_yaml(text) if is_yaml else read_json(without_comments(text))
        for value in values.values() if isinstance(values, dict) else ():
            if isinstance(value, (dict, list)):
                check_arguments(value, MAX_DEPTH - 1)
    except OSError as error:
        raise UserError(f"Cannot read the option file {path}: {error.strerror}.") from None
    except (ValueError, TypeError) as error:  # TypeError: a list as a name
        raise UserError(f"Cannot read the option file {path}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"The option file {path} is not a mapping of option names to values.")
    return values


def read_text(path: str | Path) -> str:
    """Return the text of a file in UTF-8.

    Raises:
        OSError: when it is missing or cannot be read.
        ValueError: when it is no regular file (a device may have no end), too large, or not UTF-8.
    """
    if not Path(path).is_dir() and not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")
    with open(path, "rb") as file:
        data = file.read(MAX_FILE_SIZE + 1)
    if len(data) > MAX_FILE_SIZE:
        raise ValueError(f"it has more than {MAX_FILE_SIZE:,} bytes")
    return data.decode("utf-8-sig")


# ---- JSON ------------------------------------------------------------------------------------------------------------
def read_json(text: str) -> Any:
    """Return the value of JSON without comments.

    Raises:
        ValueError: a name is given twice, or it is nested too deeply; JSONDecodeError when it is no JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=without_duplicates)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


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

    return STRINGS_AND_COMMENTS.sub(blank, text)


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a mapping; a name that is given twice is an error, where JSON and YAML would silently take the last."""
    built: dict[str, Any] = {}
    for name, value in pairs:
        if name in built:
            raise ValueError(f"{shown(name)} is given twice")
        built[name] = value
    return built


# ---- YAML ------------------------------------------------------------------------------------------------------------
def read_yaml(text: str) -> Any:
    """Return the value of YAML, leaving everything but null as text, as on the command line.

    YAML itself would read the text "1e-3" in 1e-3, but 8 in 010, and False in no. Inside of a mapping, where no option
    says what it takes, unquoted values are `typed`. Aliases are refused, since a few lines of them stand for gigabytes,
    and so are tags, which ask for more than text.
    """
    import yaml

    def plain(node: yaml.Node | None, place: str = "") -> Any:  # place: the names that lead to it, with dots
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return None
        if node.tag.removeprefix("tag:yaml.org,2002:") not in YAML_TAGS:
            raise ValueError(f"the tag {shown(node.tag)} has no meaning here")
        if isinstance(node, yaml.MappingNode):
            pairs = [(plain(name), value) for name, value in node.value]
            return without_duplicates([(name, plain(value, f"{place}.{name}".lstrip("."))) for name, value in pairs])
        if isinstance(node, yaml.SequenceNode):
            return [plain(entry, place) for entry in node.value]
        return typed(node.value) if "." in place and node.style is None else node.value

    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:  # brackets in brackets take the longer the deeper they are
                raise ValueError("it is nested too deeply")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("aliases (*name) are not allowed")
        return plain(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


# ---- values ----------------------------------------------------------------------------------------------------------
def typed(text: str) -> Any:
    """Return the value of a text as an argument of a class: of JSON, True, False or None; else the text itself.

    >>> typed("64"), typed("1e-3"), typed("[0.9, 0.95]"), typed("True"), typed("bilinear"), typed('"64"')
    (64, 0.001, [0.9, 0.95], True, 'bilinear', '64')

    Raises:
        ValueError: for a text that begins as JSON and is none.
    """
    if text in WORDS:
        return WORDS[text]
    try:
        return read_json(text)
    except json.JSONDecodeError as error:
        if text[:1] in ("[", "{", '"'):
            raise ValueError(f"{shown(text)} is not JSON ({error.msg})") from None
        return text


def check_arguments(value: Any, most: int = MAX_DEPTH) -> Any:
    """Return a value of arguments; ValueError for what none can be: a name, a number, a text, or so deep a nesting."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if entries and not most:
        raise ValueError("it is nested too deeply")
    for name in value if isinstance(value, dict) else ():
        if not name.isidentifier():
            raise ValueError(f"{shown(name)} is not the name of an argument")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{shown(value)} cannot be printed")
    for entry in entries:
        check_arguments(entry, most - 1)
    return value


def argument(text: str) -> Any:
    """Return the value of the text of a --set; ValueError when it is no argument."""
    return check_arguments(typed(text))
