"""Select the callbacks of a run."""

import importlib.util
import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from callbacks.callback import Callback
from callbacks.console import Console
from engine.registry import call, find, load, name_of, parameters_of
from utils.errors import UserError


def build_default_callbacks(opt: Namespace, run_dir: Path, logger: logging.Logger) -> list[Callback]:
    """Return the callbacks of every run: a progress bar on terminals, the console, and those of --logger."""
    callbacks: list[Callback] = []
    if sys.stderr.isatty():
        from callbacks.progress_bar import ProgressBar

        callbacks.append(ProgressBar(opt.n_epoch))
    callbacks.append(Console(logger, opt.monitor, opt.n_epoch))
    offered = {  # a logger gets those that it names among its parameters
        "run_dir": run_dir,
        "log_dir": run_dir / "summary",
        "path": run_dir / "metrics.csv",
        "options": vars(opt),
        "hparams": vars(opt),
        "project": opt.proj_name,
        "monitor": opt.monitor,
    }
    loggers = [find("logger", name) for name in dict.fromkeys(opt.logger) if name != "none"]
    return [*callbacks, *(call(logger, offered, {}, "--logger") for logger in loggers)]


def check_chosen(loggers: Sequence[str], callbacks: Sequence[str]) -> None:
    """Raise UserError when --logger contradicts itself or lacks a package, or --callbacks names no callback."""
    if "none" in loggers and len(loggers) > 1:
        raise UserError(f"--logger {' '.join(loggers)}: none stands alone.")
    if "wandb" in loggers and importlib.util.find_spec("wandb") is None:
        raise UserError("--logger wandb needs Weights & Biases, which is not installed: pip install wandb")
    for name in callbacks:
        own_class(name)


def own_class(name: str) -> type[Callback]:
    """Return the class that --callbacks names; UserError unless `logger` is the only argument that it needs."""
    made = find("callback", name)
    if not (isinstance(made, type) and issubclass(made, Callback)):
        raise UserError(f"--callbacks {name}: {name_of(made)} is no class derived from callbacks.callback.Callback.")
    needed = {p.name for p in parameters_of(made).values() if p.default is p.empty} - {"logger"}
    if needed:
        raise UserError(f"--callbacks {name}: it needs {', '.join(sorted(needed))}; only `logger` is given.")
    return made


# The callback of an option, imported when the option is given.
OF_OPTIONS = {
    "stop_below": "extras.callbacks.stop_below:StopBelow",
    "data_picture": "extras.callbacks.data_picture:DataPicture",
    "save_code": "extras.callbacks.save_code:SaveCode",
    "profile": "extras.callbacks.profiler:Profiler",
    "requeue": "extras.callbacks.requeue:Requeue",
}


def build_asked_for(opt: Namespace, logger: logging.Logger) -> list[Callback]:
    """Return the callbacks of --callbacks, and one for each option such as --stop_below and --profile."""
    callbacks: list[Callback] = []
    for name in opt.callbacks or []:
        callbacks.append(call(own_class(name), {"logger": logger}, {}, "--callbacks"))
    for option, reference in OF_OPTIONS.items():
        value = getattr(opt, option)
        if value is None or value is False:
            continue
        made = load(reference, option)
        callbacks.append(made(logger) if value is True else made(value, logger))
    return callbacks
