"""Let a function of a test run in several processes that train together.

The processes are forked off one that has imported everything once (see fork_server.py): a group of three starts in
half a second.
"""

import contextlib
import multiprocessing
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from tests import fork_server

TIMEOUT = 120  # seconds that a function may take; then it hangs


class FailedInProcess(AssertionError):
    """An error of a process, with its rank and its traceback."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def in_processes(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = TIMEOUT) -> list[Any]:
    """Return what `function(*arguments)` returns in each of `size` processes, in the order of the ranks.

    Args:
        size: how many; 1 also starts one.
        function: to be found by its name in a module; what it returns is pickled.
        timeout: seconds for all of it.

    Raises:
        FailedInProcess: when one raised, ended or hangs. All are ended then.
    """
    context = fork_server.context()
    port, ends, processes = free_port(), [], []
    for rank in range(size):
        here, there = context.Pipe(duplex=False)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        environment = {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        method = multiprocessing.get_start_method()
        process = context.Process(target=work, args=(there, environment, method, function, arguments))
        process.start()
        there.close()
        ends.append(here)
        processes.append(process)
    try:
        return collect(ends, time.monotonic() + timeout)
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()


def collect(ends: list[Connection], until: float) -> list[Any]:
    """Wait for the results of all, or for the first failure."""
    results: dict[int, Any] = {}
    while len(results) < len(ends):
        left = [end for rank, end in enumerate(ends) if rank not in results]
        ready = wait(left, until - time.monotonic())
        if not ready:
            raise FailedInProcess(f"Processes {[ends.index(end) for end in left]} hang.")
        for end in ready:
            rank = ends.index(end)
            try:
                succeeded, result = pickle.loads(end.recv_bytes())
            except EOFError:
                raise FailedInProcess(f"Process {rank} ended without a result.") from None
            if not succeeded:
                raise FailedInProcess(f"In process {rank}:\n{result}")
            results[rank] = result
    return [results[rank] for rank in range(len(ends))]


def work(
    end: Connection, environment: dict[str, Any], method: str, function: Callable[..., Any], arguments: tuple
) -> None:
    """Call the function in one of the processes."""
    import torch

    os.environ.update({name: str(value) for name, value in environment.items()})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the trainers log
    multiprocessing.set_start_method(method, force=True)  # of loading processes: not that of this one
    torch.set_num_threads(1)
    try:
        result = True, function(*arguments)
    except BaseException:
        result = False, traceback.format_exc()
    end.send_bytes(pickle.dumps(result))
    if result[0] and torch.distributed.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.distributed.barrier()  # or one would take the connections from under the others
            torch.distributed.destroy_process_group()
