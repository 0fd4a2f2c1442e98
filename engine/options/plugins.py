"""Classes and functions of your own, by ``module:name`` or by a name that they are registered under.

    --model_type my_package.my_module:MyNet

    @register_model("mynet")        # in my_module.py; then --import my_module --model_type mynet
    class MyNet(nn.Module): ...

A module is imported because a person has named it: on the command line, in an option file, or in the task's own code.
What only a checkpoint names is never imported, see `unrepeated`.
"""

import importlib
import json
import re
import shlex
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.options.arguments import told
from utils.errors import UserError, nearest, shown

# What can be of your own, the option that selects it, and the option with its arguments.
KINDS = {
    "data": ("data_type", "data_args"), "model": ("model_type", "model_args"), "loss": ("loss_type", "loss_args"),
    "optimizer": ("optim", "optim_args"), "scheduler": ("lr_scheduler", "scheduler_args"),
    "callback": ("callbacks", None),
}  # fmt: skip
PREFIXES = ("torchvision", "timm")  # what stands before the colon in names of the template's own
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
REFERENCE = re.compile(rf"(?P<module>{MODULE.pattern}):(?P<name>[^\W\d]\w*)")
REGISTERED: dict[str, dict[str, Callable]] = {kind: {} for kind in KINDS}


# ---- names -----------------------------------------------------------------------------------------------------------
def is_reference(text: Any) -> bool:
    """Whether a text is ``module:name``.

    >>> is_reference("my_package.nets:MyNet"), is_reference("ce:0.5"), is_reference("torchvision:resnet18")
    (True, False, False)
    """
    found = REFERENCE.fullmatch(text) if isinstance(text, str) and len(text) <= 200 else None
    return bool(found) and found["module"] not in PREFIXES


def reference_in(text: Any) -> str | None:
    """The ``module:name`` that a text is, or begins with: a loss may have a weight behind it.

    >>> reference_in("my_losses:Focal:0.5"), reference_in("my_losses:Focal"), reference_in("Dice:0.5")
    ('my_losses:Focal', 'my_losses:Focal', None)
    """
    first = ":".join(text.split(":")[:2]) if isinstance(text, str) else None
    return first if is_reference(first) else None


def module_name(text: str) -> str:
    """An argparse type for the name of a module."""
    if not MODULE.fullmatch(text) or len(text) > 200:
        raise ArgumentTypeError(f"{shown(text)} is not the name of a module, such as my_package.my_module")
    return text


def one_of_or_own(names: Iterable[str], more: Iterable[str] = (), text_of_more: str = "") -> Callable:
    """Return an argparse type that takes one of `names`, one of `more`, or ``module:name``.

    Args:
        names: what exists, to be listed.
        more: what exists besides, such as torch's classes.
        text_of_more: what these are called in a message.
    """
    names, more = list(names), list(more)

    def convert(text: str) -> str:
        if text not in names and text not in more and not is_reference(text):
            exist = [f"one of {', '.join(names)}"] * bool(names) + [f"{text_of_more}: {', '.join(more)}"] * bool(more)
            hint = nearest(text[:60], [*more, *names])
            or_own = f"{'; or ' if exist else ''}MODULE:NAME of your own"
            raise ArgumentTypeError(f"{shown(text)} is not {'; '.join(exist)}{or_own}{hint}")
        return text

    return convert


def choices(kind: str, names: Iterable[str]) -> list[str]:
    """`names`, and those that are registered; UserError when a registered one would hide one of them."""
    names = list(names)
    if doubled := [name for name in REGISTERED[kind] if name in names]:
        raise UserError(f"A {kind} is registered as {doubled[0]!r}, but the template has one of this name: rename it.")
    return [*names, *REGISTERED[kind]]


def short_name(text: str) -> str:
    """A name for files: what stands behind the colon."""
    return text.rpartition(":")[2]


# ---- registered ------------------------------------------------------------------------------------------------------
def register(kind: str, name: str) -> Callable:
    """Return a decorator that makes `name` a choice of the option that selects a `kind`, a key of `KINDS`.

    Raises:
        ValueError: when the name cannot be one, or is taken by another class.
    """
    if not re.fullmatch(r"\w[\w.-]*", name) or len(name) > 100:
        raise ValueError(f"register_{kind}({name!r}): a name has letters, digits, _ . and -, at most 100")

    def decorate(made: Callable) -> Callable:
        before = REGISTERED[kind].get(name, made)
        if (before.__module__, before.__qualname__) != (made.__module__, made.__qualname__):
            raise ValueError(f"register_{kind}({name!r}): {before.__module__}.{before.__qualname__} has this name")
        REGISTERED[kind][name] = made
        return made

    return decorate


