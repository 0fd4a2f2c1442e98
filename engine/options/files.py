"""Files of options: JSON that may have comments, or YAML. One may build on others, which it names as its ``base``.

    {"base": "../carvana.yaml", "lr": 5e-4}   // relative to this file; a list of several, too, and later ones win
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError, shown

MAX_FILE_SIZE = 2**16  # bytes of an option file; one with every option has three thousand
MAX_FILES = 100  # that one may build on
MAX_DEPTH = 8  # of a value: a list in a mapping in a mapping ...
YAML_TAGS = ("map", "seq", "str", "int", "float", "bool", "timestamp", "merge", "value")  # that plain text may have
TOKENS = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"?|//[^\n]*|/\*.*?\*/|/\*|[{}\[\]]', re.DOTALL)
COLON = re.compile(r"\s*:")
WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


@dataclass(frozen=True)
class OptionFile:
    """The content of one file.

    Attributes:
        path: the file.
        values: by the name of the option.
        lines: the line of each name, from 1.
    """

    path: str
    values: dict[str, Any]
    lines: dict[str, int]


def read_with_bases(
    path: str | Path, read_before: list[OptionFile] | None = None, above: Sequence[str] = ()
) -> list[OptionFile]:
    """Read a file and those that it builds on; later ones win.

    Args:
        path: the file.
        read_before: the files before it; it is added to them.
        above: the files that build on it.

    Raises:
        UserError: when a file is missing or unreadable, or builds on itself.
    """
    files = [] if read_before is None else read_before
    chain = [*above, str(path)]
    if os.path.realpath(path) in map(os.path.realpath, above):
        raise UserError(f"The option file {above[0]} builds on itself: {' -> '.join(chain)}.")
    if len(files) + len(chain) > MAX_FILES:
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
        read_with_bases(Path(path).parent / base, files, chain)
    files.append(file)
    return files


def read_options(path: str | Path) -> dict[str, Any]:
    """Return the values of one file, without those of its bases."""
    return read_file(path).values


def read_file(path: str | Path) -> OptionFile:
    """Read one JSON or YAML file; UserError when it is missing, unreadable or no mapping of names to values."""
    try:
        text = read_text(path)
        is_yaml = str(path).lower().endswith((".yaml", ".yml"))
        values, lines = read_yaml(text) if is_yaml else read_json(text)
        check_depth(values)
    except OSError as error:
        raise UserError(f"Cannot read the option file {path}: {error.strerror}.") from None
    except (ValueError, TypeError) as error:  # TypeError: a list as a name
        raise UserError(f"Cannot read the option file {path}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"The option file {path} is not a mapping of option names to values.")
    return OptionFile(str(path), values, lines)


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
def read_json(text: str) -> tuple[Any, dict[str, int]]:
    """Read JSON with comments; return it, and the line of each name of the outermost object."""
    text = without_comments(text)
    return parse_json(text), {json.loads(token[0]): line for token, line in outermost_names(text)}


def parse_json(text: str) -> Any:
    """Return the value of JSON without comments.

    Raises:
        ValueError: a name is given twice, or it is nested too deeply; JSONDecodeError when it is no JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=without_duplicates)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def outermost_names(text: str) -> Iterator[tuple[re.Match, int]]:
    """Yield each name of the outermost object of a JSON text, and its line."""
    depth, line, position = 0, 1, 0
    for token in TOKENS.finditer(text):
        line += text.count("\n", position, token.start())
        position = token.start()
        depth += (token[0] in "{[") - (token[0] in "}]")
        if depth == 1 and token[0][0] == '"' and COLON.match(text, token.end()):
            yield token, line


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


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a mapping; a name that is given twice is an error, where JSON and YAML would silently take the last."""
    built: dict[str, Any] = {}
    for name, value in pairs:
        if name in built:
            raise ValueError(f"{shown(name)} is given twice")
        built[name] = value
    return built


# ---- YAML ------------------------------------------------------------------------------------------------------------
def read_yaml(text: str) -> tuple[Any, dict[str, int]]:
    """Read YAML, leaving everything but null as text, as on the command line; return it as `read_json`.

    YAML itself would read the text "1e-3" in 1e-3, but 8 in 010, and False in no. Inside of a mapping, where no option
    says what it takes, unquoted values are `typed`. Aliases are refused, since a few lines of them stand for gigabytes,
    and so are tags, which ask for more than text.
    """
    import yaml

    def plain(node: yaml.Node | None, in_mapping: bool) -> Any:
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return None
        if node.tag.removeprefix("tag:yaml.org,2002:") not in YAML_TAGS:
            raise ValueError(f"the tag {shown(node.tag)} has no meaning here")
        if isinstance(node, yaml.MappingNode):
            return without_duplicates([(plain(name, False), plain(value, True)) for name, value in node.value])
        if isinstance(node, yaml.SequenceNode):
            return [plain(entry, in_mapping) for entry in node.value]
        return typed(node.value) if in_mapping and node.style is None else node.value

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
    names = [plain(name, False) for name, _ in top.value]
    values = [plain(value, in_mapping="." in str(name)) for name, (_, value) in zip(names, top.value, strict=True)]
    lines = {name: node.start_mark.line + 1 for name, (node, _) in zip(names, top.value, strict=True)}
    return without_duplicates(list(zip(names, values, strict=True))), lines


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
        return parse_json(text)
    except json.JSONDecodeError as error:
        if text[:1] in ("[", "{", '"'):
            raise ValueError(f"{shown(text)} is not JSON ({error.msg})") from None
        return text


def check_depth(value: Any, most: int = MAX_DEPTH) -> None:
    """Raise ValueError for a value that is nested too deeply."""
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if entries and not most:
        raise ValueError("it is nested too deeply")
    for entry in entries:
        check_depth(entry, most - 1)


def check_arguments(value: Any) -> None:
    """Raise ValueError for numbers that are not finite, names that are no arguments, and what is nested too deeply."""
    check_depth(value)
    if isinstance(value, dict):
        for name, entry in value.items():
            if not name.isidentifier():
                raise ValueError(f"{shown(name)} is not the name of an argument")
            check_arguments(entry)
    elif isinstance(value, list):
        for entry in value:
            check_arguments(entry)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    elif isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{shown(value)} cannot be printed")


def argument(text: str) -> Any:
    """Return the value of the text of a --set; ValueError when it is no argument."""
    value = typed(text)
    check_arguments({"value": value})
    return value
