"""Run a trainer from the command line, in this process or in several."""

import gc
import os
from argparse import Namespace
from collections.abc import Sequence

from engine.devices.job import place
from engine.options.parser import run_main
from engine.registry import load


def launch(trainer_class: type, argv: Sequence[str] | None = None) -> None:
    """Train a task as its command line asks, and exit with the status of the run.

    Args:
        trainer_class: the task's.
        argv: the command line; None for this process's.
    """
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"  # set by a launcher, ours or another
    run_here = run_main if is_alone else load("extras.launch:run_one_of_several", "nproc")
    run_here(lambda: run(trainer_class, argv))


def run(trainer_class: type, argv: Sequence[str] | None) -> None:
    """Train in this process, or start several that train."""
    gc.freeze()  # imported modules stay to the end; the garbage collector need not look at them again and again
    opt = trainer_class.parse_options(argv)
    count = num_processes(opt)
    if count > 1 and place()[1] == 1:
        own_command = load("extras.launch:own_command", "nproc")
        start_processes = load("extras.launch:start_processes", "nproc")
        on_cpus = ["--gpu_devices", "cpu"] if opt.nproc > 1 else []
        start_processes([*own_command(argv), *on_cpus], count, opt.max_restarts)
    else:
        trainer_class(opt).train()


def num_processes(opt: Namespace) -> int:
    """Return the number of processes that the options ask for: --nproc, or one for each of several GPUs."""
    if opt.nproc > 1:
        return opt.nproc
    return len(opt.gpu_devices.split(",")) if opt.parallel in ("ddp", "fsdp") else 1
