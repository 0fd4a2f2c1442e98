"""Checkpoints that are written whole or not at all, and opened as data only.

A file is what `torch.save` writes (a zip archive), followed by a footer: 16 bytes of magic, the position of the run as
two 64-bit numbers (completed epochs, completed updates), and the SHA-256 of all before it. `torch.load` reads such a
file as it is; our loader also checks the digest, since torch does not check the archive's own checksums: a flipped bit
would load as a wrong weight.

A file with another magic has its large tensors in shards beside it (see shard_record.py). Every function here reads
it as if it had them itself, and `merge` makes one file of them.
"""

import contextlib
import hashlib
import io
import os
import stat
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from engine.checkpoints.shard_record import PARTS, Shards, put_in
from engine.checkpoints.untrusted import open_as_data
from utils.errors import DamagedError, UserError
from utils.files import write_atomically

MAGIC = b"plainloop-ckpt-2"
MAGIC_SHARDS = b"plainloop-shrd-2"  # of the same length
POSITION = struct.Struct(">QQ")
DIGEST_SIZE = hashlib.sha256().digest_size
FOOTER_SIZE = len(MAGIC) + POSITION.size + DIGEST_SIZE
FORMAT = 1
CHUNK = 2**20  # bytes


# ---- write -----------------------------------------------------------------------------------------------------------
def make_footer(body: bytes | memoryview, position: tuple[int, int] = (0, 0), magic: bytes = MAGIC) -> bytes:
    """What stands behind the archive `body`."""
    start = magic + POSITION.pack(*position)
    sha = hashlib.sha256(body)
    sha.update(start)
    return start + sha.digest()


