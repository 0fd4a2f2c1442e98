"""Read pieces of tar files, the shards of a data set: in place, or from a URL through a bounded directory.

A piece is found by its offset, and nothing is ever unpacked. The directory keeps a shard under its SHA-256, so no name
that came from elsewhere becomes the name of a file, and two data sets can share one directory.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import stat
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

from engine.runs.lock import LOCK_FILE
from extras.turns import locked
from utils.errors import UserError
from utils.files import removed_afterwards, sweep_temporaries

BLOCK = tarfile.BLOCKSIZE  # a member's header takes one, in front of its content
CHUNK = 1 << 20
SCHEMES = ("http", "https", "file")  # the library takes more; its "pipe:" would run a command
CACHED = re.compile(r"[0-9a-f]{64}\.tar")  # nothing else in the directory is counted, or removed


class Member(NamedTuple):
    """A file in a shard: its name, and where its content begins, in bytes."""

    name: str
    offset: int
    num_bytes: int


class Sample(NamedTuple):
    """An image with its mask; a split keeps the samples of one group in one part."""

    name: str
    group: str
    image: Member
    mask: Member


class Shard(NamedTuple):
    """A tar file, with the SHA-256 of its content."""

    file: str
    num_bytes: int
    sha256: str
    samples: tuple[Sample, ...]


class NamedBytes(io.BytesIO):
    """The content of a file, which messages call by its name."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


def load_webdataset() -> Any:
    """The library that writes and fetches shards; reading them needs nothing but the standard library."""
    try:
        import webdataset
    except ImportError:
        raise UserError("Shards are written and fetched by the package webdataset: pip install webdataset") from None
    return webdataset


def is_url(location: str | Path) -> bool:
    return "://" in str(location)