def register_model(name: str) -> Callable:
    """Decorate what returns the network: a module's class, or a function. Then ``--model_type name``."""
    return register("model", name)


def register_data(name: str) -> Callable:
    """Decorate what returns the data: a function, or a Dataset's class that takes `part`. Then ``--data_type name``."""
    return register("data", name)


def register_loss(name: str) -> Callable:
    """Decorate what returns the loss module: its class, or a function. Then ``--loss_type name``."""
    return register("loss", name)


def register_optimizer(name: str) -> Callable:
    """Decorate an optimizer's class. Then ``--optim name``."""
    return register("optimizer", name)


def register_scheduler(name: str) -> Callable:
    """Decorate a scheduler's class. Then ``--lr_scheduler name``."""
    return register("scheduler", name)


def register_callback(name: str) -> Callable:
    """Decorate a callback's class. Then ``--callbacks name``."""
    return register("callback", name)


# ---- import ----------------------------------------------------------------------------------------------------------
def import_module(name: str, asked: str) -> Any:
    """Import a module from the Python path, then from the current directory.

    Args:
        name: the module.
        asked: what asks for it, for messages.

    Raises:
        UserError: when there is none, or it ends in an error.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that no file here takes the place of a package
    try:
        return importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise UserError(f"{asked}: there is no module {missing!r} on the Python path or in {here}.") from None
        raise UserError(f"{asked}: the module {name} cannot be imported: {told(error)}") from error


def load(reference: str, option: str) -> Callable:
    """Import what a ``module:name`` of an option names; UserError when it is not there, or cannot be called."""
    found, asked = REFERENCE.fullmatch(reference), f"--{option} {reference}"
    module = import_module(found["module"], asked)
    if not hasattr(module, found["name"]):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        listed = f"; it has {', '.join(names[:20])}" if names else ""
        hint = nearest(found["name"], names)
        raise UserError(f"{asked}: the module {module.__name__} has no {found['name']!r}{hint}{listed}.")
    made = getattr(module, found["name"])
    if not callable(made):
        raise UserError(f"{asked} is neither a class nor a function: it is of type {type(made).__name__}.")
    return made


def find_own(kind: str, name: str) -> Callable | None:
    """What a name of `kind` stands for, if it is registered or ``module:name``; None for a name of the template's."""
    return load(name, KINDS[kind][0]) if is_reference(name) else REGISTERED[kind].get(name)


def load_all(values: Mapping[str, Any]) -> None:
    """Import all that resolved options name, so that what is not there is told before anything is made."""
    for kind, (option, _) in KINDS.items():
        for reference in filter(None, map(reference_in, as_list(values.get(option)))):
            find_own(kind, reference)


# ---- what a checkpoint names -----------------------------------------------------------------------------------------
def as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def unrepeated(saved: Mapping[str, Any], own: Mapping[str, Any], asked: Iterable[str], is_foreign: bool) -> list[str]:
    """What a checkpoint's options would have imported, and nobody else has named, as flags to be repeated.

    Args:
        saved: the options of the checkpoint.
        own: the options without it.
        asked: the names of those that the command line and the option files give.
        is_foreign: the checkpoint does not stand in its run's directory; then the arguments of what is of your own, in
            which there may be a path to write to, are to be repeated as well.
    """
    flags: list[str] = []

    def repeat(option: str) -> None:
        if option in saved and option not in asked and saved[option] != own.get(option):
            value = saved[option]
            texts = [json.dumps(value)] if isinstance(value, dict) else map(str, as_list(value))
            flags.append(" ".join([f"--{option}", *map(shlex.quote, texts)]))

    if saved.get("import"):
        repeat("import")
    for kind, (option, arguments) in KINDS.items():
        texts = as_list(saved.get(option))
        if any(map(reference_in, texts)):
            repeat(option)
        if is_foreign and arguments and saved.get(arguments):
            final = as_list(own.get(option) if option in asked else saved.get(option))
            if any(reference_in(text) or (isinstance(text, str) and text in REGISTERED[kind]) for text in final):
                repeat(arguments)
    return flags


def refuse_unrepeated(flags: Sequence[str], path: str | Path) -> None:
    """Raise UserError when `unrepeated` has found something."""
    if flags:
        raise UserError(
            f"The checkpoint {path} names code of somebody's own, which is imported only when you name it yourself. "
            f"If you trust it, repeat: {' '.join(flags)[:500]}"
        )
