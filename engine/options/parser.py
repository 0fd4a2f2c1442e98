"""A strict command line, and option files that mean the same as a command line.

An unknown flag, an unknown key of a file or a value out of range ends with exit status 2 and one line. It names the
value, what is allowed and the nearest name. Nothing here imports torch.
"""

import argparse
import contextlib
import json
import math
import os
import re
import signal
import sys
import threading
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from engine.registry import load
from utils.errors import UserError, nearest, shown
from utils.files import NO_SPACE

# How a run was launched, not what it computes.
NOT_SAVED = ("config", "set", "print_config", "resume", "resume_notes", "requeue", "profile", "asked_to_cut")
NUMBERS = {  # plainer than int() and float(), which take 1_000, ' 1', nan and the digits of every script
    int: re.compile(r"[+-]?[0-9]{1,4000}"),
    float: re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"),
}
MOST_LEVEL = 65535  # of grey
MOST_DIGITS = 4000  # of a number; Python converts no integer of more than 4,300
STATUS_UNREAD = 141  # 128 + SIGPIPE, the status of a program whose output nobody reads
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # controls, broken UTF-8


# ---- messages --------------------------------------------------------------------------------------------------------
def printable(text: str) -> str:
    r"""Escape what a terminal would obey instead of show.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


# ---- types: each turns the text of a flag into a value, or says what is allowed -------------------------------------
def number(
    kind: type,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    words: Sequence[str] = (),
) -> Callable:
    """Return an argparse type for a finite `kind` (int or float) within limits, or one of `words`.

    Args:
        low, high: inclusive limits.
        above, below: exclusive limits.

    >>> number(float, above=0)("1e-3"), number(int, low=1, words=["auto"])("auto")
    (0.001, 'auto')
    """
    limits = {">": above, ">=": low, "<": below, "<=": high}
    bounds = " and ".join(f"{sign} {limit}" for sign, limit in limits.items() if math.isfinite(limit))
    wanted = " or ".join([f"{'an integer' if kind is int else 'a finite number'} {bounds}".strip(), *words])

    def convert(text: str) -> Any:
        if text in words:
            return text
        value = kind(text) if NUMBERS[kind].fullmatch(text) and len(text) < MOST_DIGITS else math.nan
        if kind is int and value > sys.maxsize and high == math.inf:
            raise ArgumentTypeError(f"{shown(text)} is too large: an integer may be {sys.maxsize} at most")
        if not (above < value < below and low <= value <= high):  # nan is not, and infinity is not < infinity
            raise ArgumentTypeError(f"{shown(text)} is not {wanted}")
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
            raise ArgumentTypeError(f"{shown(text)} is not one of {', '.join(names)}{nearest(text[:60], names)}")
        return text

    return convert


def boolean(text: str) -> bool:
    """An argparse type for True and False."""
    if text.lower() not in ("true", "false"):
        raise ArgumentTypeError(f"{shown(text)} is not True or False")
    return text.lower() == "true"


def flag_or_path(text: str) -> bool | str:
    """An argparse type for True, False or a file, or for another text that names a place; see `BoolAction`."""
    return boolean(text) if text.lower() in ("true", "false") else file_path(text)


def plain_text(text: str) -> str:
    """The argparse type of options without one: text that files, a terminal and a log can take."""
    if found := UNPRINTABLE.search(text):
        raise ArgumentTypeError(f"{shown(text)} holds {found[0]!r}, which cannot be printed")
    return text


def file_path(text: str) -> str:
    """An argparse type for a file or directory, which is not looked at. An empty one would be the current directory.

    A shell turns ~ into the home directory only where a word begins with it; option files and Python do not.
    """
    parts = plain_text(text).split("/")
    is_too_long = any(len(os.fsencode(part)) > 255 for part in parts) or len(os.fsencode(text)) > 4095
    if not text.strip() or "\n" in text or "\t" in text or is_too_long:
        raise ArgumentTypeError(f"{shown(text)} cannot be the name of a file or directory")
    return os.path.expanduser(text)


def duration(text: str) -> str:
    """An argparse type for a duration such as 1h30m, see utils/duration.py. It stays text, for option files."""
    from utils.duration import seconds_of  # here, as few runs need it

    try:
        seconds_of(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return text


def text_like(regex: str, wanted: str) -> Callable:
    """Return an argparse type for a text that a regular expression matches; `wanted` describes it.

    >>> text_like("[a-z]+", "a word")("abc")
    'abc'
    """

    def convert(text: str) -> str:
        if not re.fullmatch(regex, plain_text(text)):
            raise ArgumentTypeError(f"{shown(text)} is not {wanted}")
        return text

    return convert


file_name = text_like(r"\w[\w.-]{,99}", "a name of letters, digits, _ . and -, at most 100")
device_ids = text_like(
    r"(?i) *(cpu|[0-9]{1,4}( *, *[0-9]{1,4})*) *", "a list of GPU ids like 0 or 0,1, and not cpu"
)  # of --gpu_devices
class_name = text_like(r"(?s).*\S.*", "the name of a class")
pattern = text_like(r"(?s).*\S.*", "a pattern on names, such as 'layers.0.*'")  # on the names of parameters


def list_of(kind: Callable) -> Callable:
    """Return an argparse type for a comma-separated list; use it with ``action=ListAction, nargs="+"``."""

    def convert(text: str) -> list:
        # --name 3, 6 comes as "3," and "6", --name "3, 6" in one piece
        return [kind(part.strip(" ")) for part in text.removesuffix(",").split(",")]

    return convert


def mask_value(text: str) -> int | str:
    """An argparse type for a value of masks: a grey level, or a colour as #rrggbb."""
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return text.lower()
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > MOST_LEVEL:
        raise ArgumentTypeError(f"{shown(text)} is neither a grey level from 0 to {MOST_LEVEL} nor a colour as #ff8000")
    return int(text)


