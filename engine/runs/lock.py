"""Locks between processes, of the kind that a dead process does not keep.

They are POSIX record locks: the system frees them when the process ends, even by SIGKILL, and forked processes, such as
those that load data and may outlive it by seconds, do not inherit them, as they would those of `flock`. Two things
follow. The system lets a process take its own lock again; the table `HELD` knows that it has it. And a process loses
its lock when it opens and closes the lock file by other means, so nothing but this module should read it.

Lock files stay: whoever deleted one could delete it from under a process that has just opened it.
"""

import contextlib
import errno
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.errors import UserError

LOCK_FILE = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # what a file system without locks answers
OUT_OF_THE_WAY = 1 << 30  # Windows keeps others from reading what is locked, so there it is a byte behind the text
PATIENCE = 2.0  # seconds before a process that waits says so

HELD: dict[tuple[int, int, int], list[int]] = {}  # (process, device, file): [descriptor, how often it was taken]
HELD_GUARD = threading.Lock()


# ---- the system's part -----------------------------------------------------------------------------------------------
def try_lock(descriptor: int) -> bool:
    """Lock an open file; False when another process has. OSError with one of `NO_LOCKS` where there are no locks."""
    try:
        if hasattr(os, "lockf"):
            os.lockf(descriptor, os.F_TLOCK, 0)
        else:
            import msvcrt

            os.lseek(descriptor, OUT_OF_THE_WAY, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, both are in use
        return False
    return True


def is_locked_by_another(descriptor: int) -> bool:
    """Whether another process has locked an open file."""
    if hasattr(os, "lockf"):
        try:
            os.lockf(descriptor, os.F_TEST, 0)
        except (BlockingIOError, PermissionError):
            return True
        return False
    return not try_lock(descriptor)  # Windows cannot ask; closing the file frees it again


def open_lock_file(path: Path) -> int:
    """Open a lock file, making it if it is not there; what is a link is refused, for it could lead anywhere."""
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)


def write_holder(descriptor: int) -> None:
    """Write who holds the lock, for the message to others; on a full disk they will not know."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())


# ---- taking and giving back ------------------------------------------------------------------------------------------
def key_of(status: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), status.st_dev, status.st_ino  # with the process, since a fork copies the table, not the locks


def held_key(path: Path) -> tuple[int, int, int] | None:
    """The key in `HELD` of a lock file, None when this process does not hold it. Does not open the file."""
    try:
        key = key_of(os.stat(path, follow_symlinks=False))
    except OSError:
        return None
    return key if key in HELD else None


def read_holder(path: Path) -> str:
    """Who holds a lock that was refused, such as "process 123 on node7", as far as it is known."""
    with HELD_GUARD:
        if held_key(path):
            return "another part of this process"
        try:
            with open(path, "rb") as file:
                text = file.read(200).decode("utf-8", errors="replace")
        except OSError:
            text = ""
    found = re.match(r"([0-9]{1,10}) ([\w.-]{1,100})$", text)
    return f"process {found[1]} on {found[2]}" if found else "its process is not known"


def take(path: Path, share: bool) -> tuple[int, int, int] | None:
    """Take the lock on a file; return its key for `give_back`, or None when it is held.

    Args:
        path: the lock file.
        share: whether to take it also when it is held by this process.

    Raises:
        OSError: when the file cannot be made or opened; with one of `NO_LOCKS` where it cannot be locked.
    """
    with HELD_GUARD:
        if key := held_key(path):
            if not share:
                return None
            HELD[key][1] += 1
            return key
        descriptor = open_lock_file(path)
        is_taken = False
        try:
            is_taken = try_lock(descriptor)
            key = key_of(os.fstat(descriptor))
        finally:
            if not is_taken:
                os.close(descriptor)
        if not is_taken:
            return None
        write_holder(descriptor)
        HELD[key] = [descriptor, 1]
        return key


def give_back(key: tuple[int, int, int]) -> None:
    """Give back a lock as often as it was taken, and it is free."""
    with HELD_GUARD:
        HELD[key][1] -= 1
        if HELD[key][1] == 0:
            descriptor, _ = HELD.pop(key)
            os.close(descriptor)


class DirectoryLock:
    """Keeps other processes out of a directory, from the making of this object until `release()`.

    Within one process it can be taken several times, as by a notebook that resumes a run, and is free when each has
    been released. The end of the process, however it comes, frees it too. On a file system without locks there is a
    warning, and nobody is kept out.

    Args:
        directory: it gets a file `.lock`, which stays.
        what: what goes on there, for the message.
        warn: takes the text of a warning.

    Raises:
        UserError: when another process holds the directory, or nothing can be written there.
    """

    def __init__(self, directory: str | Path, what: str = "run", warn: Callable[[str], object] = warnings.warn):
        self._key: tuple[int, int, int] | None = None
        path = Path(directory) / LOCK_FILE
        try:
            self._key = take(path, share=True)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise UserError(f"Cannot write the lock file {path}: {error.strerror}.") from None
            warn(f"{directory} is on a file system without locks: do not let a second {what} write there.")
            return
        if self._key is None:
            raise UserError(
                f"{directory} is in use by another {what}: {read_holder(path)}.\n"
                f"Two would overwrite each other's files. Wait for its end, or stop it."
            )

    def release(self) -> None:
        """Let others in; does nothing the second time."""
        key, self._key = self._key, None
        if key is not None and key in HELD:  # a forked process has another number, and no lock
            give_back(key)

    def __enter__(self) -> "DirectoryLock":
        return self

    def __exit__(self, *exception) -> None:
        self.release()


def is_locked(directory: str | Path) -> bool:
    """Whether another process holds a `DirectoryLock` on this directory; asks without taking it."""
    path = Path(directory) / LOCK_FILE
    with HELD_GUARD:
        if held_key(path):
            return False
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            return False
        try:
            return is_locked_by_another(descriptor)
        except OSError:
            return False
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(path: str | Path, what: str, poll: float = 0.1) -> Iterator[bool]:
    """Hold a lock file for the length of a `with` block, having waited for whoever holds it, this process included.

    Args:
        path: the lock file, which stays.
        what: what the holder does there, such as "downloads FashionMNIST"; who waits for long says that it does.
        poll: seconds between two tries.

    Yields:
        Whether nobody else can be in the block: False on a file system without locks.

    Raises:
        OSError: when the file cannot be made or opened.
    """
    path, asked, has_said = Path(path), time.monotonic(), False
    try:
        while (key := take(path, share=False)) is None:
            if not has_said and time.monotonic() - asked >= PATIENCE:
                print(f"Waiting for another process that {what} ({read_holder(path)}) ...", file=sys.stderr, flush=True)
                has_said = True
            time.sleep(poll)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        key = None
    try:
        yield key is not None
    finally:
        if key is not None:
            give_back(key)
