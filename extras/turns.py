"""Let processes take turns at work whose result they share, such as a download or a cache."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from engine.runs.lock import NO_LOCKS

PATIENCE = 2.0  # seconds before a waiting process prints a message


@contextlib.contextmanager
def locked(path: str | Path, what: str) -> Iterator[bool]:
    """Wait for a lock file and hold it in the block; threads of one process take turns, too.

    Args:
        path: the lock file, which stays.
        what: the holder's work, such as "downloads FashionMNIST", for a message to those who wait for long.

    Yields:
        Whether no other process can be in the block: False on a file system without locks.

    Raises:
        OSError: the file cannot be made or opened.
    """
    lock = FileLock(path, thread_local=False)
    try:
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            print(f"Waiting for another process that {what} ...", file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield lock.is_locked
    finally:
        lock.release()