def save_checkpoint(state: dict[str, Any], *paths: str | Path) -> None:
    """Serialize `state` once and write it to every path; see `write_atomically` for what is raised.

    The position in the footer is that of ``state["progress"]``.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getbuffer()  # no copy
    progress = state.get("progress")
    position = (progress["epoch"], progress["update"]) if isinstance(progress, dict) else (0, 0)
    footer = make_footer(body, position, MAGIC_SHARDS if "shards" in state else MAGIC)
    for path in paths:
        write_atomically(Path(path), body, footer)


# ---- read ------------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file and tell its size. A pipe or a device is refused, since it may never end."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UserError(f"Cannot read the checkpoint {path}: it is no regular file.")
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        if isinstance(error, UserError):
            raise
        hint = " Give a file in it, such as the one that ends in _best_ckpt.pth." if path.is_dir() else ""
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"Cannot read the checkpoint {path}: {reason}.{hint}") from None


def read_position(path: str | Path) -> tuple[int, int] | None:
    """The completed epochs and updates that a checkpoint's footer states; None when there is no footer.

    Only the footer is read, so a damaged file may state anything.
    """
    footer = read_footer(Path(path))
    return POSITION.unpack_from(footer, len(MAGIC)) if is_footer(footer) else None


def read_footer(path: Path) -> bytes:
    with opened(path) as (file, size):
        file.seek(max(size - FOOTER_SIZE, 0))
        return file.read(FOOTER_SIZE)


def is_footer(data: bytes) -> bool:
    return len(data) == FOOTER_SIZE and data.startswith((MAGIC, MAGIC_SHARDS))


def shards_named_by(path: Path) -> str | None:
    """The directory of the shards that a checkpoint refers to; None when there is none, or the file is damaged."""
    if not read_footer(path).startswith(MAGIC_SHARDS):
        return None
    try:
        return Shards.of(load_and_check(path)[0], path).directory
    except DamagedError:  # then nothing tells where in the shards its tensors are
        return None


def verify(path: str | Path, deep: bool = True) -> None:
    """Check that a checkpoint is what was once written, without opening it; its shards, too.

    Args:
        path: the checkpoint.
        deep: also read the shards, and not only compare their sizes.

    Raises:
        DamagedError: when its content does not fit its SHA-256, or has none.
        UserError: when it cannot be read.
    """
    sha = hashlib.sha256()
    with opened(Path(path)) as (file, size):
        left = max(size - FOOTER_SIZE, 0)
        while chunk := file.read(min(CHUNK, left)):
            sha.update(chunk)
            left -= len(chunk)
        footer = file.read(FOOTER_SIZE)
    if not size:
        raise DamagedError(f"The checkpoint {path} is empty.")
    if not is_footer(footer):
        raise DamagedError(f"The checkpoint {path} is damaged: the SHA-256 at its end is missing.")
    sha.update(footer[:-DIGEST_SIZE])
    if sha.digest() != footer[-DIGEST_SIZE:]:
        raise DamagedError(f"The checkpoint {path} is damaged: its content does not fit its SHA-256.")
    if footer.startswith(MAGIC_SHARDS):
        check_shards(load_and_check(Path(path))[0], path, deep)


def check_shards(state: dict[str, Any], path: str | Path, deep: bool = True) -> None:
    """Check the shards of a checkpoint that has any, given its content; see `verify`."""
    if "shards" in state:
        Shards.of(state, path).check_files(path, deep)


def load_file(path: str | Path) -> Any:
    """Open any file that `torch.save` wrote, as data only and onto the CPU; of a checkpoint in shards the networks.

    Raises:
        DamagedError: when it is empty, was cut off or changed.
        UserError: when it is missing, or holds anything but data.
    """
    content, _ = load_and_check(Path(path))
    is_ours = isinstance(content, dict) and "format" in content and "shards" in content
    return read_tensors(content, path, ("networks", "averaging")) if is_ours else content


def load_and_check(path: Path) -> tuple[Any, bool]:
    """As `load_file`; return the content, and whether a digest vouches for it."""
    with opened(path) as (file, size):
        data = file.read(max(size - FOOTER_SIZE, 0))  # apart, since to cut the footer off later would be a copy
        footer = file.read()
    if not data and not footer:
        raise DamagedError(f"The checkpoint {path} is empty.")
    if not is_footer(footer):
        data, footer = data + footer, b""
    elif make_footer(data, POSITION.unpack_from(footer, len(MAGIC)), footer[: len(MAGIC)]) != footer:
        raise DamagedError(f"The checkpoint {path} is damaged: its content does not fit its SHA-256.")
    return open_as_data(data, path), bool(footer)


def load_checkpoint(path: str | Path, tensors_of: Collection[str] = PARTS) -> dict[str, Any]:
    """Open a checkpoint of this template.

    Args:
        path: the file.
        tensors_of: if the tensors are in shards beside it: the parts that are read from there. The others have None in
            the place of their tensors, and if none is read, an entry "shards" tells where they are.

    Raises:
        DamagedError: when it is no longer what was once written.
        UserError: when it is missing, holds anything but data, or is no checkpoint of this template.
    """
    state, has_digest = load_and_check(Path(path))
    number = state.get("format") if isinstance(state, dict) else None
    if type(number) is not int or number != FORMAT:
        raise UserError(
            f"{path} holds no run of this template (a bare state dict, perhaps). "
            f"To start from its weights: --pretrained --model_path {path}"
        )
    if not has_digest:
        raise DamagedError(f"The checkpoint {path} is damaged: the SHA-256 at its end is missing.")
    return read_tensors(state, path, tensors_of) if tensors_of and "shards" in state else state


def read_tensors(state: dict[str, Any], path: str | Path, parts: Collection[str] = PARTS) -> dict[str, Any]:
    """Return the content of a checkpoint in shards with the tensors of these parts in their places, whole."""
    from engine.checkpoints.shard_files import read_shards

    shards = Shards.of(state, path)
    shards.check_files(path)
    places = [place for place in shards.tensors if any(place.startswith(f"[{part!r}]") for part in parts)]
    return put_in(state, read_shards(shards, path, {}, places))


def options_of(state: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Return the options of a checkpoint that `load_checkpoint` opened.

    Raises:
        UserError: when it holds none.
    """
    options = state.get("options")
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise UserError(f"The checkpoint {path} holds no options of a run: give one that this template has written.")
    return options


def weights_of(state: dict[str, Any], averaged: bool = True) -> dict[str, Any]:
    """The states of a checkpoint's networks by name; if `averaged`, with averages in their places, where it has any.

    Raises:
        UserError: when the averages are damaged.
    """
    networks, averaging = state["networks"], state.get("averaging")
    if not averaged or averaging is None:
        return networks
    try:
        averages = averaging["networks"] if averaging["num_averaged"] else {}
        return {name: weights | averages.get(name, {}) for name, weights in networks.items()}
    except (LookupError, TypeError, AttributeError):
        raise UserError("The averaged weights of the checkpoint are damaged: --no-use_average leaves them.") from None
