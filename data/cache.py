"""Decode once: the pixels of images and masks in a memory-mapped file, which all processes share.

The file holds a header, a record per sample, and a checksum per record. A record is the image and, as one more plane,
the classes of its mask. The file's name and header hold a key: a digest of all that the pixels depend on. So what has
changed is not found, and decoded anew.

What is damaged is not used. The header and the table of checksums, which are small, are checked when the file is
opened; a record, when it is first used (CRC-32, about a millisecond per megabyte), so that a large cache need not be
read as a whole before the start. A damaged record is decoded again and mended. The file gets its name when all of it is
on the disk, so no name belongs to half a file.
"""

import contextlib
import hashlib
import json
import logging
import mmap
import os
import re
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from engine.runs.lock import LOCK_FILE, PATIENCE, locked
from utils.errors import UserError
from utils.files import NO_SPACE, fsync_directory, removed_afterwards, sweep_temporaries

MAGIC = "plainloop pixels 1"
HEADER_SIZE = 4096  # bytes
MISSING = -1  # in the table: this sample could not be decoded
KEPT = 12  # files in a cache directory; the least recently used ones above it are removed
CHUNK = 16  # samples that a thread decodes in one go
MOST_OF_FREE = 0.5  # of what is free on the disk, so that the checkpoints have room too

Decode = Callable[[int], np.ndarray]  # returns the record of a sample


class DamagedCacheError(Exception):
    """A file is not the cache that its name promises."""


class PixelCache:
    """Records of samples in a file, mapped into memory when they are first asked for.

    Args:
        path: a file that `build_cache` wrote.
        key: what it must hold.
        shape: number of samples, planes of a record (the channels and one more), height, width.

    Raises:
        OSError: there is no such file, or it cannot be read.
        DamagedCacheError: the file is another one, or was cut short, or its header or checksums are damaged.
    """

    def __init__(self, path: Path, key: str, shape: tuple[int, int, int, int]):
        self.path = path
        self.key = key
        self.shape = shape
        self.checksums = read_checksums(path, key, shape)  # (N,) int64
        self._pixels = map_records(path, shape)  # (N, C + 1, H, W) uint8
        self._is_checked = shared_flags(shape[0])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_pixels": None, "_is_checked": None}  # forked processes share them, others map anew

    @property
    def pixels(self) -> np.ndarray:
        """All records, (N, C + 1, H, W) uint8, unchecked."""
        if self._pixels is None:
            self._pixels, self._is_checked = map_records(self.path, self.shape), shared_flags(self.shape[0])
        return self._pixels

    def gather(self, indices: Sequence[int], decode: Decode) -> Tensor:
        """Return the records of samples, (B, C + 1, H, W) uint8.

        Args:
            indices: the samples.
            decode: is asked for those that are missing or damaged, and raises what is wrong with them.
        """
        records = torch.empty((len(indices), *self.shape[1:]), dtype=torch.uint8)
        for record, index in zip(records.numpy(), indices, strict=True):
            record[:] = self.record(index, decode)
        return records

    def record(self, index: int, decode: Decode) -> np.ndarray:
        """Return one record, (C + 1, H, W) uint8; see `gather`."""
        if self.checksums[index] == MISSING:
            return decode(index)
        try:
            record = self.pixels[index]
        except (OSError, ValueError):  # the file was removed, or cut, before a process that was not forked mapped it
            return decode(index)
        if self._is_checked[index]:
            return record
        if zlib.crc32(record) != self.checksums[index]:
            warn(f"The record of sample {index} in the cache {self.path} is damaged; it is decoded again.")
            return self.mend(index, decode(index))
        self._is_checked[index] = True
        return record

    def mend(self, index: int, record: np.ndarray) -> np.ndarray:
        """Write a record in the place of a damaged one, and return it.

        Others may do so at the same time: they write the same. When it cannot be written, or is not what it was
        because its file has changed since, it will be decoded each time.
        """
        try:
            if zlib.crc32(record) != self.checksums[index]:
                raise DamagedCacheError
            with open(self.path, "r+b") as file:
                file.seek(HEADER_SIZE + index * record.nbytes)
                file.write(record)
        except (OSError, DamagedCacheError):
            self.checksums[index] = MISSING  # in this process
        return record


