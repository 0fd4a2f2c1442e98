"""Start the processes of a job through torch's own elastic launcher, and report how they ended.

The launcher (https://docs.pytorch.org/docs/stable/elastic/run.html) watches the processes. When one ends badly it
ends the others, and starts all of them again if it is allowed to. It listens on the loopback interface only: its
key-value store has no password, and whoever reaches it can write to it.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from engine.devices import process_group as distributed
from engine.devices.process_group import attempt, job_store, place
from engine.options.parser import printable
from engine.runs.signals import exit_status
from utils.errors import DamagedError, DivergedError, PeerError, UserError

ENDED = "ended"  # the name under which the store keeps the status of a job that shall not be started again
HANDLED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
PATIENCE = 120  # seconds that processes have to save, after a signal, before they are killed


def own_command(argv: Sequence[str] | None) -> list[str]:
    """The command that this process was started with, after the interpreter's name.

    Args:
        argv: what the program was asked to take for its options; None for those of its command line.
    """
    given = sys.orig_argv[1:]  # with what the program may have taken away from sys.argv
    return given if argv is None or given[-len(argv) :] == list(argv) else [sys.argv[0], *argv]


def start_processes(arguments: Sequence[str], count: int, max_restarts: int = 0) -> None:
    """Run Python with these arguments in `count` processes, and end this one as they end.

    Args:
        arguments: of the interpreter: a program and its options.
        count: how many.
        max_restarts: how often they may be started again.

    Raises:
        PeerError: when one of them was killed.
        SystemExit: with their status, unless that is 0. They have said why.
    """
    # Imported here: it takes a second, and most runs have one process.
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they would tell of each end in thirty lines
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, max_restarts=max_restarts,
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", monitor_interval=0.1,
        signals_to_handle=",".join(name for name in HANDLED if hasattr(signal, name)), shutdown_timeout=PATIENCE,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        end_as(error.failures)
    except SignalException as error:
        sys.exit(exit_status(error.sigval))


def end_as(failures: dict) -> None:
    """End as the processes did that failed; `failures` has torch's records of them, by rank."""
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    # The launcher ends those that are left by SIGTERM, so another signal is nearer to the cause.
    killed = sorted((rank for rank, code in codes.items() if code < 0), key=lambda rank: codes[rank] == -signal.SIGTERM)
    statuses = [code for code in codes.values() if code > 0]
    if statuses and (not killed or codes[killed[0]] == -signal.SIGTERM):
        sys.exit(statuses[0])
    raise PeerError(
        f"Process {killed[0]} was ended by {signal.Signals(-codes[killed[0]]).name}, and so all were. Often the memory "
        f"ran out. To go on from the last checkpoint: --resume; to have that done by itself: --max_restarts."
    )


# ---- in a process of several -----------------------------------------------------------------------------------------
@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Around what a process does: an error that all have is told once, others with the rank; a decided end is final.

    When the launcher starts the processes again after they stopped on purpose, or for a reason that would come again,
    they end at once, as before.

    Raises:
        SystemExit: instead of a UserError that another process has told.
    """
    rank, size, _ = place()
    if size == 1:
        yield
        return
    end_with_parent()
    if attempt() and job_store().check([ENDED]):
        sys.exit(int(job_store().get(ENDED)))
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        status = 130 if isinstance(stop, KeyboardInterrupt) else stop.code
        with contextlib.suppress(Exception):  # a launcher that has died took its store with it
            if status:
                job_store().set(ENDED, str(status))
        raise
    except UserError as error:
        told = told_before(str(error))
        is_final = error.status in (UserError.status, DamagedError.status, DivergedError.status)
        with contextlib.suppress(Exception):  # the others may have taken the store with them
            if is_final:
                job_store().set(ENDED, str(error.status))
        if told:
            sys.exit(error.status)
        if rank:
            raise type(error)(f"[process {rank}] {error}") from None
        raise
    except Exception as error:
        error.add_note(f"This was in process {rank} of {size}.")
        raise


def run_to_the_end(main: Callable[[], None]) -> None:
    """Call `main`; in one of several processes, end it there and then, with the status that it would have.

    Threads of torch's that a process of several has now and then bring it down when Python tidies up at its end, which
    then counts as a failure of the whole job. All that was to be written is written by then.
    """
    status: Any = 0
    try:
        main()
    except SystemExit as end:
        if not distributed.num_joined:
            raise
        status = end.code
    if distributed.num_joined:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


def end_with_parent() -> None:
    """Have the system send SIGTERM to this process when the launcher dies; where it can, which is on Linux."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def told_before(message: str) -> bool:
    """Whether another process has told the same."""
    digest = hashlib.sha256(printable(message).encode()).hexdigest()
    try:
        return job_store().add(f"told {attempt()} {digest}", 1) > 1
    except Exception:  # no store, no agreement: tell it
        return False
