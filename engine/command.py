"""Run a trainer from the command line, in this process or in several."""

import gc
from argparse import Namespace
from collections.abc import Sequence

from engine.devices.job import place
from engine.devices.launch import own_command, reported, run_to_the_end, start_processes
from engine.options.parser import run_main


def launch(trainer_class: type, argv: Sequence[str] | None = None) -> None:
    """Train a task as its command line asks, and exit with the status of the run.

    Args:
        trainer_class: the task's.
        argv: the command line; None for this process's.
    """
    run_to_the_end(lambda: run_main(lambda: run(trainer_class, argv)))


def run(trainer_class: type, argv: Sequence[str] | None) -> None:
    """Train in this process, or start several that train."""
    gc.freeze()  # imported modules stay to the end; the garbage collector need not look at them again and again
    with reported():
        opt = trainer_class.parse_options(argv)
        if (count := num_processes(opt)) > 1 and place()[1] == 1:
            on_cpus = ["--gpu_devices", "cpu"] if opt.nproc > 1 else []
            start_processes([*own_command(argv), *on_cpus], count, opt.max_restarts)
        else:
            trainer_class(opt).train()


def num_processes(opt: Namespace) -> int:
    """Return the number of processes that the options ask for: --nproc, or one for each of several GPUs."""
    of_gpus = len(opt.gpu_devices.split(",")) if opt.parallel in ("ddp", "fsdp") else 1
    return opt.nproc if opt.nproc > 1 else of_gpus
