"""A strict command line, and option files that mean the same as a command line.

The parser knows every option. An unknown flag, an unknown key of a file or a value out of range ends with one line that
names what was given, what is allowed and the nearest name, and with exit status 2.
"""

import argparse
import json
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.options.files import read_with_bases
from engine.options.mappings import argument, mapping, with_value
from engine.runs.stdout import STATUS_UNREAD, flush_output, is_unread
from utils.errors import UserError, nearest, shown
from utils.files import NO_SPACE

# How a run was launched, not what it computes.
NOT_SAVED = ("config", "set", "print_config", "resume", "resume_notes", "replay", "verify_resume", "trace", "kill_at",
             "requeue", "profile", "doctor", "find_lr", "find_lr_range", "find_lr_values", "find_lr_updates",
             "find_lr_runs")  # fmt: skip
NUMBERS = {  # plainer than int() and float(), which take 1_000, ' 1', nan and the digits of every script
    int: re.compile(r"[+-]?[0-9]+"),
    float: re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"),
}
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # controls, broken UTF-8


# ---- messages --------------------------------------------------------------------------------------------------------
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
        return action.help if action.default in (None, {}, argparse.SUPPRESS) else super()._get_help_string(action)


# ---- the parser ------------------------------------------------------------------------------------------------------
class OptionParser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations, whose errors are one line, and which can take defaults from files."""

    def __init__(self, **kwargs):
        super().__init__(**{"allow_abbrev": False, "formatter_class": HelpFormatter, **kwargs})
        self.register("type", None, plain_text)  # what an option without a type takes
        self.passed_over: set[str] = set()  # options of another program that may stand in a file
        self.sources: dict[str, str] = {}  # where the value of an option, or an argument in it (a.b), came from
        self.asked: set[str] = set()  # what files and the command line gave in `resolve`
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

    def apply(
        self, values: Mapping[str, Any], source: str = "", ignore_unknown: bool = False,
        lines: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        """Make `values` the new defaults, each checked as if it came from the command line.

        Args:
            values: option names and values. ``None`` is taken where the option starts out as ``None``. A name with dots
                is that of an argument in a mapping: it changes that one only.
            source: the file they come from, named in an error.
            ignore_unknown: pass over names that this parser does not have, instead of an error.
            lines: the line of each name in the file.
        """
        known = self.known
        values = {name: value for name, value in values.items() if name in known or not ignore_unknown}
        for name in sorted(values, key=lambda name: "." in name):  # a mapping before its arguments
            place = f"{source}:{lines[name]}" if lines and name in lines else source
            self._source = f"{place}: " if place else ""
            head = name.split(".")[0]
            if head in known or head in NOT_SAVED or head not in self.passed_over:
                self.set_default(name, values[name])
                self.note_source(name, place)
        self._source = ""

    def set_default(self, name: str, value: Any) -> None:
        """Make one value the new default, as `apply` does."""
        known, head = self.known, name.split(".")[0]
        if head in NOT_SAVED:
            self.error(f"option {head!r} belongs on the command line")
        if name not in known and not (head in known and head != name):
            self.error(f"unknown option {shown(name)}{nearest(name[:60], known)}")
        action = known[head]
        if name != head:
            value = self.with_argument(action.default, name, value)
        self.check_shape(action, value)
        if value is None and action.default is not None and not getattr(action, "nullable", False):
            self.error(f"option {head!r} cannot be null")
        action.nullable = action.default is None or value is None or getattr(action, "nullable", False)
        self.set_defaults(**({head: None} if value is None else self.parse_given(as_flags(head, value))))

    def check_shape(self, action: argparse.Action, value: Any) -> None:
        """Refuse a mapping or a list where an option takes none, and an entry of a list that would be a flag."""
        if isinstance(value, dict) and action.type is not mapping:
            self.error(f"option {action.dest!r} is flat: it takes no mapping such as {str(value)[:60]}")
        if isinstance(value, (list, tuple)) and action.nargs in (None, "?"):
            self.error(f"option {action.dest!r} takes one value, not the list {str(value)[:60]}")
        for entry in map(str, value if isinstance(value, (list, tuple)) else ()):
            if entry.startswith("-") and not self._negative_number_matcher.match(entry):
                self.error(f"option {action.dest!r} cannot take {shown(entry)}")

    def with_argument(self, values: Any, name: str, value: Any) -> dict[str, Any]:
        """A mapping in which the argument with this dotted name has another value."""
        head, *path = name.split(".")
        if self.known[head].type is not mapping:
            self.error(f"option {head!r} is flat: it has no {shown('.'.join(path))}")
        if not all(part.isidentifier() for part in path):
            self.error(f"{shown(name)} is not the name of an argument")
        return with_value(values or {}, path, value)

    def note_source(self, name: str, source: str) -> None:
        """Remember where a value came from; that of a whole mapping is that of all in it."""
        self.sources = {other: of for other, of in self.sources.items() if not other.startswith(f"{name}.")}
        self.sources[name] = source

    def resolve(
        self, argv: Sequence[str] | None, layers: Sequence[tuple[Mapping[str, Any], str]] = ()
    ) -> argparse.Namespace:
        """Return all options: the defaults, then `layers`, then the files of --config, `argv`, its --set; later win.

        Args:
            argv: the command line; None for this process's.
            layers: (values, where they come from); options that this parser does not have are passed over.
        """
        given = self.parse_given(argv)
        for values, source in layers:
            self.apply(values, source, ignore_unknown=True)
        for path in given.get("config") or []:
            for file in read_with_bases(path):
                self.apply(file.values, file.path, lines=file.lines)
                self.asked |= {name.split(".")[0] for name in file.values}
        options = self.parse_args(argv)
        for name in given:
            self.note_source(name, "command line")
        for name, text in given.get("set") or []:
            self.change(options, name, text)
            self.note_source(name, "command line, --set")
            self.asked.add(name.split(".")[0])
        self.asked |= given.keys()
        return options

    def change(self, options: argparse.Namespace, name: str, text: str) -> None:
        """Give an option, or an argument in a mapping, the value that --set names."""
        known, head = self.known, name.split(".")[0]
        self._source = f"argument --set: {shown(f'{name}={text}')}: "
        if head in (*NOT_SAVED, "import"):
            self.error(f"give --{head} by its own flag")
        if head not in known:
            self.error(f"unknown option {shown(head)}{nearest(head[:60], known)}")
        try:
            value = argument(text) if name != head or text.startswith("[") else text
        except (ValueError, RecursionError) as error:
            self.error(str(error))
        if name != head:
            value = self.with_argument(getattr(options, head), name, value)
        self.check_shape(known[head], value)
        self.parse_args(as_flags(head, value), options)
        self._source = ""


def as_flags(name: str, value: Any) -> list[str]:
    """Write an option as it would stand on the command line.

    >>> as_flags("lr", 0.1), as_flags("lr_decay_epochs", [3, 4.5]), as_flags("model_args", {"width": 64})
    (['--lr=0.1'], ['--lr_decay_epochs', '3', '4.5'], ['--model_args={"width": 64}'])
    """
    if isinstance(value, dict):
        return [f"--{name}={json.dumps(value)}"]
    if isinstance(value, (list, tuple)):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


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
