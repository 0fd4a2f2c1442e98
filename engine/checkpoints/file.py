"""Checkpoints that are written whole or not at all, and opened as data only.

A file is an archive of `torch.save`, followed by a footer: 16 bytes of magic, the position of the run as two 64-bit
numbers (completed epochs, completed updates), and the SHA-256 of everything before it. `torch.load` reads such a file
as it is; the loader here also checks the digest, because torch does not check the archive's own checksums: a flipped
bit would load as a wrong weight.

A file with another magic is a distributed checkpoint, whose large tensors are in shards beside it (see
extras/distributed_checkpoints.py). Every function here reads both kinds.
"""

import contextlib
import hashlib
import io
import json
import os
import stat
import struct
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from engine.registry import load
from utils.errors import DamagedError, UserError
from utils.files import write_atomically

MAGIC = b"plainloop-ckpt-2"
MAGIC_SHARDS = b"plainloop-shrd-2"  # of the same length
POSITION = struct.Struct(">QQ")
DIGEST_SIZE = hashlib.sha256().digest_size
FOOTER_SIZE = len(MAGIC) + POSITION.size + DIGEST_SIZE
FORMAT = 2
READABLE = (1, 2)  # formats that can be evaluated and started from; only the newest can be resumed
SHARDS = "shards"  # the directory of the shards of all checkpoints of a run
PARTS = ("networks", "optimizers", "averaging")  # whose tensors are large
CHUNK = 2**20  # bytes


# ---- write -----------------------------------------------------------------------------------------------------------
def make_footer(body: bytes | memoryview, position: tuple[int, int] = (0, 0), magic: bytes = MAGIC) -> bytes:
    """Return the footer of the archive `body`."""
    start = magic + POSITION.pack(*position)
    sha = hashlib.sha256(body)
    sha.update(start)
    return start + sha.digest()


def save_checkpoint(state: dict[str, Any], *paths: str | Path) -> None:
    """Serialize `state` once and write it to every path; see `write_atomically` for the errors.

    The position in the footer is that of ``state["progress"]``.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    body = buffer.getbuffer()  # no copy
    progress = state.get("progress", {})
    position = (progress.get("epoch", 0), progress.get("update", 0))
    footer = make_footer(body, position, MAGIC_SHARDS if "shards" in state else MAGIC)
    for path in paths:
        write_atomically(Path(path), body, footer)


# ---- check -----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading. A pipe or a device is refused, because it may never end."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UserError(f"Cannot read the checkpoint {path}: it is no regular file.")
        with open(path, "rb") as file:
            yield file
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        hint = " Give a file in it, such as the one that ends in _best_ckpt.pth." if path.is_dir() else ""
        reason = getattr(error, "strerror", error)
        raise UserError(f"Cannot read the checkpoint {path}: {reason}.{hint}") from None


def read_footer(file: BinaryIO) -> bytes:
    """Return the footer of a file; b"" when there is none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - FOOTER_SIZE, 0))
    footer = file.read()
    is_footer = len(footer) == FOOTER_SIZE and footer.startswith((MAGIC, MAGIC_SHARDS))
    return footer if is_footer else b""


def read_position(path: str | Path) -> tuple[int, int] | None:
    """Return the completed epochs and updates that a checkpoint's footer states; None when there is no footer.

    Only the footer is read, so a damaged file may state anything.
    """
    with opened(path) as file:
        footer = read_footer(file)
    return POSITION.unpack_from(footer, len(MAGIC)) if footer else None


def check_digest(file: BinaryIO, path: str | Path) -> bytes:
    """Return the footer of a file, b"" when there is none; DamagedError if the content does not match its SHA-256."""
    footer = read_footer(file)
    if file.tell() == 0:
        raise DamagedError(f"The checkpoint {path} is empty.")
    if footer:
        left = file.tell() - DIGEST_SIZE
        sha = hashlib.sha256()
        file.seek(0)
        while chunk := file.read(min(CHUNK, left)):
            sha.update(chunk)
            left -= len(chunk)
        if sha.digest() != footer[-DIGEST_SIZE:]:
            raise DamagedError(f"The checkpoint {path} is damaged: its content does not match its SHA-256.")
    return footer