def warn(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def map_records(path: Path, shape: tuple[int, int, int, int]) -> np.ndarray:
    return np.memmap(path, dtype=np.uint8, mode="r", offset=HEADER_SIZE, shape=shape)


def shared_flags(num_samples: int) -> np.ndarray:
    """Return (N,) bool, all False, which this process and those that will be forked from it have in common."""
    return np.frombuffer(mmap.mmap(-1, num_samples), dtype=bool)


def read_checksums(path: Path, key: str, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Return the checksums of a cache file, (N,) int64, having checked all but the records; see `PixelCache`."""
    with open(path, "rb") as file:
        try:
            header = json.loads(file.read(HEADER_SIZE))
            table_start = HEADER_SIZE + num_bytes(shape)
            if header["magic"] != MAGIC or header["key"] != key or header["shape"] != list(shape):
                raise DamagedCacheError("it holds something else")
            if os.fstat(file.fileno()).st_size != table_start + 8 * shape[0]:
                raise DamagedCacheError("it is not as long as it was")
            file.seek(table_start)
            table = file.read()
            if hashlib.sha256(table).hexdigest() != header["table"]:
                raise DamagedCacheError("its checksums are damaged")
        except (ValueError, LookupError, TypeError, RecursionError):
            raise DamagedCacheError("its header is damaged") from None
    return np.frombuffer(table, dtype="<i8").astype(np.int64)


# ---- the first pass --------------------------------------------------------------------------------------------------
def build_cache(path: Path, key: str, shape: tuple[int, int, int, int], decode: Decode, what: str = "images") -> None:
    """Decode all samples and write a cache file; at every moment `path` holds nothing, or all of it.

    Args:
        path, key, shape: see `PixelCache`.
        decode: returns the record of a sample, (C + 1, H, W) uint8. Called by several threads. A sample for which it
            raises is left out, and raises again when it is asked for; but a lack of memory ends the pass.
        what: what is decoded, for the progress bar.

    Raises:
        OSError: when the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with removed_afterwards(temporary):
        with open(temporary, "wb") as file:
            checksums = decode_all(file, shape, decode, what)
            table = checksums.astype("<i8").tobytes()
            header = {"magic": MAGIC, "key": key, "shape": shape, "table": hashlib.sha256(table).hexdigest()}
            write_at(file, 0, json.dumps(header).encode().ljust(HEADER_SIZE))
            write_at(file, HEADER_SIZE + num_bytes(shape), table)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    fsync_directory(path.parent)


def decode_all(file: BinaryIO, shape: tuple[int, int, int, int], decode: Decode, what: str) -> np.ndarray:
    """Write the records of all samples to an open file, and return their checksums, (N,) int64.

    By threads: Pillow lets go of Python's lock while it decodes and resizes, and no thread is left when loading
    processes are forked later. They write instead of mapping the file: a full disk is then an error and no signal.
    """
    from tqdm import tqdm

    num_samples, size, writing = shape[0], num_bytes(shape[1:]), threading.Lock()
    checksums = np.full(num_samples, MISSING, dtype=np.int64)
    is_over = False

    def decode_chunk(first: int) -> int:
        indices = range(first, min(first + CHUNK, num_samples))
        for index in indices:
            if is_over:
                break
            try:
                record = decode(index)
            except MemoryError:
                raise
            except Exception:
                continue  # it is named when it is asked for
            with writing:
                write_at(file, HEADER_SIZE + index * size, record)
            checksums[index] = zlib.crc32(record)
        return len(indices)

    has_said, started = sys.stderr.isatty(), time.monotonic()  # a terminal has the bar
    with (
        tqdm(total=num_samples, desc=f"decoding {what} once", unit="image", delay=PATIENCE, disable=None) as bar,
        ThreadPoolExecutor(num_cores()) as pool,
    ):
        try:
            for done in pool.map(decode_chunk, range(0, num_samples, CHUNK)):  # no more are begun when one raises
                bar.update(done)
                if not has_said and time.monotonic() - started >= PATIENCE:
                    print(f"Decoding {num_samples:,} {what} once, for the cache ...", file=sys.stderr, flush=True)
                    has_said = True
        finally:
            is_over = True
    return checksums


def write_at(file: BinaryIO, place: int, content: bytes | np.ndarray) -> None:
    file.seek(place)
    file.write(content)


def num_bytes(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- where caches are ------------------------------------------------------------------------------------------------
def cache_directories(data_dir: str | Path, cache_dir: str | Path | None = None) -> list[Path]:
    """Where a cache may be, in the order of trying: `cache_dir`; without, beside the data, or else in the home."""
    if cache_dir:
        return [Path(cache_dir)]
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return [Path(data_dir, ".cache"), Path(home, "plainloop")]


def open_or_build(
    directories: Sequence[Path],
    key: str,
    shape: tuple[int, int, int, int],
    decode: Decode,
    what: str = "images",
    is_needed: bool = False,
) -> PixelCache | None:
    """Return the cache of this key from the first directory that has it, or build it in the first that can be written.

    Args:
        directories: see `cache_directories`.
        key, shape, decode, what: see `build_cache`.
        is_needed: whether it is an error when no directory can be written, as when the user named it.

    Returns:
        The cache; None, with a warning, when there is no room for it, or no directory that can be written.

    Raises:
        UserError: when no directory can be written, if `is_needed`.
    """
    name, errors = f"{key[:32]}.pixels", []
    for directory in directories:
        if found := open_cache(directory / name, key, shape):
            return found
    for directory in directories:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with locked(directory / LOCK_FILE, f"decodes {what}") as is_alone:
                return open_or_build_alone(directory / name, key, shape, decode, what, is_alone)
        except OSError as error:
            if error.errno in NO_SPACE:
                warn(f"The disk of {directory} is full. Going on without the cache: each image is decoded each time.")
                return None
            errors.append(f"{directory} ({error.strerror})")
    told = f"Decoded {what} cannot be kept in {' or '.join(errors)}"
    if is_needed:
        raise UserError(f"{told}. Give a --cache_dir that can be written, or --no-cache.")
    warn(f"{told}, so each is decoded each time. Give a --cache_dir that can be written; with --no-cache, all is well.")
    return None


def open_or_build_alone(
    path: Path, key: str, shape: tuple[int, int, int, int], decode: Decode, what: str, is_alone: bool
) -> PixelCache | None:
    """What `open_or_build` does in one directory, while it holds its lock; `is_alone`: there are locks."""
    if found := open_cache(path, key, shape):  # another process built it meanwhile
        return found
    if is_alone:
        sweep_temporaries(path.parent)
    needed, free = HEADER_SIZE + num_bytes(shape) + 8 * shape[0], shutil.disk_usage(path.parent).free
    if needed > MOST_OF_FREE * free:
        warn(
            f"The cache in {path.parent} needs {needed:,} bytes, more than half of the {free:,} that are free on the "
            f"disk. Going on without it: each image is decoded each time. Make room, or give another --cache_dir."
        )
        return None
    build_cache(path, key, shape, decode, what)
    remove_old(path.parent)
    return PixelCache(path, key, shape)


def open_cache(path: Path, key: str, shape: tuple[int, int, int, int]) -> PixelCache | None:
    """Return the cache of this file; None when there is none, or, with a warning, when it is damaged."""
    try:
        found = PixelCache(path, key, shape)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DamagedCacheError as error:
        warn(f"The cache {path} is not used: {error}. It is made again.")
        return None
    except OSError as error:
        warn(f"The cache {path} cannot be read ({error.strerror}).")
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # so that it counts as used
    return found


def remove_old(directory: Path) -> None:
    """Remove the least recently used cache files above `KEPT`. Who has one open keeps its content."""
    found = [path for path in directory.iterdir() if re.fullmatch(r"[0-9a-f]{32}\.pixels", path.name)]
    with contextlib.suppress(OSError):
        for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
            path.unlink()
