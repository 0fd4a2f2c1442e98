"""Decode once: the pixels of images and masks in a memory-mapped file, which all processes and later runs share.

A cache is an array in NumPy's own format, a row per sample: a byte that is 1, and the record. A record is the image
and, as one more plane, the classes of its mask. The row of a sample that could not be decoded is 0.

The file's name holds a key: a digest of all that the pixels depend on, such as the sizes and times of the image files.
After a change there is no file of the new name, and the samples are decoded again. A file gets its name when all of it
is on the disk. The last part of this file loads Carvana from a cache; the rest knows nothing of it.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import __version__, features
from torch import Tensor
from torch.utils.data import Dataset

from data.Carvana import CarvanaDataset, augment_batch, augment_pair
from data.masks import PIXELS_VERSION
from engine.runs.lock import LOCK_FILE
from extras.turns import PATIENCE, locked
from utils.errors import UserError
from utils.files import NO_SPACE, fsync_directory, removed_afterwards, sweep_temporaries
from utils.image_file import to_float
from utils.meter import IGNORED
from utils.seed import mix

KEPT = 12  # files in a cache directory; the least recently used ones above it are removed
IGNORED_BYTE = IGNORED % 256  # which an ignored pixel becomes as a class of one byte
LINES = 1000  # names that are hashed at once
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
        temporary.unlink(missing_ok=True)  # it may be a link, which must not be followed
        with open(temporary, "xb") as file:
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


# ---- Carvana ---------------------------------------------------------------------------------------------------------
def cached_carvana(dataset: CarvanaDataset) -> Dataset:
    """Return a data set with the same samples from a cache, which is built if it is missing; or the data set itself."""
    if len(dataset.class_map.codes) > (IGNORED_BYTE if dataset.class_map.ignored else 256):  # one byte for a class
        return dataset
    directories = cache_directories(Path(dataset.pairs.folders[0]).parent, dataset.cache_dir)
    shape = (len(dataset), dataset.n_channels + 1, dataset.size[1], dataset.size[0])
    decode = partial(record_of, dataset)
    cache = open_or_build(directories, cache_key(dataset), shape, decode, is_needed=dataset.cache_dir is not None)
    if cache is None:
        return dataset
    dataset.cache_note = f"decoded images and masks are in {cache.path.parent}"
    return CachedCarvana(dataset, cache)


def cache_key(dataset: CarvanaDataset) -> str:
    """Return SHA-256 of all that the pixels depend on: the files by name, size and time, and how they are read."""
    pairs = dataset.pairs
    read_how = (PIXELS_VERSION, decoder_versions(), dataset.size, dataset.n_channels, dataset.white, dataset.class_map)
    digest = hashlib.sha256(repr(read_how).encode())
    for first in range(0, len(pairs), LINES):
        part = slice(first, first + LINES)
        digest.update(repr((pairs.names[part], pairs.ends[part])).encode(errors="surrogateescape"))
    digest.update(pairs.status())
    return digest.hexdigest()


def decoder_versions() -> tuple[str | None, ...]:
    """Return the versions of the decoders. The last bits of the pixels of a JPEG depend on them."""
    return __version__, features.version("jpg"), features.version("libjpeg_turbo")


def record_of(dataset: CarvanaDataset, index: int) -> np.ndarray:
    """Return the record of a sample, uint8 (C + 1, H, W): the channels, and the classes below them."""
    pixels, classes = dataset.read(index)
    return np.concatenate([pixels, classes[None].astype(np.uint8)])


class CachedCarvana(Dataset):
    """Loads the samples of a `CarvanaDataset` from a cache, whole batches at once, with the same bits.

    Args:
        dataset: the data set that the cache was built from.
        cache: the records of all samples.
    """

    def __init__(self, dataset: CarvanaDataset, cache: PixelCache):
        self.dataset = dataset
        self.cache = cache
        self.names = dataset.names
        self.groups = dataset.groups
        self.is_random = dataset.is_random

    def __len__(self) -> int:
        return len(self.dataset)

    @staticmethod
    def collate_fn(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the batch: `__getitems__` and `seeded_items` collate."""
        return batch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the image, float32 (C, H, W) in [0, 1], and the mask, int64 (H, W)."""
        image, mask = (of_batch[0] for of_batch in self.plain([range(len(self))[index]]))
        return augment_pair(image, mask) if self.is_random else (image, mask)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the images, float32 (N, C, H, W) in [0, 1], and the masks, int64 (N, H, W), of a batch."""
        images, masks = self.plain(indices)
        return augment_batch(images, masks, torch.rand(len(images), 3)) if self.is_random else (images, masks)

    def seeded_items(self, indices: Sequence[int], epoch: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return a batch like `__getitems__`, with random numbers that depend on (seed, epoch, index) alone."""
        generator = torch.Generator()
        seeds = [mix(seed, epoch, index) for index in indices]
        draws = torch.stack([torch.rand(3, generator=generator.manual_seed(one)) for one in seeds])  # (N, 3)
        return augment_batch(*self.plain(indices), draws)

    def plain(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the batch before augmentation."""
        records = self.cache.gather(indices, partial(record_of, self.dataset))  # (N, C + 1, H, W)
        classes = records[:, -1].long()
        if self.dataset.class_map.ignored:
            classes[classes == IGNORED_BYTE] = IGNORED
        return to_float(records[:, :-1]), classes
