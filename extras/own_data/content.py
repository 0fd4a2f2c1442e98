"""Tell files apart by what they hold: so a copy under another name is found, and a changed file, too."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from utils.errors import UserError

MOST_BYTES = 1 << 30  # of all files together that are read as a whole before training
NUM_SAMPLED = 128  # samples of larger data whose files are read
THREADS = 8


def digest_of(path: str | Path) -> str:
    """Return a digest of the bytes of a file; UserError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def identities(paths: Sequence[str], names: Sequence[str]) -> tuple[list[str], bool]:
    """Return what tells each file from all others, and whether that is its content.

    Args:
        paths: the files.
        names: of the files, which tell them apart where they are too large to be read, above `MOST_BYTES` together;
            and one that cannot be read at all, which an error says when it is loaded, unless --skip_bad_samples.
    """
    sizes = list(map(size_or_nothing, paths))
    if sum(sizes) > MOST_BYTES:
        return [f"{name} {size}" for name, size in zip(names, sizes, strict=True)], False
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(digest_or_nothing, paths)
        return [digest or f"{name} cannot be read" for digest, name in zip(digests, names, strict=True)], True


def size_or_nothing(path: str) -> int:
    """Return the bytes of a file; 0 when it cannot be read."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def fingerprint(paths: Sequence[str], lines: Sequence[str], is_content: bool) -> str:
    """Return SHA-256 of the lines that describe samples, and of the contents of some files if the lines lack them.

    Args:
        paths: the files.
        lines: of each file, such as its name, its class and its identity.
        is_content: whether the lines tell the content of all files.
    """
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape"))
    return digest.hexdigest() if is_content else with_contents(digest, [(path,) for path in paths])


def with_contents(digest: Any, samples: Sequence[Sequence[str]]) -> str:
    """Return a digest with the contents of evenly spaced samples, in words that tell how many files these are.

    Args:
        digest: of hashlib; is changed.
        samples: the files of each.
    """
    places = {place * len(samples) // NUM_SAMPLED for place in range(NUM_SAMPLED)} if samples else set()
    files = [path for place in sorted(places) for path in samples[place]]
    with ThreadPoolExecutor(THREADS) as pool:
        for content in pool.map(digest_or_nothing, files):
            digest.update(content.encode())
    num_all = len(samples) * len(samples[0]) if samples else 0
    return f"{digest.hexdigest()} (contents of {len(files):,} of {num_all:,} files)"


def digest_or_nothing(path: str) -> str:
    """Return `digest_of` a file; "" when it cannot be read, which an error says when it is loaded."""
    try:
        return digest_of(path)
    except UserError:
        return ""
