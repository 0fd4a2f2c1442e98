"""A strict command line, and option files that mean the same as a command line.

The parser knows every option. An unknown flag, an unknown key of a file or a value out of range ends with one line that
names what was given, what is allowed and the nearest name, and with exit status 2.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError, nearest

NOT_SAVED = ("config", "resume")  # how a run was launched, not what it computes


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
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None
        too_low = (low is not None and value < low) or (above is not None and value <= above)
        is_finite = kind is int or math.isfinite(value)  # isfinite cannot take a huge int
        if not is_finite or too_low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
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
                f"{text!r} is not one of {', '.join(names)}{nearest(text, names)}"
            )
        return text

    return convert


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not True or False")
    return text.lower() == "true"


def file_name(text: str) -> str:
    """An argparse type for what becomes a part of a file's name."""
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of letters, digits, _ . and -")
    return text


def list_of(kind: Callable) -> Callable:
    """Return an argparse type for a comma-separated list; use it with ``action=ListAction, nargs="+"``."""

    def convert(text: str) -> list:
        return [kind(part) for part in text.removesuffix(",").split(",")]  # "3, 6" comes as "3," and "6"

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
        super().__init__(
            [*option_strings, *negated], dest, nargs="?", type=boolean, metavar="BOOL", **kwargs
        )

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
        super().__init__(allow_abbrev=False, formatter_class=HelpFormatter, **kwargs)
        self.passed_over: set[str] = set()  # options of another program that may stand in a file
        self._source = ""  # the file whose values are being read, for the error message
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")  # argparse would take -1e-3 for a flag

    def error(self, message: str):
        message = " ".join(message.split())
        self.exit(2, f"{self.prog}: error: {self._source}{message}\n")

    @property
    def known(self) -> dict[str, argparse.Action]:
        """Every option by its name, without ``--help``."""
        return {action.dest: action for action in self._actions if action.dest != "help"}

    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        options, extra = self.parse_known_args(args, namespace)
        if extra:
            flags = [flag for action in self._actions for flag in action.option_strings]
            unknown = next((text for text in extra if text.startswith("-")), extra[0])
            name = unknown.split("=")[0]
            kind = "unknown option" if name.startswith("-") else "unexpected argument"
            self.error(f"{kind} {name!r}{nearest(name, flags)}; --help lists all options")
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
        if not ignore_unknown:
            for name in values:
                if name not in known and name not in self.passed_over:
                    self.error(f"unknown option {name!r}{nearest(name, known)}")
        values = {name: value for name, value in values.items() if name in known}
        nones = {name: None for name, value in values.items() if value is None}
        for name, value in values.items():
            if name in NOT_SAVED:
                self.error(f"option {name!r} belongs on the command line")
            if isinstance(value, (list, tuple)) and known[name].nargs in (None, "?"):
                self.error(f"option {name!r} takes one value, not the list {value}")
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
            raise ValueError(f"{name!r} is given twice")
        built[name] = value
    return built


def read_yaml(text: str) -> Any:
    """Read YAML, leaving everything but null the text that it is, as on the command line.

    YAML itself would make the text "1e-3" of 1e-3, but 8 of 010, and False of no.
    """
    import yaml

    def plain(node: yaml.Node | None) -> Any:
        if isinstance(node, yaml.MappingNode):
            return without_duplicates([(plain(name), plain(value)) for name, value in node.value])
        if isinstance(node, yaml.SequenceNode):
            return [plain(entry) for entry in node.value]
        return None if node is None or node.tag == "tag:yaml.org,2002:null" else node.value

    try:
        return plain(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def read_options(path: str | Path) -> dict[str, Any]:
    """Read a flat JSON or YAML file of options; UserError when it is missing, unreadable or not a flat mapping."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        is_yaml = str(path).endswith((".yaml", ".yml"))
        values = read_yaml(text) if is_yaml else json.loads(text, object_pairs_hook=without_duplicates)
    except OSError as error:
        raise UserError(f"Cannot read the option file {path}: {error.strerror}.") from None
    except (ValueError, TypeError, RecursionError) as error:  # TypeError: a list as a name
        raise UserError(f"Cannot read the option file {path}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"The option file {path} is not a mapping of option names to values.")
    nested = [name for name, value in values.items() if isinstance(value, dict)]
    if nested:
        raise UserError(f"The option file {path} is not flat: {nested[0]!r} holds a mapping.")
    return values


def saved_options(opt: argparse.Namespace) -> dict[str, Any]:
    """The options that a run is repeated from, flat."""
    return {name: value for name, value in vars(opt).items() if name not in NOT_SAVED}


def run_main(main: Callable[[], Any]) -> None:
    """Call `main`; a UserError ends with its one or two lines on stderr and its status, Ctrl-C with status 130."""
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        sys.exit(130)