def named_value(kind: Callable, example: str, suffix: str = "") -> Callable:
    """Return an argparse type for PATTERN=VALUE, a pattern on the names of parameters. The text stays as it is.

    Args:
        kind: takes the value.
        example: of a whole text, for the message.
        suffix: may follow the value.
    """

    def convert(text: str) -> str:
        named, _, value = plain_text(text).rpartition("=")
        if not named.strip():
            raise ArgumentTypeError(f"{shown(text)} is not PATTERN=VALUE, such as {example}")
        try:
            kind(value.removesuffix(suffix))
        except ArgumentTypeError as error:
            raise ArgumentTypeError(f"{shown(text)}: {error}") from None
        return text

    return convert


def split_weight(text: str) -> tuple[str, str]:
    """Return the name in NAME or NAME:WEIGHT, which may have colons, too, and the text of the weight, "" without one.

    >>> split_weight("my_losses:Focal:0.5"), split_weight("my_losses:Focal")
    (('my_losses:Focal', '0.5'), ('my_losses:Focal', ''))
    """
    name, _, weight = text.rpartition(":")
    try:
        float(weight)
    except ValueError:
        return text, ""
    return (name, weight) if name else (text, "")


def weighted(kind: Callable) -> Callable:
    """Return an argparse type for NAME or NAME:WEIGHT, where `kind` takes the name."""

    def convert(text: str) -> str:
        name, weight = split_weight(text)
        return f"{kind(name)}:{number(float, above=0)(weight)}" if weight else kind(name)

    return convert


def mapping(text: str) -> dict[str, Any]:
    """An argparse type for a JSON object.

    >>> mapping('{"width": 64}')
    {'width': 64}
    """
    from engine.options.files import check_arguments, read_json  # here, as few runs need it

    example = '{"width": 64}'
    try:
        value = check_arguments(read_json(text))
    except json.JSONDecodeError as error:
        raise ArgumentTypeError(f"{shown(text)} is not JSON such as {example!r} ({error.msg})") from None
    except ValueError as error:
        raise ArgumentTypeError(f"{shown(text)}: {error}") from None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"{shown(text)}: it must be an object, such as {example}")
    return value


def takes_mapping(action: argparse.Action) -> bool:
    """Return whether an option may be a mapping: of arguments, or by network, see `options.by_network`."""
    return action.type is mapping or "by_network" in getattr(action.type, "__qualname__", "")


def setting(text: str) -> tuple[str, str]:
    """An argparse type for ``name=value``, of which the name may have dots.

    >>> setting("model_args.width=64")
    ('model_args.width', '64')
    """
    name, equals, value = text.partition("=")
    if not equals or not all(part.isidentifier() for part in name.split(".")):
        raise ArgumentTypeError(f"{shown(text)} is not NAME=VALUE, such as model_args.width=64")
    return name, value


class OneOrMoreAction(argparse.Action):
    """Takes ``--name a`` for the text a, and ``--name a b`` for the list of both."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


class ListAction(argparse.Action):
    """Takes ``--name 1 2``, ``--name 1,2`` and ``--name 1, 2`` alike."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, [value for part in values for value in part])


