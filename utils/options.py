"""A strict command line, and option files that mean the same as a command line.

The parser knows every option. An unknown flag, an unknown key of a file or a value out of range ends with one line that
names what was given, what is allowed and the nearest name, and with exit status 2.
"""

import argparse
import json
import math
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError, nearest
from utils.files import NO_SPACE
from utils.output import STATUS_UNREAD, flush_output, is_unread

# How a run was launched, not what it computes.
NOT_SAVED = ("config", "resume", "resume_notes", "replay", "verify_resume", "trace", "kill_at", "requeue", "profile",
             "doctor", "find_lr", "find_lr_range", "find_lr_values", "find_lr_updates", "find_lr_runs")  # fmt: skip
MAX_FILE_SIZE = 2**16  # bytes of an option file; one with every option has three thousand
NUMBERS = {  # plainer than int() and float(), which take 1_000, ' 1', nan and the digits of every script
    int: re.compile(r"[+-]?[0-9]+"),
    float: re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"),
}
YAML_TAGS = ("map", "seq", "str", "int", "float", "bool", "timestamp", "merge", "value")  # what text may look like
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # controls, broken UTF-8


# ---- messages --------------------------------------------------------------------------------------------------------
def shown(value: Any) -> str:
    """Quote what was given for a message, cut when it is long.

    >>> shown("1e-3x"), shown("9" * 100)
    ("'1e-3x'", "'999999999999999999999999999999999999999999999999999999999999'...")
    """
    text = str(value)
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}..."


def printable(text: str) -> str:
    r"""Escape what a terminal would obey instead of show.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


# ---- types: each turns the text of a flag into a value, or says what is allowed -------------------------------------
def number(kind: type, *, low: float | None = None, high: float | None = None, above: float | None = None) -> Callable:
    """Return an argparse type for a finite `kind` (int or float) with low <= value <= high and value > above.

    >>> number(float, above=0)("1e-3")
    0.001
    """
    limits = [f"{sign} {limit}" for sign, limit in ((">", above), (">=", low), ("<=", high)) if limit is not None]
    wanted = f"{'an integer' if kind is int else 'a finite number'} {' and '.join(limits)}".strip()

    def convert(text: str) -> Any:
        try:
            value = kind(text if NUMBERS[kind].fullmatch(text) else "no number")
        except ValueError:  # an int of more than 4,300 digits, too
            raise argparse.ArgumentTypeError(f"{shown(text)} is not {wanted}") from None
        too_low = (low is not None and value < low) or (above is not None and value <= above)
        is_finite = kind is int or math.isfinite(value)  # isfinite cannot take a huge int
        if not is_finite or too_low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{shown(text)} is not {wanted}")
        return value

    return convert


def one_of(names: Sequence[str], aliases: Mapping[str, str] | None = None) -> Callable:
    """Return an argparse type that takes one of `names`, or an alias that stands for one.

    >>> one_of(["none", "dp"], {"True": "dp"})("True")
    'dp'
    """

    def convert(text: str) -> str:
        text = (aliases or {}).get(text, text)
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"{shown(text)} is not one of {', '.join(names)}{nearest(text[:60], names)}"
            )
        return text

    return convert


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not True or False")
    return text.lower() == "true"


def plain_text(text: str) -> str:
    """The argparse type of options without one: text that files, a terminal and a log can take."""
    if found := UNPRINTABLE.search(text):
        raise argparse.ArgumentTypeError(f"{shown(text)} holds {found[0]!r}, which cannot be printed")
    return text


def file_path(text: str) -> str:
    """An argparse type for a file or directory, which is not looked at. An empty one would be the current directory."""
    parts = plain_text(text).split("/")
    is_too_long = any(len(os.fsencode(part)) > 255 for part in parts) or len(os.fsencode(text)) > 4095
    if not text.strip() or "\n" in text or "\t" in text or is_too_long:
        raise argparse.ArgumentTypeError(f"{shown(text)} cannot be the name of a file or directory")
    return text


def file_name(text: str) -> str:
    """An argparse type for what becomes a part of a file's name."""
    if not re.fullmatch(r"\w[\w.-]*", text) or len(text) > 100:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a name of letters, digits, _ . and -, at most 100")
    return text