def require_footer(footer: bytes, path: str | Path) -> None:
    if not footer:
        raise DamagedError(f"The checkpoint {path} is damaged: the SHA-256 at its end is missing.")


def verify(path: str | Path, deep: bool = True) -> None:
    """Check that a checkpoint is intact, with its shards if it has any.

    Args:
        path: the checkpoint.
        deep: also compare the content of the shards, and not only their sizes.

    Raises:
        DamagedError: when its content does not match its SHA-256, or has none.
        UserError: when it cannot be read.
    """
    with opened(path) as file:
        footer = check_digest(file, path)
    require_footer(footer, path)
    if footer.startswith(MAGIC_SHARDS):
        for_shards("check_shards")(read(path)[0], path, deep)


def for_shards(name: str) -> Callable:
    """Import a function or class of the distributed checkpoints, which few runs need: it takes a while."""
    return load(f"extras.distributed_checkpoints:{name}", "checkpoint_format")


# ---- read ------------------------------------------------------------------------------------------------------------
def read(path: str | Path) -> tuple[Any, bytes]:
    """Return the content of a file, opened as data only, and its footer; see `load_file`."""
    from engine.checkpoints.untrusted import open_as_data  # here, as a run that writes does not read

    with opened(path) as file:
        footer = check_digest(file, path)
        return open_as_data(file, path), footer


def load_file(path: str | Path) -> Any:
    """Open any file that `torch.save` wrote, as data only and onto the CPU; of a distributed checkpoint the networks.

    Raises:
        DamagedError: when it is empty, was cut off or changed.
        UserError: when it is missing, or holds anything but data.
    """
    content, footer = read(path)
    if footer.startswith(MAGIC_SHARDS):
        return for_shards("read_shards")(content, path, ("networks", "averaging"))
    return content


def load_checkpoint(path: str | Path, tensors_of: Collection[str] = PARTS) -> dict[str, Any]:
    """Open a checkpoint of this template.

    Args:
        path: the file.
        tensors_of: of a distributed checkpoint, the parts whose tensors are read from the shards. In the other parts
            each tensor is None, and if none is read, an entry "shards" says where they are.

    Raises:
        DamagedError: when it is damaged.
        UserError: when it is missing, holds anything but data, or is no checkpoint of this template.
    """
    state, footer = read(path)
    number = state.get("format") if isinstance(state, dict) else None
    if type(number) is not int or number not in READABLE:
        raise UserError(
            f"{path} holds no run of this template (a bare state dict, perhaps). "
            f"To start from its weights: --pretrained --model_path {path}"
        )
    require_footer(footer, path)
    if tensors_of and "shards" in state:
        return for_shards("read_shards")(state, path, tensors_of)
    return state


def options_of(state: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Return the options of a checkpoint that `load_checkpoint` opened; UserError when it holds none.

    They are values of JSON, as in the file of a run. A file from elsewhere may hold tensors, or lists without an end.
    """
    options = state.get("options")
    try:
        if isinstance(options, dict) and all(isinstance(name, str) for name in options) and json.dumps(options):
            return options
    except (TypeError, ValueError, RecursionError):
        pass
    raise UserError(f"The checkpoint {path} holds no options of a run: give one that this template has written.")


def weights_of(state: dict[str, Any], averaged: bool = True) -> dict[str, Any]:
    """Return the states of a checkpoint's networks by name; if `averaged`, the averages where it has any.

    Raises:
        UserError: when the weights or the averages are damaged.
    """
    networks, averaging = state.get("networks"), state.get("averaging")
    if not isinstance(networks, dict) or not networks:
        raise UserError("The checkpoint holds no weights of networks.")
    if not averaged or averaging is None:
        return networks
    try:
        averages = averaging["networks"] if averaging["num_averaged"] else {}
        return {name: weights | averages.get(name, {}) for name, weights in networks.items()}
    except (LookupError, TypeError, AttributeError):
        raise UserError("The averaged weights of the checkpoint are damaged: --no-use_average leaves them.") from None
