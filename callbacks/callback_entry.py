"""Select the callbacks of a run."""

import logging
import sys
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from callbacks.callback import Callback
from callbacks.console import Console
from callbacks.csv_logger import CSVLogger
from callbacks.progress_bar import ProgressBar
from callbacks.tensorboard import TensorBoard
from data.choose_workers import usable_cores
from data.memory import is_in_memory
from utils.advice import data_advice


def build_default_callbacks(opt: Namespace, run_dir: Path, logger: logging.Logger) -> list[Callback]:
    """Return what watches every run, unless the task says otherwise: a bar on terminals, the log, the curves."""
    return [
        *([ProgressBar(opt.n_epoch)] if sys.stderr.isatty() else []),
        Console(logger, opt.monitor, opt.n_epoch, partial(advise, vars(opt))),
        TensorBoard(run_dir / "summary", vars(opt), opt.monitor),
        CSVLogger(run_dir / "metrics.csv"),
    ]


def advise(options: Mapping[str, Any], trainer, share: float) -> str:
    """What to change when a run with these options spends this share of an epoch on waiting for data."""
    return data_advice(
        share,
        options["num_workers"],
        usable_cores(),
        was_measured=bool(getattr(trainer.train_loader, "report", "")),
        in_memory=is_in_memory(trainer.datasets["train"]),
        can_cache=options.get("data_type") == "Carvana" and options.get("cache") is False,
        can_move=options.get("data_device") == "cpu" and trainer.device.type == "cuda",
        patch_size=options.get("patch_size"),
    )


def build_asked_for(opt: Namespace, logger: logging.Logger) -> list[Callback]:
    """Return a callback for each of --requeue, --profile, --trace and --kill_at that is given, whatever the task's."""
    callbacks: list[Callback] = []
    if opt.profile:
        from callbacks.profiler import Profiler

        callbacks.append(Profiler(opt.profile, logger))
    if opt.requeue:
        from callbacks.requeue import Requeue

        callbacks.append(Requeue(logger))
    if opt.trace:
        from callbacks.trace import Trace

        callbacks.append(Trace(opt.trace))
    if opt.kill_at:
        from callbacks.kill import Kill

        callbacks.append(Kill(opt.kill_at))
    return callbacks
