"""A training job: its start from the command line, the place of this process in it, and its key-value store.

A launcher, torch's own or another, sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT
(https://docs.pytorch.org/docs/stable/elastic/run.html). Without them there is one process, and no store.
"""

import gc
import json
import os
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from engine.options.parser import run_main
from engine.registry import load
from utils.errors import PeerError, UserError

DEFAULT_TIMEOUT = 600.0  # seconds
RUN = "run"  # the store's key of what a later attempt needs

_store: Any = None  # once it was reached


def place() -> tuple[int, int, int]:
    """Return the rank, the number of processes, and the rank on this machine; (0, 1, 0) without a launcher.

    Raises:
        UserError: the variables are incomplete or do not fit together.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 0, 1, 0
    try:
        rank, size, _ = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        local_rank = int(os.environ.get("LOCAL_RANK") or 0)
    except (KeyError, ValueError):
        raise UserError(
            "WORLD_SIZE is set, but RANK or MASTER_PORT is missing or no number: start the processes with torchrun, "
            "or unset WORLD_SIZE."
        ) from None
    if not 0 <= rank < size:
        raise UserError(f"RANK={rank} does not fit WORLD_SIZE={size}: ranks go from 0 to {size - 1}.")
    return rank, size, local_rank


def local_place() -> tuple[int, int]:
    """Return the rank and the number of processes on this machine."""
    _, size, local_rank = place()
    return local_rank, int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if size > 1 else 1


def attempt() -> int:
    """Return how often the launcher has restarted the processes of this job after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def job_store(timeout: float = DEFAULT_TIMEOUT) -> Any:
    """Return the job's key-value store, which the launcher keeps over all attempts; None for a single process.

    Raises:
        PeerError: there is no answer within about `timeout` seconds, or the port is taken.
    """
    from datetime import timedelta

    import torch.distributed as dist

    global _store
    if _store is None and place()[1] > 1:
        try:
            _store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
        except (dist.DistError, RuntimeError, ValueError, OSError) as error:
            reason = f"no answer within {timeout:g} seconds (--dist_timeout). Is process 0 started, the address right?"
            if "EADDRINUSE" in str(error):
                reason = "another program uses the port. Choose another one."
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ['MASTER_PORT']}"
            raise PeerError(f"The processes cannot meet at {address} (MASTER_ADDR:MASTER_PORT): {reason}") from None
    return _store


def earlier_run() -> dict[str, Any]:
    """Return what an earlier attempt stored: "run_dir" and "seed"; empty at the first attempt."""
    if not attempt() or place()[1] == 1 or not job_store().check([RUN]):
        return {}
    return json.loads(job_store().get(RUN))


# ---- start -----------------------------------------------------------------------------------------------------------
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