def open_plain(path: str | Path) -> BinaryIO:
    """Open a plain file for reading; OSError for anything else, such as a pipe that nobody writes to."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no plain file")
    return open(path, "rb")


def chunks_of(place: str) -> Iterator[bytes]:
    """Yield the content of a file or URL; UserError when it cannot be read or fetched."""
    stream = None
    try:
        with load_webdataset().gopen(place) if is_url(place) else open_plain(place) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except OSError as error:
        status = getattr(stream, "status", None)  # of curl, whose error has a long text
        raise UserError(f"{place} cannot be read ({f'curl ended with {status}' if status else error}).") from None


class ShardStore:
    """Reads the content of members of shards, and refuses a shard that does not match the index.

    A shard is read through once by each process that uses it, for its SHA-256, and again when the file has changed.

    Args:
        location: a directory, whose shards are read in place; or a URL, whose shards are fetched whole when needed.
        cache_dir: where fetched shards are kept.
        cache_bytes: how much of them, at most; those not used for the longest time are removed.

    Raises:
        UserError: a URL of another kind than `SCHEMES`.
    """

    def __init__(self, location: str | Path, cache_dir: str | Path = "./shard_cache", cache_bytes: int = 10**10):
        self.location = str(location).rstrip("/") or "/"
        self.cache_dir = Path(cache_dir) if is_url(location) else None
        self.cache_bytes = cache_bytes
        self.checked: dict[str, tuple[int, ...]] = {}  # by shard: which file was found to be right
        self.refused: dict[str, str] = {}  # by shard: why
        if is_url(location) and urlsplit(self.location).scheme not in SCHEMES:
            raise UserError(f"--data_dir {location}: give a directory of shards, or a URL of {', '.join(SCHEMES)}.")

    def place(self, file: str) -> str:
        return f"{self.location}/{file}"

    def read(self, shard: Shard, members: Sequence[Member]) -> list[NamedBytes]:
        """The content of members of a shard.

        Raises:
            UserError: the shard is missing, cannot be fetched, has changed, or has another member there.
        """
        if shard.file in self.refused:
            raise UserError(self.refused[shard.file])
        place, found = self.place(shard.file), []
        with self.open(shard) as file:
            self.check(shard, file)
            for name, offset, num_bytes in members:
                file.seek(offset - BLOCK)
                header, content = file.read(BLOCK), file.read(num_bytes)
                # Where tar keeps the name, the size in octal, and the kind: a plain file.
                held = (header[:100].rstrip(b"\0"), header[124:135], header[156:157], len(content))
                if held != (name.encode(), b"%011o" % num_bytes, tarfile.REGTYPE, num_bytes):
                    raise UserError(f"{place} does not hold {name} where the index says. Make the shards again.")
                found.append(NamedBytes(content, f"{name} in {place}"))
        return found

    def check(self, shard: Shard, file: BinaryIO) -> None:
        """Refuse a file that is not the shard, the first time that it is seen."""
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        if self.checked.get(shard.file) != identity:
            self.compare(shard, status.st_size, hashlib.file_digest(file, "sha256").hexdigest(), file.name)
            self.checked[shard.file] = identity

    def compare(self, shard: Shard, num_bytes: int, sha256: str, where: str | Path) -> None:
        """Raise UserError for what is not the shard, which is then neither read nor fetched a second time."""
        if (num_bytes, sha256) != (shard.num_bytes, shard.sha256):
            self.refused[shard.file] = (
                f"The shard {where} is damaged: it has {num_bytes:,} bytes of {shard.num_bytes:,}, and its SHA-256 "
                f"differs from the index. Remove it, and copy it again or make the shards again."
            )
            raise UserError(self.refused[shard.file])

    def open(self, shard: Shard) -> BinaryIO:
        """Open a shard where it is, or in the cache: there it counts as used, and is fetched if it is not there."""
        path = self.cache_dir / f"{shard.sha256}.tar" if self.cache_dir else self.place(shard.file)
        try:
            if not self.cache_dir:
                return open_plain(path)
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                return open_plain(path)
            return self.fetch(shard, path)
        except OSError as error:
            where = f"--shard_cache_dir {self.cache_dir} cannot be used" if self.cache_dir else f"{path} cannot be read"
            raise UserError(f"{where}: {error.strerror}. That is where the shard {shard.file} should be.") from None

    def fetch(self, shard: Shard, path: Path) -> BinaryIO:
        """Fetch a shard, one process at a time, so that the bound holds; return it opened."""
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        with locked(self.cache_dir / LOCK_FILE, "fetches a shard") as is_alone:
            if not path.exists():  # another process may have been faster
                if is_alone:
                    sweep_temporaries(self.cache_dir)
                self.make_room(shard.num_bytes)
                self.download(shard, path)
            return open(path, "rb")

    def make_room(self, num_bytes: int) -> None:
        """Remove the shards that were not used for the longest time, until so much more is within the bound."""
        kept = {path: path.stat() for path in self.cache_dir.iterdir() if CACHED.fullmatch(path.name)}
        total = sum(status.st_size for status in kept.values())
        for path in sorted(kept, key=lambda path: kept[path].st_atime_ns):
            if total + num_bytes > self.cache_bytes:
                path.unlink()
                total -= kept[path].st_size

    def download(self, shard: Shard, path: Path) -> None:
        """Write a shard to the directory, whole and right or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        digest, size = hashlib.sha256(), 0
        with removed_afterwards(temporary):
            temporary.unlink(missing_ok=True)  # it may be a link, which must not be followed
            with open(temporary, "xb") as file:
                for chunk in chunks_of(self.place(shard.file)):
                    size += len(chunk)
                    if size > shard.num_bytes:
                        break
                    digest.update(chunk)
                    file.write(chunk)
            self.compare(shard, size, digest.hexdigest(), self.place(shard.file))
            os.utime(temporary, ns=(time.time_ns(),) * 2)  # the kernel's own times may be milliseconds behind
            os.replace(temporary, path)
