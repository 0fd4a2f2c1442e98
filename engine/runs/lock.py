"""Locks between processes. The system frees a lock when its process ends, even by SIGKILL."""

import contextlib
import errno
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UserError

LOCK_FILE = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # the answers of a file system without locks


class DirectoryLock(contextlib.ExitStack):
    """Keeps other processes out of a directory, from its construction to `release()` or the end of a `with` block.

    One process may hold several at once, as a notebook does that resumes a run; each is released. On a file system
    without locks there is a warning, and no process is kept out.

    Args:
        directory: gets a file `.lock`, which stays.
        what: the kind of work in it, for the message.

    Raises:
        UserError: another process holds the directory, or nothing can be written there.
    """

    def __init__(self, directory: str | Path, what: str = "run"):
        super().__init__()
        path = Path(directory) / LOCK_FILE
        lock = FileLock(path, timeout=0, thread_local=False, is_singleton=True)
        try:
            lock.acquire()
            self.callback(lock.release)
        except Timeout:
            raise UserError(f"{directory} is in use by another {what}: wait for its end, or stop it.") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise UserError(f"Cannot write the lock file {path}: {error.strerror}.") from None
            message = f"{directory} is on a file system without locks: do not start a second {what} there."
            warnings.warn(message, stacklevel=2)

    release = contextlib.ExitStack.close  # lets other processes in; does nothing the second time


def is_locked(directory: str | Path) -> bool:
    """Return whether another process holds the `DirectoryLock` of a directory."""
    try:
        DirectoryLock(directory).release()
    except UserError:
        return True
    return False
