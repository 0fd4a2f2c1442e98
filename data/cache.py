"""Decode once: the pixels of images and masks in a memory-mapped file, which all processes and later runs share.

A cache is an array in NumPy's own format, a row per sample: a byte that is 1, and the record. A record is the image
and, as one more plane, the classes of its mask. The row of a sample that could not be decoded is 0.

The file's name holds a key: a digest of all that the pixels depend on, such as the sizes and times of the image files.
After a change there is no file of the new name, and the samples are decoded again. A file gets its name when all of it
is on the disk.
"""

import contextlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.runs.lock import LOCK_FILE, PATIENCE, locked
from utils.errors import UserError
from utils.files import NO_SPACE, fsync_directory, removed_afterwards, sweep_temporaries

KEPT = 12  # files in a cache directory; the least recently used ones above it are removed
MOST_OF_FREE = 0.5  # of the free space on the disk, so that checkpoints have room, too

Shape = tuple[int, int, int, int]  # number of samples, planes of a record, height, width
Decode = Callable[[int], np.ndarray]  # returns the record of a sample, uint8 (C + 1, H, W)
log = logging.getLogger(__name__)


class PixelCache:
    """Records of samples in a file, mapped into memory once per process.

    Args:
        path: a file that `build_cache` wrote.
        shape: of all records.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: it holds something else, or not all of it.
    """

    def __init__(self, path: Path, shape: Shape):
        self.path = path
        self.shape = shape
        self._rows: np.ndarray | None = self._map_rows()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_rows": None}  # another process maps the file itself

    def _map_rows(self) -> np.ndarray:
        rows = np.asarray(np.load(self.path, mmap_mode="r"))
        if rows.dtype != np.uint8 or rows.shape != shape_of_rows(self.shape):
            raise ValueError(f"its array is {rows.dtype} {rows.shape}")
        return rows

    def gather(self, indices: Sequence[int], decode: Decode) -> Tensor:
        """Return the records of samples, (B, C + 1, H, W) uint8.

        Args:
            indices: the samples.
            decode: is called for a sample that could not be decoded, to raise the reason again.
        """
        if self._rows is None:
            self._rows = self._map_rows()
        records = torch.empty((len(indices), *self.shape[1:]), dtype=torch.uint8)
        for record, index in zip(records.numpy(), indices, strict=True):
            row = self._rows[index]
            record[:] = row[1:].reshape(record.shape) if row[0] else decode(index)
        return records


def shape_of_rows(shape: Sequence[int]) -> tuple[int, int]:
    num_samples, *of_record = shape
    return num_samples, 1 + int(np.prod(of_record, dtype=np.int64))


# ---- the first pass --------------------------------------------------------------------------------------------------
def build_cache(path: Path, shape: Shape, decode: Decode) -> None:
    """Decode all samples and write a cache file; at every moment `path` holds nothing, or all of it.

    Args:
        path, shape: see `PixelCache`.
        decode: returns the record of a sample. Several threads call it. Out of memory ends the pass; for any other
            exception the sample is left out.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    header = {"descr": "|u1", "fortran_order": False, "shape": shape_of_rows(shape)}
    with removed_afterwards(temporary):
        with open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for row in decoded_rows(shape, decode):
                file.write(row)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    fsync_directory(path.parent)


def decoded_rows(shape: Shape, decode: Decode) -> Iterator[bytes]:
    """Yield the rows of all samples.

    Threads decode, because Pillow releases Python's lock, and because no thread is left when loading processes are
    forked later.
    """
    from tqdm import tqdm

    num_samples, num_bytes = shape_of_rows(shape)

    def row_of(index: int) -> bytes:
        try:
            return b"\1" + decode(index).tobytes()
        except MemoryError:
            raise
        except Exception:
            return bytes(num_bytes)

    seconds_between = 0.1 if sys.stderr.isatty() else 60
    pool = ThreadPoolExecutor(num_cores())
    try:
        rows = pool.map(row_of, range(num_samples))
        yield from tqdm(rows, "decoding images once", num_samples, delay=PATIENCE, mininterval=seconds_between)
    finally:
        pool.shutdown(cancel_futures=True)


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- where caches are ------------------------------------------------------------------------------------------------
def cache_directories(data_dir: str | Path, cache_dir: str | Path | None = None) -> list[Path]:
    """Return the directories to try in order: `cache_dir`; without it, beside the data, then in the user's home."""
    if cache_dir:
        return [Path(cache_dir)]
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return [Path(data_dir, ".cache"), Path(home, "plainloop")]


def open_or_build(
    directories: Sequence[Path], key: str, shape: Shape, decode: Decode, is_needed: bool = False
) -> PixelCache | None:
    """Return the cache of this key from the first directory that has it, or build it in the first writable one.

    Args:
        directories: see `cache_directories`.
        key: at least 32 hexadecimal digits.
        shape, decode: see `build_cache`.
        is_needed: whether it is an error when no directory can be written, as when the user named it.

    Returns:
        The cache; None, with a warning, when there is no room for it, or no writable directory.

    Raises:
        UserError: no directory can be written, and `is_needed`.
    """
    name = f"{key[:32]}.npy"
    for directory in directories:
        if cache := open_cache(directory / name, shape):
            return cache
    errors = []
    for directory in directories:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with locked(directory / LOCK_FILE, "decodes images") as is_alone:
                if is_alone:
                    sweep_temporaries(directory)
                return open_cache(directory / name, shape) or build_if_room(directory / name, shape, decode)
        except OSError as error:
            if error.errno in NO_SPACE:
                log.warning(f"The disk of {directory} is full: going on without the cache, which is slower.")
                return None
            errors.append(f"{directory} ({error.strerror})")
    message = f"Decoded images cannot be kept in {' or '.join(errors)}: give a writable --cache_dir, or --no-cache."
    if is_needed:
        raise UserError(message)
    log.warning(message)
    return None


def build_if_room(path: Path, shape: Shape, decode: Decode) -> PixelCache | None:
    """Build a cache and open it; None, with a warning, when it would take more than half of the free space."""
    needed = int(np.prod(shape_of_rows(shape), dtype=np.int64))
    free = shutil.disk_usage(path.parent).free
    if needed > MOST_OF_FREE * free:
        log.warning(
            f"The cache in {path.parent} needs {needed:,} bytes, more than half of the {free:,} that are free on the "
            f"disk: going on without it, each image is decoded each time. Make room, or give another --cache_dir."
        )
        return None
    build_cache(path, shape, decode)
    remove_old(path.parent)
    return PixelCache(path, shape)


def open_cache(path: Path, shape: Shape) -> PixelCache | None:
    """Return the cache in a file; None if there is none, or, with a warning, if it cannot be used."""
    try:
        cache = PixelCache(path, shape)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning(f"The cache {path} cannot be used ({error}), and is made again.")
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # so that it counts as used
    return cache


def remove_old(directory: Path) -> None:
    """Remove the least recently used cache files above `KEPT`. A process that has one open keeps its content."""
    paths = [path for path in directory.iterdir() if re.fullmatch(r"[0-9a-f]{32}\.npy", path.name)]
    with contextlib.suppress(OSError):
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
            path.unlink()