class BoolAction(argparse.Action):
    """Takes ``--viz``, ``--no-viz``, ``--viz True`` and ``--viz False``; with a type, maybe other values, too."""

    def __init__(self, option_strings, dest, **kwargs):
        negated = ["--no-" + option[2:] for option in option_strings if option.startswith("--")]
        super().__init__([*option_strings, *negated], dest, nargs="?", **{"type": boolean, "metavar": "BOOL"} | kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        if option_string.startswith("--no-") and values is not None:
            raise argparse.ArgumentError(self, f"{option_string} takes no value")
        setattr(namespace, self.dest, not option_string.startswith("--no-") if values is None else values)


class HelpAction(argparse.Action):
    """Prints the options that most runs need, those of a group, one, or all of them, and ends the program."""

    def __call__(self, parser, namespace, values, option_string=None):
        load("extras.help:print_help", "help")(parser, values)
        parser.exit()


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each default, except where there is none."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, {}, argparse.SUPPRESS) else super()._get_help_string(action)


# ---- the options -----------------------------------------------------------------------------------------------------
class Options(Namespace):
    """The resolved options of a run, an attribute for each. They cannot change.

    >>> Options(lr=0.1).lr = 0.2
    Traceback (most recent call last):
    AttributeError: the options are resolved, so lr cannot change; changed(opt, lr=...) returns a copy
    """

    def __init__(self, **options: Any):
        vars(self).update(options)

    def __setattr__(self, name: str, value: Any) -> None:
        mend = f"changed(opt, {name}=...) returns a copy"
        raise AttributeError(f"the options are resolved, so {name} cannot change; {mend}")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)


def changed(opt: Options, **changes: Any) -> Options:
    """Return a copy of the options with these changes, for tools and tests that make a run out of another one.

    >>> changed(Options(lr=0.1, seed=0), lr=0.2)
    Options(lr=0.2, seed=0)
    """
    return Options(**vars(opt) | changes)


def saved_options(opt: Namespace) -> dict[str, Any]:
    """Return the options that make a run what it is, without those of one launch."""
    return {name: value for name, value in vars(opt).items() if name not in NOT_SAVED}


