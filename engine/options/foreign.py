"""Take the options of a checkpoint as data: it may come from elsewhere.

It may name components of the registry and give them plain arguments. Code, an address, or a path that it names is used
only if a person names it as well, on the command line, in an option file, or in the task; or has named it for the run
of the checkpoint, which has signed it then, see extras/own_runs.py.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import registry
from engine.options.parser import OptionParser, file_path
from utils.errors import UserError, shown

WORD = re.compile(r"[\w+ -]{0,100}")  # a text that is neither a path nor an address
OF_FILES = re.compile(r"weights|pretrained.*|(.*_)?(dir|path|file|url|root|download)")  # arguments that lead to files
OF_WEIGHTS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")  # of timm
METRICS = ("torchmetrics.classification", "torchmetrics.regression", "torchmetrics.segmentation")  # download nothing
NOT_HERE = "The --data_dir of"  # how a note on moved data begins
SELECTING = {option: kind for kind, (option, _) in registry.KINDS.items()}


def harmless_options(
    saved: Mapping[str, Any],
    path: str | Path,
    new_parser: Callable[[], OptionParser],
    argv: Sequence[str] | None,
    notes: list[str],
) -> dict[str, Any]:
    """Return the options of a checkpoint without paths where something would be written.

    Args:
        saved: the options.
        path: the checkpoint.
        new_parser: makes a parser of the program that reads the checkpoint.
        argv: its command line.
        notes: gets a line for the log when the data is not where it was.

    Raises:
        UserError: an option is more than data, and nobody has repeated it.
    """
    own = vars(new_parser().resolve(argv))
    signed = registry.load("extras.own_runs:signed_values", "model_path")(path, saved)
    if saved.get("import") and saved["import"] != own["import"]:  # it may register names that are unknown so far
        if "import" not in signed:
            raise refusal(path, {"import": saved["import"]})
        for module in saved["import"]:
            registry.import_module(module, f"--import {module}")
    parser = new_parser()
    both = vars(parser.resolve(argv, [(saved, str(path))]))
    harmless, to_repeat = {}, {}
    for name, value in saved.items():
        is_path = name in parser.known and parser.known[name].type is file_path
        if name not in both or both[name] == own[name]:
            harmless[name] = value  # the checkpoint changes nothing
        elif name not in signed and ("://" in str(value) if is_path else not is_data(name, both, own)):
            to_repeat[name] = value
        elif not is_path or (name == "data_dir" and (name in signed or Path(value).exists())):  # it is only read
            harmless[name] = without_weights(value) if name == "model_args" else value
        elif name == "data_dir":
            notes.append(f"{NOT_HERE} {path} is not here: {shown(value)}. Going on with {own[name]}.")
    if to_repeat:
        raise refusal(path, to_repeat)
    return harmless


def refusal(path: str | Path, to_repeat: Mapping[str, Any]) -> UserError:
    """Return the error that asks a person to repeat options of a checkpoint."""
    flags = []
    for name, value in to_repeat.items():
        texts = [json.dumps(value)] if isinstance(value, Mapping) else map(str, registry.as_list(value))
        flags.append(" ".join([f"--{name}", *map(shlex.quote, texts)]))
    return UserError(
        f"The checkpoint {path} names user code, a path or an address, which is used only when you name it yourself. "
        f"If you trust it, repeat: {' '.join(flags)[:500]}"
    )


def without_weights(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network without those of its first weights, which a checkpoint replaces."""
    return {name: value for name, value in arguments.items() if name not in OF_WEIGHTS}


def class_weights_in(arguments: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the numbers in --loss_args that weigh classes, which a loss keeps in its state."""
    return [leaf for leaf in leaves(arguments) if leaf[0] in ("weight", "pos_weight")]


def differ(name: str, value: Any, other: Any) -> bool:
    """Say whether two values of an option mean different runs."""
    if name == "model_args":
        return without_weights(value or {}) != without_weights(other or {})
    if name == "loss_args":  # an evaluation takes only the weights of the classes from the checkpoint
        return class_weights_in(value) != class_weights_in(other)
    return value != other


def is_data(name: str, both: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Say whether an option of a checkpoint selects only what is known, with plain arguments.

    Args:
        name: of the option.
        both: the options with the checkpoint.
        own: the options without it; arguments that are the same in both are harmless.
    """
    value = both[name]
    if name == "data_type" and value == "FashionMNIST":
        from data.FashionMNIST import find_all_files  # here, as it imports torch

        return bool(find_all_files(both["data_dir"]))  # else it would be downloaded
    if name == "data_type" and value.partition(":")[0] in registry.LIBRARIES["data"]:
        return False  # the library may download it
    if name in SELECTING:
        references = filter(None, (registry.reference_in(entry) for _, entry in leaves(value)))  # maybe by network
        return all(reference.partition(":")[0] in METRICS for reference in references)
    if isinstance(value, Mapping) and name != "columns":  # of a table: texts and numbers of no component
        arguments = without_weights(value) if name == "model_args" else value
        known = own[name] if isinstance(own[name], Mapping) else {}  # a rate of all networks is none
        theirs = {key: entry for key, entry in arguments.items() if key not in known or known[key] != entry}
        return all(is_plain(key, entry) for key, entry in leaves(theirs))
    return True


def is_plain(name: str, value: Any) -> bool:
    """Say whether an argument of a component can lead neither to a file nor to an address."""
    if not value or (isinstance(value, (int, float)) and value is not True):
        return True
    return not OF_FILES.fullmatch(name) and (value is True or bool(WORD.fullmatch(value)))


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the single values in nested lists and mappings, each with the name of its argument."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from leaves(entry, key)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from leaves(entry, name)
    else:
        yield name, value
