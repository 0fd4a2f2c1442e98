"""Checkpoints that are written whole or not at all, and opened as data only.

A file is what `torch.save` writes (a zip archive), followed by 16 bytes of magic and the SHA-256 of all before it.
`torch.load` reads such a file as it is; our loader also checks the digest, since torch does not check the archive's own
checksums: a flipped bit would load as a wrong weight.
"""

import hashlib
import io
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError

MAGIC = b"plainloop-sha256"
FOOTER_SIZE = len(MAGIC) + hashlib.sha256().digest_size
FORMAT = 1


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that at every moment, even at a crash, `path` holds either the old content or the new.

    The temporary file stands in the same directory, because a rename is atomic only within one file system, and it is
    flushed to the disk before the rename, because the rename may reach the disk first.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def save_checkpoint(state: dict[str, Any], *paths: str | Path) -> None:
    """Serialize `state` once and write it to every path."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    data += MAGIC + hashlib.sha256(data).digest()
    for path in paths:
        write_atomically(Path(path), data)


def load_file(path: str | Path) -> Any:
    """Open any file that `torch.save` wrote, as data only and onto the CPU.

    Raises:
        UserError: when the file is missing, empty, damaged, no torch file, or holds anything but data.
    """
    return load_and_check(Path(path))[0]


def load_and_check(path: Path) -> tuple[Any, bool]:
    """As `load_file`; return the content, and whether a digest vouches for it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = " Give a file in it, such as the one that ends in _best_ckpt.pth." if path.is_dir() else ""
        raise UserError(f"Cannot read the checkpoint {path}: {error.strerror}.{hint}") from None
    if not data:
        raise UserError(f"The checkpoint {path} is empty.")
    has_digest = data[-FOOTER_SIZE:].startswith(MAGIC)
    if has_digest:
        body, digest = data[:-FOOTER_SIZE], data[-FOOTER_SIZE + len(MAGIC) :]
        if hashlib.sha256(body).digest() != digest:
            raise UserError(f"The checkpoint {path} is damaged: its content does not fit its SHA-256.")
    try:
        with warnings.catch_warnings(action="ignore"):  # on a foreign file, torch warns before it fails
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), has_digest
    except Exception as error:  # a foreign file may lead torch's reader into an exception of any type
        reason = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())[:120] or type(error).__name__
        raise UserError(f"{path} is not a checkpoint that can be opened as data only: {reason}") from None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Open a checkpoint of this template; UserError for anything else."""
    state, has_digest = load_and_check(Path(path))
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f"{path} holds no run of this template (a bare state dict, perhaps). "
            f"To start from its weights: --pretrained --model_path {path}"
        )
    if not has_digest:
        raise UserError(f"The checkpoint {path} is damaged: the SHA-256 at its end is missing.")
    return state


class Checkpointer:
    """Names, writes and finds the checkpoints of one run directory.

    Args:
        run_dir: where they go.
        prefix: the first part of their names, usually the model type.
    """

    KINDS = ("best", "last", "earlystop", "InT")  # InT: interrupted
    HALFWAY = "crash"  # from the middle of an update: to be looked at, never to be resumed from

    def __init__(self, run_dir: str | Path, prefix: str):
        self.run_dir = Path(run_dir)
        self.prefix = prefix

    def path(self, kind: str) -> Path:
        assert kind in (*self.KINDS, self.HALFWAY), kind
        return self.run_dir / f"{self.prefix}_{kind}_ckpt.pth"

    def save(self, state: dict[str, Any], *kinds: str) -> None:
        save_checkpoint({"format": FORMAT, **state}, *(self.path(kind) for kind in kinds))

    def rescue(self, state: dict[str, Any], logger: logging.Logger) -> None:
        """Save what an exception interrupts. It must not take the exception's place when the disk is full, say."""
        kind = "InT" if state["exact"] else self.HALFWAY
        try:
            self.save(state, kind)
        except (OSError, RuntimeError, UserError) as error:
            logger.error(f"The interrupted state could not be saved: {error}")
            return
        logger.info(f"Saved: {self.path(kind)}" + (", from the middle of an update" if not state["exact"] else ""))

    @classmethod
    def find(cls, source: str | Path) -> Path:
        """Return the checkpoint to resume from: `source` itself, or the newest usable one of a run directory.

        What an exception inside a training step left is no position of the run, and has a name of its own.

        Raises:
            UserError: when there is nothing to resume from, or the newest checkpoint is damaged.
        """
        source = Path(source)
        if not source.exists():
            raise UserError(f"--resume {source}: there is no such run directory or checkpoint.")
        if source.is_file():
            if not load_checkpoint(source).get("exact"):
                raise UserError(f"--resume {source}: it is from the middle of an update. Give the directory instead.")
            return source
        candidates = [path for kind in cls.KINDS for path in source.glob(f"*_{kind}_ckpt.pth")]
        for path in sorted(candidates, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            if load_checkpoint(path).get("exact"):
                return path
        raise UserError(f"--resume {source}: there is no checkpoint to resume from in this directory.")
