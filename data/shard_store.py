"""Read pieces of tar files, the shards of a data set: in place, or from a URL through a bounded directory.

A piece is found by its offset, and nothing is ever unpacked. The directory keeps a shard under its SHA-256, so no name
that came from elsewhere becomes the name of a file, and two data sets can share one directory.
"""

import contextlib
import hashlib
import io
import os
import re
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, NamedTuple
from urllib.parse import urlsplit

from utils.errors import UserError
from utils.files import removed_afterwards, sweep_temporaries
from utils.lock import LOCK_FILE, locked

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
    """An image with its mask; samples of one group must not be torn apart by a split."""

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


def load_webdataset() -> ModuleType:
    """The library that writes and fetches shards; reading them needs nothing but the standard library."""
    try:
        import webdataset
    except ImportError:
        raise UserError("Shards are written and fetched by the package webdataset: pip install webdataset") from None
    return webdataset


def is_url(location: str | Path) -> bool:
    return "://" in str(location)


def chunks_of(url: str) -> Iterator[bytes]:
    """Yield the content of a URL; UserError when it cannot be had."""
    gopen, stream = load_webdataset().gopen, None
    try:
        with gopen(url) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except OSError as error:
        status = getattr(stream, "status", None)
        raise UserError(f"{url} cannot be fetched ({f'curl ended with {status}' if status else error}).") from None


class ShardStore:
    """Gives the content of members of shards, and refuses a shard that is not what the index says.

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

    def read_whole(self, file: str) -> bytes | None:
        """The content of a small file that is not a shard; None when it is not there."""
        if self.cache_dir:
            return b"".join(chunks_of(self.place(file)))
        try:
            return Path(self.place(file)).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{self.place(file)} cannot be read: {error.strerror}.") from None

    def read(self, shard: Shard, members: Sequence[Member]) -> list[NamedBytes]:
        """The content of members of a shard.

        Raises:
            UserError: the shard is missing, cannot be fetched, is not what it was, or holds something else there.
        """
        if shard.file in self.refused:
            raise UserError(self.refused[shard.file])
        found = []
        with self.open_cached(shard) if self.cache_dir else self.open_in_place(shard) as file:
            self.check(shard, file)
            for member in members:
                file.seek(member.offset - BLOCK)
                header, content = file.read(BLOCK), file.read(member.num_bytes)
                try:
                    held = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
                    is_right = held.isreg() and (held.name, held.size) == (member.name, member.num_bytes)
                except tarfile.TarError:
                    is_right = False
                if not is_right or len(content) != member.num_bytes:
                    raise UserError(
                        f"{self.place(shard.file)} does not hold {member.name} where the index says: the index is of "
                        f"other shards. Make the shards again."
                    )
                found.append(NamedBytes(content, f"{member.name} in {self.place(shard.file)}"))
        return found

    def check(self, shard: Shard, file: BinaryIO) -> None:
        """Refuse a file that is not the shard, the first time that it is seen."""
        status = os.fstat(file.fileno())
        identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        if self.checked.get(shard.file) == identity:
            return
        is_right = status.st_size == shard.num_bytes and hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
        if not is_right:
            raise self.refuse(shard, file.name, status.st_size)
        self.checked[shard.file] = identity

    def refuse(self, shard: Shard, where: str, num_bytes: int) -> UserError:
        """The error of a shard that is not what it was; it is not read, or fetched, a second time."""
        is_in_cache = self.cache_dir and not is_url(where)
        mend = "Remove it, and it is fetched again." if is_in_cache else "Copy it again, or make the shards again."
        sizes = f"it has {num_bytes:,} bytes, and {shard.num_bytes:,} were written"
        what = sizes if num_bytes != shard.num_bytes else "its SHA-256 differs from the index"
        self.refused[shard.file] = f"The shard {where} is damaged: {what}. {mend}"
        return UserError(self.refused[shard.file])

    def open_in_place(self, shard: Shard) -> BinaryIO:
        try:
            return open(self.place(shard.file), "rb")
        except OSError as error:
            what = f"The shard {self.place(shard.file)} cannot be read: {error.strerror}"
            raise UserError(f"{what}. Copy it again, or make the shards again.") from None

    # ---- the bounded directory -----------------------------------------------------------------------------------
    def open_cached(self, shard: Shard) -> BinaryIO:
        """Open a shard in the directory, and note that it was used; fetch it if it is not there."""
        path = self.cache_dir / f"{shard.sha256}.tar"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                return open(path, "rb")
            return self.fetch(shard, path)
        except OSError as error:
            raise UserError(f"--shard_cache_dir {self.cache_dir} cannot be used: {error.strerror}.") from None

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
        paths = [path for path in self.cache_dir.iterdir() if CACHED.fullmatch(path.name)]
        kept = sorted((status.st_atime_ns, status.st_size, path) for path in paths for status in [path.stat()])
        total = sum(size for _, size, _ in kept)
        for _, size, path in kept:
            if total + num_bytes <= self.cache_bytes:
                break
            path.unlink()
            total -= size

    def download(self, shard: Shard, path: Path) -> None:
        """Write a shard to the directory, whole and right or not at all."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        digest, size = hashlib.sha256(), 0
        with removed_afterwards(temporary):
            with open(temporary, "wb") as file:
                for chunk in chunks_of(self.place(shard.file)):
                    size += len(chunk)
                    if size > shard.num_bytes:
                        break
                    digest.update(chunk)
                    file.write(chunk)
            if size != shard.num_bytes or digest.hexdigest() != shard.sha256:
                raise self.refuse(shard, self.place(shard.file), size)
            os.replace(temporary, path)