def device_ids(text: str) -> str:
    """An argparse type for ``--gpu_devices``: cpu, or ids such as 0 or 0,1."""
    if not re.fullmatch(r" *(cpu|[0-9]{1,4}( *, *[0-9]{1,4})*) *", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a list of GPU ids like 0 or 0,1, and not cpu")
    return text


def list_of(kind: Callable) -> Callable:
    """Return an argparse type for a comma-separated list; use it with ``action=ListAction, nargs="+"``."""

    def convert(text: str) -> list:
        # --name 3, 6 comes as "3," and "6", --name "3, 6" in one piece
        return [kind(part.strip(" ")) for part in text.removesuffix(",").split(",")]

    return convert


class ListAction(argparse.Action):
    """Takes ``--name 1 2``, ``--name 1,2`` and ``--name 1, 2`` alike."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, [value for part in values for value in part])


class ExtendAction(argparse.Action):
    """Takes ``--name a b`` and ``--name a --name b`` alike, so that the second flag does not undo the first."""

    def __call__(self, parser, namespace, values, option_string=None):
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, [*(before if isinstance(before, list) else []), *values])


class BoolAction(argparse.Action):
    """Takes ``--viz``, ``--no-viz``, ``--viz True`` and ``--viz False``."""

    def __init__(self, option_strings, dest, **kwargs):
        negated = ["--no-" + option[2:] for option in option_strings if option.startswith("--")]
        super().__init__([*option_strings, *negated], dest, nargs="?", type=boolean, metavar="BOOL", **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        if option_string.startswith("--no-") and values is not None:
            raise argparse.ArgumentError(self, f"{option_string} takes no value")
        setattr(namespace, self.dest, not option_string.startswith("--no-") if values is None else values)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each default, except where there is none."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, argparse.SUPPRESS) else super()._get_help_string(action)


# ---- the parser ------------------------------------------------------------------------------------------------------
class OptionParser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations, whose errors are one line, and which can take defaults from files."""

    def __init__(self, **kwargs):
        super().__init__(**{"allow_abbrev": False, "formatter_class": HelpFormatter, **kwargs})
        self.register("type", None, plain_text)  # what an option without a type takes
        self.passed_over: set[str] = set()  # options of another program that may stand in a file
        self._source = ""  # the file whose values are being read, for the error message
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")  # argparse would take -1e-3 for a flag

    def error(self, message: str):
        message = " ".join(message.split())  # of several processes with one command line, the first tells
        self.exit(2, f"{self.prog}: error: {self._source}{message}\n" * (os.environ.get("LOCAL_RANK", "0") == "0"))

    @property
    def known(self) -> dict[str, argparse.Action]:
        """Every option by its name, without ``--help``."""
        return {action.dest: action for action in self._actions if action.dest != "help"}

    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        # argparse may take this -- for the end of the options, and an empty list for the value.
        for text in (args := sys.argv[1:] if args is None else args):
            if text.startswith("-") and text.endswith("=--"):
                self.error(f"argument {shown(text[:-3])}: '--' is not a value")
        options, extra = self.parse_known_args(args, namespace)
        if extra:
            flags = [flag for action in self._actions for flag in action.option_strings]
            unknown = next((text for text in extra if text.startswith("-")), extra[0])
            name = unknown.split("=")[0]
            kind = "unknown option" if name.startswith("-") else "unexpected argument"
            self.error(f"{kind} {shown(name)}{nearest(name[:60], flags)}; --help lists all options")
        return options

    def parse_given(self, args: Sequence[str] | None = None) -> dict[str, Any]:
        """Return only the options that `args` names, checked and converted."""
        missing = object()
        namespace = argparse.Namespace(**dict.fromkeys(self.known, missing))
        given = vars(self.parse_args(args, namespace))
        return {name: value for name, value in given.items() if value is not missing}

    def apply(self, values: Mapping[str, Any], source: str = "", ignore_unknown: bool = False) -> None:
        """Make `values` the new defaults, each checked as if it came from the command line.

        Args:
            values: option names and values. ``None`` is taken where the option starts out as ``None``.
            source: the file they come from, named in an error.
            ignore_unknown: pass over names that this parser does not have, instead of an error.
        """
        self._source = f"{source}: " if source else ""
        known = self.known
        for name in NOT_SAVED:
            if name in values:
                self.error(f"option {name!r} belongs on the command line")
        if not ignore_unknown:
            for name in values:
                if name not in known and name not in self.passed_over:
                    self.error(f"unknown option {shown(name)}{nearest(name[:60], known)}")
        values = {name: value for name, value in values.items() if name in known}
        nones = {name: None for name, value in values.items() if value is None}
        for name, value in values.items():
            if isinstance(value, (list, tuple)) and known[name].nargs in (None, "?"):
                self.error(f"option {name!r} takes one value, not the list {str(value)[:60]}")
            for entry in map(str, value if isinstance(value, (list, tuple)) else ()):
                if entry.startswith("-") and not self._negative_number_matcher.match(entry):  # it would be a flag
                    self.error(f"option {name!r} cannot take {shown(entry)}")
            if value is None and known[name].default is not None and not getattr(known[name], "nullable", False):
                self.error(f"option {name!r} cannot be null")
        argv = [text for name, value in values.items() if value is not None for text in as_flags(name, value)]
        for name in values:
            known[name].nullable = known[name].default is None or name in nones
        self.set_defaults(**self.parse_given(argv), **nones)
        self._source = ""

    def resolve(
        self, argv: Sequence[str] | None, layers: Sequence[tuple[Mapping[str, Any], str]] = ()
    ) -> argparse.Namespace:
        """Return all options: the defaults, then `layers`, then the files of --config, then `argv`; later ones win.

        Args:
            argv: the command line; None for this process's.
            layers: (values, where they come from); options that this parser does not have are passed over.
        """
        config = self.parse_given(argv).get("config") or []
        for values, source in layers:
            self.apply(values, source, ignore_unknown=True)
        for path in config:
            self.apply(read_options(path), path)
        return self.parse_args(argv)


def as_flags(name: str, value: Any) -> list[str]:
    """Write an option as it would stand on the command line.

    >>> as_flags("lr", 0.1), as_flags("lr_decay_epochs", [3, 4.5])
    (['--lr=0.1'], ['--lr_decay_epochs', '3', '4.5'])
    """
    if isinstance(value, (list, tuple)):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


# ---- files -----------------------------------------------------------------------------------------------------------
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


def read_yaml(text: str) -> Any:
    """Read YAML, leaving everything but null the text that it is, as on the command line.

    YAML itself would make the text "1e-3" of 1e-3, but 8 of 010, and False of no. Aliases are refused, since a few
    lines of them stand for gigabytes, and so are tags, which ask for more than text.
    """
    import yaml

    def plain(node: yaml.Node | None) -> Any:
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return None
        if node.tag.removeprefix("tag:yaml.org,2002:") not in YAML_TAGS:
            raise ValueError(f"the tag {shown(node.tag)} has no meaning here")
        if isinstance(node, yaml.MappingNode):
            return without_duplicates([(plain(name), plain(value)) for name, value in node.value])
        return [plain(entry) for entry in node.value] if isinstance(node, yaml.SequenceNode) else node.value

    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > 2:  # a list in a mapping; and brackets in brackets take the longer the deeper they are
                raise ValueError("it is not flat")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("aliases (*name) are not allowed")
        return plain(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def read_options(path: str | Path) -> dict[str, Any]:
    """Read a flat JSON or YAML file of options; UserError when it is missing, unreadable or not a flat mapping."""
    try:
        is_yaml = str(path).lower().endswith((".yaml", ".yml"))
        text = read_text(path)
        values = read_yaml(text) if is_yaml else json.loads(text, object_pairs_hook=without_duplicates)
    except OSError as error:
        raise UserError(f"Cannot read the option file {path}: {error.strerror}.") from None
    except RecursionError:
        raise UserError(f"The option file {path} is not flat: it is nested too deeply.") from None
    except (ValueError, TypeError) as error:  # TypeError: a list as a name
        raise UserError(f"Cannot read the option file {path}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"The option file {path} is not a mapping of option names to values.")
    for name, value in values.items():
        if any(isinstance(entry, (dict, list)) for entry in (value if isinstance(value, list) else [])):
            raise UserError(f"The option file {path} is not flat: {shown(name)} holds a list of lists or mappings.")
        if isinstance(value, dict):
            raise UserError(f"The option file {path} is not flat: {shown(name)} holds a mapping.")
    return values


def saved_options(opt: argparse.Namespace) -> dict[str, Any]:
    """The options that a run is repeated from, flat."""
    return {name: value for name, value in vars(opt).items() if name not in NOT_SAVED}


def leave_full_disk_to_main(failure: threading.ExceptHookArgs, others=threading.excepthook) -> None:
    """For `threading.excepthook`: a thread that finds the disk full prints nothing, since the main thread tells."""
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in NO_SPACE):
        others(failure)


def run_main(main: Callable[[], Any]) -> None:
    """Call `main`; a UserError ends with its one or two lines on stderr and its status, Ctrl-C with status 130.

    A disk that is full ends it as a UserError does: what was being written is for the user to make room for. When who
    reads the output has gone away (``... | head -1``), the status is 141, and there is nothing to say.
    """
    threading.excepthook = leave_full_disk_to_main
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the program
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - lives as long as the process
    try:
        try:
            main()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            where = f" for {error.filename}" if error.filename else ""
            raise UserError(f"Cannot go on: {error.strerror}{where}. Make room on the disk.") from None
    except UserError as error:
        message = "\n".join(map(printable, str(error).split("\n")))
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        if not is_unread(sys.stdout):  # it is another pipe that broke
            raise
        sys.exit(STATUS_UNREAD)
    finally:
        flush_output()
