"""Start the processes of a job through torch's own elastic launcher, and report how they ended.

The launcher (https://docs.pytorch.org/docs/stable/elastic/run.html) watches the processes. When one ends badly it
ends the others, and starts all of them again if it is allowed to. No other machine can reach it or the processes: see
extras/one_machine.py.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from engine.devices.job import place
from engine.options.parser import printable, run_main
from engine.registry import load
from engine.runs.signals import exit_status
from extras.job_store import attempt, job_store
from utils.errors import DamagedError, DivergedError, PeerError, UserError

ENDED = "ended"  # the store's key of the status of a job that must not be restarted
HANDLED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
PATIENCE = 120  # seconds that processes have to save, after a signal, before they are killed


def own_command(argv: Sequence[str] | None) -> list[str]:
    """Return the command of this process, after the interpreter's name.

    Args:
        argv: the options that the program was called with; None for those of the command line.
    """
    typed = sys.orig_argv[1:]  # also what the program may have removed from sys.argv
    return typed if argv is None or typed[-len(argv) :] == list(argv) else [sys.argv[0], *argv]


def start_several(argv: Sequence[str] | None, opt: Namespace, count: int) -> None:
    """Run the program of this process in `count` processes.

    Args:
        argv: see `own_command`.
        opt: what they resolve to.
        count: number of processes.
    """
    on_cpus = ["--gpu_devices", "cpu"] if opt.nproc > 1 else []
    start_processes([*own_command(argv), *on_cpus], count, getattr(opt, "max_restarts", 0))


def start_processes(arguments: Sequence[str], count: int, max_restarts: int = 0) -> None:
    """Run Python with these arguments in `count` processes, and end this one as they end.

    Args:
        arguments: of the interpreter: a program and its options.
        count: number of processes.
        max_restarts: how often they may be restarted.

    Raises:
        PeerError: one of them was killed.
        SystemExit: with their status, unless that is 0; they have printed the reason.
    """
    # Imported here: it takes a second, and the processes that are started need none of it.
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from extras.one_machine import keep_to_one_machine

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # they would print thirty lines about each end
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        max_restarts=max_restarts,
        rdzv_backend=keep_to_one_machine(),
        local_addr="127.0.0.1",
        monitor_interval=0.1,
        signals_to_handle=",".join(name for name in HANDLED if hasattr(signal, name)),
        shutdown_timeout=PATIENCE,
    )
    try:
        with children_woken():
            elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        end_as(error.failures)
    except SignalException as error:
        sys.exit(exit_status(error.sigval))


@contextlib.contextmanager
def children_woken() -> Iterator[None]:
    """In the block, a signal to this process wakes its stopped children.

    A process that was stopped (SIGSTOP) cannot obey the signal that the launcher passes on, and the others would wait
    for it until all are killed, without a checkpoint.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        while reader.recv(64):
            wake_children()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        writer.shutdown(socket.SHUT_WR)
        thread.join()
        reader.close()
        writer.close()


def wake_children() -> None:
    """Let stopped children of this process go on, where the system lists them: on Linux."""
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in path.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGCONT)


def end_as(failures: dict) -> None:
    """End as the failed processes did; `failures` has torch's records of them by rank."""
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    by_signal = {rank: -code for rank, code in codes.items() if code < 0}
    # The launcher ends the others by SIGTERM, so another signal is nearer to the cause.
    killed = {rank: signum for rank, signum in by_signal.items() if signum != signal.SIGTERM}
    for code in codes.values():
        if code > 0 and not killed:
            sys.exit(code)
    rank, signum = min((killed or by_signal).items())
    raise PeerError(
        f"Process {rank} was ended by {signal.Signals(signum).name}, and so all were. Often the memory ran out. To go "
        f"on from the last checkpoint: --resume; to have that done automatically: --max_restarts."
    )


# ---- in a process of several -----------------------------------------------------------------------------------------
@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Report an error once if all processes have it, else with the rank; and let no restart repeat a final end.

    An end is final if it was requested, or if its reason would recur. A process that is restarted nevertheless
    ends at once with the same status.

    Raises:
        SystemExit: instead of a UserError that another process has reported.
    """
    rank, size, _, _ = place()
    end_with_parent()
    if attempt() and job_store().check([ENDED]):
        sys.exit(int(job_store().get(ENDED)))
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        store_end(130 if isinstance(stop, KeyboardInterrupt) else stop.code)
        raise
    except PeerError:
        raise  # it names the process, and the store may be gone
    except UserError as error:
        is_reported = is_reported_already(str(error))
        if error.status in (UserError.status, DamagedError.status, DivergedError.status):
            store_end(error.status)
        if is_reported:
            sys.exit(error.status)
        if rank:
            raise type(error)(f"[process {rank}] {error}") from None
        raise
    except Exception as error:
        error.add_note(f"This was in process {rank} of {size}.")
        raise


def store_end(status: int | str | None) -> None:
    with contextlib.suppress(Exception):  # a launcher that has died took its store with it
        if status:
            job_store().set(ENDED, str(status))


def is_reported_already(message: str) -> bool:
    """Return whether another process has reported the same error in this attempt."""
    line = message.splitlines()[0]  # process 0 may add a second one, on the file that it has written
    digest = hashlib.sha256(printable(line).encode()).hexdigest()
    try:
        return job_store().add(f"reported {attempt()} {digest}", 1) > 1
    except Exception:  # without a store each process reports it
        return False


def run_one_of_several(main: Callable[[], None]) -> None:
    """Call `main` in one of several processes, report what it raises, and end the process with its status.

    The process ends there and then: threads of torch in such a process now and then crash while Python shuts down,
    which would count as a failure of the job.
    """

    def reporting() -> None:
        with reported():
            main()
            load("extras.several_processes:end_group", "nproc")()  # here, as it imports torch

    status: int | str | None = 0
    try:
        run_main(reporting)
    except SystemExit as end:
        status = end.code
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def end_with_parent() -> None:
    """Have the system send SIGTERM to this process when the launcher dies, where it can: on Linux."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
