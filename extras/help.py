"""Print the options that most runs need with --help, and the others with --help all, --help GROUP or --help NAME."""

import argparse
import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.options.parser import BoolAction, OptionParser, boolean
from extras.wrong_names import of_name
from utils.errors import shown

FEW = 40  # options, of a program that shows all of them
TRAINING = {
    "data and network": (
        "data_type", "data_dir", "image_size", "patch_size", "augment", "model_type", "pretrained", "loss_type",
        "metrics",
    ),
    "training": (
        "n_epoch", "batch_size", "lr", "optim", "weight_decay", "lr_scheduler", "warmup_epoch", "clip", "patience",
    ),
    "machine": ("gpu_devices", "amp", "num_workers", "micro_batch_size", "seed"),
    "run": ("output_dir", "resume", "monitor", "config", "debug"),
}  # fmt: skip
EVALUATION = {
    "evaluation": ("run", "split", "metrics", "save_path", "viz", "use_average"),
    "data": ("data_type", "data_dir", "train_val_sample_rate", "test_sample_rate"),
    "machine": ("gpu_devices", "amp", "num_workers", "eval_batch_size", "nproc"),
    "other": ("config", "debug"),
}


def print_help(parser: OptionParser, what: str | None) -> None:
    """Print the help of a program.

    Args:
        parser: of the program.
        what: None for the usual options; "all"; a group, by the first word of its title; or an option.

    An unknown `what` ends the program as a wrong option does.
    """
    what = (what or "").strip("-").replace("-", "_")
    if what == "elp":  # of -help
        what = ""
    group = what.lower().replace("_", "-")
    groups = groups_of(parser)
    is_large = len(parser.known) > FEW
    if is_large:
        parser.usage = f"%(prog)s {'[RUN] ' if 'run' in parser.known else ''}[options]"
    if group in groups:
        print(sections_of(parser, groups[group]), end="")
    elif what in parser.known:
        print(sections_of(parser, {"": [parser.known[what]]}), end="")
    elif what == "all" or not (what or is_large):
        parser.print_help()
    elif not what:
        print(usual_help(parser, groups), end="")
    else:
        hint = of_name(what, "", [*parser.known, *groups])
        parser.error(f"--help {shown(what)}: no group or option has this name{hint}; the groups: {', '.join(groups)}")


def groups_of(parser: OptionParser) -> dict[str, dict[str, list[argparse.Action]]]:
    """Return groups of options with their titles, by the first words of these, in lower case."""
    groups: dict[str, dict[str, list[argparse.Action]]] = {}
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            word = re.match(r"[\w-]*", group.title)[0].lower()
            groups.setdefault(word, {})[group.title] = actions
    return groups


def usual_help(parser: OptionParser, groups: Mapping[str, Any]) -> str:
    """Return the usual options in one line each, where it is wide enough, and how to see the others."""
    usual = TRAINING if "n_epoch" in parser.known else EVALUATION
    sections = {}
    for title, names in usual.items():
        sections[title] = [shortened(parser.known[name]) for name in names if name in parser.known]
    sections["of this task"] = groups.get("options", {}).get("options", [])  # those that no group holds
    words = [word for word in groups if word not in ("options", "positional")]
    more = f"--help all shows all {len(parser.known)} options, --help NAME one of them, --help GROUP those of a group: "
    return sections_of(parser, sections, more + ", ".join(words))


def sections_of(parser: OptionParser, sections: Mapping[str, Sequence[argparse.Action]], end: str = "") -> str:
    """Return a help text with these sections; with an end, also with the usage and the description."""
    formatter = parser._get_formatter()
    if end:
        formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
        formatter.add_text(parser.description)
    for title, actions in sections.items():
        formatter.start_section(title or None)
        formatter.add_arguments(actions)
        formatter.end_section()
    formatter.add_text(end)
    return formatter.format_help()


def shortened(action: argparse.Action) -> argparse.Action:
    """Return a copy of an option whose help is short: one name, and none of the names that libraries add."""
    short = copy.copy(action)
    if action.default is not True:  # else the name that turns it off is the useful one
        short.option_strings = [text for text in action.option_strings if not text.startswith("--no-")]
    ways = action.help.split("; or ")
    short.help = "; or ".join(way for way in ways if not way.startswith(("MODULE:NAME", "of torch.")))
    if isinstance(action, BoolAction):
        short.nargs = 0 if action.type is boolean else None
    elif action.nargs in ("+", "*"):
        short.nargs = None
        short.metavar = f"{action.metavar} ..."
    if isinstance(action.default, list):
        short.default = " ".join(map(str, action.default))
    elif action.default is False:
        short.default = None
    return short
