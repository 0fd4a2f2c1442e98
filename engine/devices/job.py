"""A training job: the place of this process in it, and its start from the command line.

A launcher, torch's own or another, sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT
(https://docs.pytorch.org/docs/stable/elastic/run.html). Without them there is one process.
"""

import atexit
import gc
import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from engine.options.parser import run_main
from engine.registry import load
from utils.errors import UserError


class Place(NamedTuple):
    """The place of a process among those of its job."""

    rank: int = 0
    size: int = 1  # number of processes
    local_rank: int = 0  # on this machine
    local_size: int = 1


def place() -> Place:
    """Return the place of this process, as a launcher has set it.

    Raises:
        UserError: the variables are incomplete or do not fit together.
    """
    environment = os.environ
    if environment.get("WORLD_SIZE", "1") == "1":
        return Place()
    try:
        rank, size, _ = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        local_rank = int(environment.get("LOCAL_RANK") or 0)
        local_size = int(environment.get("LOCAL_WORLD_SIZE") or 1)
    except (KeyError, ValueError):
        raise UserError(
            "WORLD_SIZE is set, but RANK or MASTER_PORT is missing or no number: start the processes with torchrun, "
            "or unset WORLD_SIZE."
        ) from None
    if not 0 <= rank < size:
        raise UserError(f"RANK={rank} does not fit WORLD_SIZE={size}: ranks go from 0 to {size - 1}.")
    return Place(rank, size, local_rank, local_size)


# ---- start -----------------------------------------------------------------------------------------------------------
def launch(task: type, argv: Sequence[str] | None = None, work: Callable[[Namespace], Any] | None = None) -> None:
    """Train, or evaluate, a task as its command line asks, and exit with the status of the run.

    Args:
        task: the trainer's class, or the evaluator's.
        argv: the command line; None for this process's.
        work: is called with the options instead of training.
    """
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"  # set by a launcher, ours or another
    run_here = run_main if is_alone else load("extras.launch:run_one_of_several", "nproc")
    run_here(lambda: run(task, argv, work))


def run(task: type, argv: Sequence[str] | None, work: Callable[[Namespace], Any] | None = None) -> None:
    """Train, or do other work, in this process, or start several that do."""
    from engine.session import build_trainer  # here, as it imports torch

    gc.freeze()  # imported modules stay to the end; the garbage collector need not look at them again and again
    atexit.register(gc.unfreeze)  # else libraries that count what is freed at the end, as Triton does, report leaks
    opt = task.parse_options(argv)
    count = num_processes(opt)
    if count > 1 and place().size == 1:
        load("extras.launch:start_several", "nproc")(argv, opt, count)
    elif work:
        work(opt)
    else:
        build_trainer(task, opt).train()


def num_processes(opt: Namespace) -> int:
    """Return the number of processes that the options ask for: --nproc, or one for each of several GPUs."""
    if opt.nproc > 1:
        return opt.nproc
    return len(opt.gpu_devices.split(",")) if getattr(opt, "parallel", "") in ("ddp", "fsdp") else 1