# ---- the parser ------------------------------------------------------------------------------------------------------
class OptionParser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations, whose errors are one line, and which takes defaults from files.

    Attributes:
        old_names: the new name of each option that was renamed. The old one is taken, too, and not listed.
        moved: programs in tools/ that were options, whose names began as theirs.
        passed_over: options of another program that an option file may have.
        sources: where each value came from: the option, or with dots an argument in it, and a text.
        asked: the options that files and the command line have given to `resolve`.
    """

    def __init__(self, moved: Sequence[str] = (), add_help: bool = True, **kwargs):
        super().__init__(**{"allow_abbrev": False, "formatter_class": HelpFormatter, "add_help": False, **kwargs})
        self.register("type", None, plain_text)  # for an option without a type
        if add_help:
            self.add_argument("-h", "--help", action=HelpAction, nargs="?", default=argparse.SUPPRESS, metavar="WHAT",
                help="show the usual options; or those that WHAT names: all, a group, or one option")
        self.old_names: Mapping[str, str] = {}
        self.moved = moved
        self.passed_over: set[str] = set()
        self.sources: dict[str, str] = {}
        self.asked: set[str] = set()
        self._source = ""  # the file whose values are read, for the error message
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")  # argparse would take -1e-3 for a flag

    def error(self, message: str):
        line = f"{self.prog}: error: {self._source}{' '.join(message.split())}\n"
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"  # the other processes have the same command line
        self.exit(2, line if is_first else None)

    @property
    def known(self) -> dict[str, argparse.Action]:
        """Every option by its name, without ``--help``."""
        return {action.dest: action for action in self._actions if action.dest != "help"}

    def rename(self, old_names: Mapping[str, str]) -> None:
        """Take options by their old names, too, which the help does not list. Call it when all options are added."""
        self.old_names = old_names
        flags = self._option_string_actions
        flags.update({f"--{old}": flags[f"--{new}"] for old, new in old_names.items() if f"--{new}" in flags})

    # ---- the command line ----------------------------------------------------------------------------------------
    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> Namespace:
        # argparse may take this -- for the end of the options, and an empty list for the value.
        for text in (args := sys.argv[1:] if args is None else args):
            if text.startswith("-") and text.endswith("=--"):
                self.error(f"argument {shown(text[:-3])}: '--' is not a value")
        options, extra = self.parse_known_args(args, namespace)
        if extra:
            unknown = next((text for text in extra if text.startswith("-")), extra[0])
            name = unknown.split("=")[0]
            if program := next(filter(name.removeprefix("--").startswith, self.moved), None):
                self.error(f"{name} has become a program: python -m tools.{program} {self.prog} ...")
            kind = "unknown option" if name.startswith("-") else "unexpected argument"
            hint = load("extras.wrong_names:of_flag", "help")(self, unknown, args)
            self.error(f"{kind} {shown(name)}{hint}; --help all lists every option")
        return options

    def parse_given(self, args: Sequence[str] | None = None) -> dict[str, Any]:
        """Return only the options that `args` names, checked and converted."""
        missing: list = []  # a list, because `action="extend"` makes a copy of it
        given = vars(self.parse_args(args, Namespace(**dict.fromkeys(self.known, missing))))
        return {name: value for name, value in given.items() if value is not missing}

    # ---- other sources -------------------------------------------------------------------------------------------
    def resolve(self, argv: Sequence[str] | None, layers: Sequence[tuple[Mapping[str, Any], str]] = ()) -> Namespace:
        """Return all options: the defaults, then `layers`, then the files of --config, `argv`, its --set; later win.

        Args:
            argv: the command line; None for this process's.
            layers: (values, their source); options that this parser does not have are passed over.
        """
        given = self.parse_given(argv)
        for values, source in layers:
            self.apply(values, source, ignore_unknown=True)
        for path, values in option_files(given.get("config")):
            self.asked |= self.apply(values, path)
        self.set_defaults(**given)
        for name in given:
            self.note_source(name, "command line")
        for name, text in given.get("set") or []:
            self.asked |= self.apply({name: self.value_of(name, text)}, "command line, --set")
        self.asked |= given.keys()
        return self.parse_args([])

    def value_of(self, name: str, text: str) -> Any:
        """Return the value that --set gives to an option, or with dots to an argument in a mapping."""
        if name.partition(".")[0] == "import":
            self.error("argument --set: give --import by its own flag")
        if "." not in name and not text.startswith("["):
            return text
        from engine.options.files import argument  # here, as few runs need it

        try:
            return argument(text)
        except ValueError as error:
            self.error(f"argument --set: {error}")

    def apply(self, values: Mapping[str, Any], source: str = "", ignore_unknown: bool = False) -> set[str]:
        """Make `values` the new defaults, each checked as if it came from the command line.

        Args:
            values: by the name of the option. ``None`` is taken where the option starts out as ``None``. A name with
                dots is that of an argument in a mapping: it changes that one only.
            source: their file, for errors.
            ignore_unknown: pass over names that this parser does not have, instead of an error.

        Returns:
            The names of the options, without dots.
        """
        heads = set()
        self._source = f"{source}: " if source else ""
        for name in sorted(values, key=lambda name: "." in name):  # a mapping before its arguments
            head, *path = name.split(".")
            head = self.old_names.get(head, head)
            heads.add(head)
            is_passed_over = ignore_unknown or (head in self.passed_over and head not in NOT_SAVED)
            if head in self.known or not is_passed_over:
                self.set_default(head, path, values[name])
                self.note_source(".".join([head, *path]), source)
        self._source = ""
        return heads

    def set_default(self, name: str, path: Sequence[str], value: Any) -> None:
        """Make one value the new default of an option, or of the argument at `path` in a mapping, as `apply` does."""
        if name in NOT_SAVED:
            self.error(f"option {name!r} belongs on the command line, as --{name}")
        if name not in self.known:
            hint = load("extras.wrong_names:of_name", "set")(name, value, self.known)
            self.error(f"unknown option {shown('.'.join([name, *path]))}{hint}")
        action = self.known[name]
        if path:
            value = self.with_argument(action, path, value)
        self.check_shape(action, value)
        action.nullable = action.default is None or getattr(action, "nullable", False)
        if value is None and not action.nullable:
            self.error(f"option {name!r} cannot be null")
        self.set_defaults(**({name: None} if value is None else self.parse_given(as_flags(name, value))))

    def check_shape(self, action: argparse.Action, value: Any) -> None:
        """Refuse a mapping or a list where an option takes none, and an entry of a list that would be a flag."""
        if isinstance(value, dict) and not takes_mapping(action):
            self.error(f"option {action.dest!r} is flat: it takes no mapping such as {str(value)[:60]}")
        if not isinstance(value, (list, tuple)):
            return
        if action.nargs in (None, "?"):
            self.error(f"option {action.dest!r} takes one value, not the list {str(value)[:60]}")
        for entry in map(str, value):
            if entry.startswith("-") and not self._negative_number_matcher.match(entry):
                self.error(f"option {action.dest!r} cannot take {shown(entry)}")

    def with_argument(self, action: argparse.Action, path: Sequence[str], value: Any) -> dict[str, Any]:
        """Return a copy of the default of a mapping in which the argument at `path` has another value."""
        if not takes_mapping(action):
            self.error(f"option {action.dest!r} is flat: it has no {shown('.'.join(path))}")
        if not all(part.isidentifier() for part in path):
            self.error(f"{shown('.'.join([action.dest, *path]))} is not the name of an argument")
        return with_value(action.default if isinstance(action.default, dict) else {}, path, value)

    def note_source(self, name: str, source: str) -> None:
        """Remember where a value came from; the source of a whole mapping is that of all its arguments."""
        self.sources = {other: text for other, text in self.sources.items() if not other.startswith(f"{name}.")}
        self.sources[name] = source


def as_flags(name: str, value: Any) -> list[str]:
    """Write an option as it would be on the command line.

    >>> as_flags("lr", 0.1), as_flags("lr_decay_epochs", [3, 4.5]), as_flags("model_args", {"width": 64})
    (['--lr=0.1'], ['--lr_decay_epochs', '3', '4.5'], ['--model_args={"width": 64}'])
    """
    if isinstance(value, dict):
        return [f"--{name}={json.dumps(value)}"]
    if isinstance(value, (list, tuple)):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]


def option_files(paths: Sequence[str] | None) -> list[tuple[str, dict[str, Any]]]:
    """Return the path and the values of each file of --config, behind those that it builds on."""
    if not paths:
        return []
    from engine.options.files import read_with_bases  # here, as few runs need it

    return [file for path in paths for file in read_with_bases(path)]


def with_value(values: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a copy of a mapping in which the entry at `path` has another value; missing mappings are made.

    >>> with_value({"width": 64}, ["norm", "eps"], 1e-5)
    {'width': 64, 'norm': {'eps': 1e-05}}
    """
    first, *rest = path
    inner = values.get(first)
    return {**values, first: with_value(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


# ---- main ------------------------------------------------------------------------------------------------------------
def leave_full_disk_to_main(failure: threading.ExceptHookArgs, others=threading.excepthook) -> None:
    """For `threading.excepthook`: a thread that finds the disk full prints nothing, since the main thread tells."""
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in NO_SPACE):
        others(failure)


def is_unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reader has gone away. Windows does not tell."""
    import select  # here, as few runs need it

    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(stream, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def flush_output() -> None:
    """Write what standard output still holds. What nobody reads goes nowhere, or Python would complain at its end."""
    with contextlib.suppress(OSError):  # a full disk is complained of there
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


def run_main(main: Callable[[], Any]) -> None:
    """Call `main`; a UserError ends with its one or two lines on stderr and its status, Ctrl-C with status 130.

    A disk that is full ends it as a UserError does: what was being written is for the user to make room for. When who
    reads the output has gone away (``... | head -1``), the status is 141, and there is nothing to say.
    """
    threading.excepthook = leave_full_disk_to_main
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the program
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - lives as long as the process
    if is_main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # of `end_at_once_on_ctrl_c`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except UserError as error:
        end_with(str(error), error.status)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and is_unread(sys.stdout):  # else it is another pipe that broke
            sys.exit(STATUS_UNREAD)
        if error.errno not in NO_SPACE:
            raise
        where = f" for {error.filename}" if error.filename else ""
        end_with(f"Cannot go on: {error.strerror}{where}. Make room on the disk.", UserError.status)
    finally:
        flush_output()


def end_at_once_on_ctrl_c() -> None:
    """Let Ctrl-C end the process without a traceback, until `run_main` is called: while modules are imported."""
    if is_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def end_with(message: str, status: int) -> None:
    """Print a message for people on stderr, and exit."""
    lines = "\n".join(map(printable, message.split("\n")))
    print(f"{Path(sys.argv[0]).name}: error: {lines}", file=sys.stderr)
    sys.exit(status)
