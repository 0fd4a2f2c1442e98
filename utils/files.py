"""Files that are written whole or not at all."""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.errors import UserError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CANNOT_FSYNC = {errno.EINVAL, errno.ENOTSUP}  # what a file system answers that has no such call for directories


class StorageError(UserError):
    """There is no room for a file: the disk is full, or a quota or a limit is reached."""


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that at every moment, even at a crash, `path` holds either the old content or the new.

    The temporary file stands in the same directory, because a rename is atomic only within one file system, and it is
    flushed to the disk before the rename, because the rename may reach the disk first.

    Raises:
        StorageError: when there is no room. The old file stays.
        UserError: when the file cannot be written for another reason.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with removed_afterwards(temporary):
            with open(temporary, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        fsync_directory(path.parent)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise UserError(f"Cannot write {path}: {error.strerror}.") from None
        needed, free = sum(map(len, parts)), shutil.disk_usage(path.parent).free
        intact = " The file of this name that was there before is intact." if path.exists() else ""
        raise StorageError(
            f"Cannot write {path}: {error.strerror}. It needs {needed:,} bytes; {free:,} are free on the disk.{intact}"
        ) from None


@contextlib.contextmanager
def removed_afterwards(path: Path) -> Iterator[None]:
    """Remove the file, if it is still there, when the block is left."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def fsync_directory(directory: Path) -> None:
    """Bring the names in a directory to the disk, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FSYNC:
            raise
    finally:
        os.close(descriptor)


def sweep_temporaries(directory: str | Path) -> list[Path]:
    """Remove what `write_atomically` left in a directory when the process was killed; return what was removed.

    No other process may be writing there: take the lock of the directory first.
    """
    found = [path for path in Path(directory).glob(".*.tmp") if re.fullmatch(r"\..+\.\d+\.tmp", path.name)]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write `content` as a JSON file that ends with a line break; see `write_atomically` for what is raised."""
    write_atomically(Path(path), (json.dumps(content, indent=indent) + "\n").encode())


@contextlib.contextmanager
def told_when_full(what: str, directory: str | Path) -> Iterator[None]:
    """Turn the error of a full disk, raised by whatever writes in the block, into one for people.

    How much a stream of small records will need, nobody knows; the largest file there is a measure for what to make
    room for.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        sizes = [path.stat().st_size for path in Path(directory).glob("*") if path.is_file()]
        free = shutil.disk_usage(directory).free
        raise StorageError(
            f"{what} cannot write: {error.strerror}. To go on needs {max(sizes, default=0):,} bytes for the next file "
            f"like the largest in {directory}; {free:,} are free on the disk. Make room, then --resume."
        ) from None
