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
CANNOT_FSYNC = {errno.EINVAL, errno.ENOTSUP}  # from file systems without this call for directories


class StorageError(UserError):
    """There is no room for a file: the disk is full, or a quota is reached."""


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that at every moment, even at a crash, `path` holds either the old content or the new.

    The temporary file is in the same directory, because a rename is atomic only within one file system. It is flushed
    to the disk first, because the rename may reach the disk before it.

    Raises:
        StorageError: there is no room. The old file stays.
        UserError: the file cannot be written for another reason.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with removed_afterwards(temporary):
            temporary.unlink(missing_ok=True)  # it may be a link, which must not be followed
            with open(temporary, "xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        fsync_directory(path.parent)
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise UserError(f"Cannot write {path}: {error.strerror}.") from None
        intact = " The old file of this name is intact." if path.exists() else ""
        needs = f"It needs {sum(map(len, parts)):,} bytes"
        raise StorageError(f"Cannot write {path}: {error.strerror}. {needs}; {free(path.parent)}.{intact}") from None


def free(directory: Path) -> str:
    """Say how much room is left on the disk of a directory, for bytes or, when there are none left, for files."""
    disk = os.statvfs(directory) if hasattr(os, "statvfs") else None
    if disk and disk.f_files and not disk.f_favail:
        return "the disk has no room for another file, however small"
    return f"{shutil.disk_usage(directory).free:,} are free on the disk"


@contextlib.contextmanager
def removed_afterwards(path: Path) -> Iterator[None]:
    """Remove the file, if it still exists, at the end of the block."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def fsync_directory(directory: Path) -> None:
    """Flush the names in a directory to the disk, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FSYNC:
            raise
    finally:
        os.close(descriptor)


def sweep_temporaries(directory: str | Path) -> list[Path]:
    """Remove the temporary files that a killed `write_atomically` left in a directory, and return their paths.

    No other process may be writing there: lock the directory first.
    """
    paths = [path for path in Path(directory).glob(".*.tmp") if re.fullmatch(r"\..+\.\d+\.tmp", path.name)]
    for path in paths:
        path.unlink(missing_ok=True)
    return paths


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write `content` as a JSON file that ends with a line break, see `write_atomically`."""
    write_atomically(Path(path), (json.dumps(content, indent=indent) + "\n").encode())


@contextlib.contextmanager
def full_disk_explained(what: str, directory: str | Path) -> Iterator[None]:
    """Turn the error of a full disk in the block into a StorageError that names the room to make.

    The need of a stream of small records is unknown, so the largest file in the directory is the measure.

    Args:
        what: writes in the block.
        directory: is written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        sizes = [path.stat().st_size for path in Path(directory).glob("*") if path.is_file()]
        raise StorageError(
            f"{what} cannot write: {error.strerror}. To go on needs {max(sizes, default=0):,} bytes for the next file "
            f"like the largest in {directory}; {free(Path(directory))}. Make room, then --resume."
        ) from None
