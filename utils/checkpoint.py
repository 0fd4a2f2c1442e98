"""Checkpoints that are written whole or not at all, and opened as data only.

    python -m utils.checkpoint hash|show|verify FILE...

A file is what `torch.save` writes (a zip archive), followed by a footer: 16 bytes of magic, the position of the run as
two 64-bit numbers (completed epochs, completed updates), and the SHA-256 of all before it. `torch.load` reads such a
file as it is; our loader also checks the digest, since torch does not check the archive's own checksums: a flipped bit
would load as a wrong weight.
"""

import contextlib
import hashlib
import io
import os
import stat
import struct
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from utils.errors import DamagedError, UserError
from utils.files import write_atomically
from utils.options import OptionParser, one_of, printable, run_main
from utils.state import digests, leaves
from utils.untrusted import inspect

MAGIC = b"plainloop-ckpt-2"
POSITION = struct.Struct(">QQ")
DIGEST_SIZE = hashlib.sha256().digest_size
FOOTER_SIZE = len(MAGIC) + POSITION.size + DIGEST_SIZE
FORMAT = 1
CHUNK = 2**20  # bytes


# ---- write -----------------------------------------------------------------------------------------------------------
def make_footer(body: bytes | memoryview, position: tuple[int, int] = (0, 0)) -> bytes:
    """What stands behind the archive `body`."""
    start = MAGIC + POSITION.pack(*position)
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
    footer = make_footer(body, position)
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
    with opened(Path(path)) as (file, size):
        file.seek(max(size - FOOTER_SIZE, 0))
        footer = file.read(FOOTER_SIZE)
    return POSITION.unpack_from(footer, len(MAGIC)) if is_footer(footer) else None


def is_footer(data: bytes) -> bool:
    return len(data) == FOOTER_SIZE and data.startswith(MAGIC)


def verify(path: str | Path) -> None:
    """Check that a checkpoint is what was once written, without opening it.

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


def load_file(path: str | Path) -> Any:
    """Open any file that `torch.save` wrote, as data only and onto the CPU.

    Raises:
        DamagedError: when it is empty, was cut off or changed.
        UserError: when it is missing, or holds anything but data.
    """
    return load_and_check(Path(path))[0]


def load_and_check(path: Path) -> tuple[Any, bool]:
    """As `load_file`; return the content, and whether a digest vouches for it."""
    with opened(path) as (file, size):
        data = file.read(max(size - FOOTER_SIZE, 0))  # apart, since to cut the footer off later would be a copy
        footer = file.read()
    if not data and not footer:
        raise DamagedError(f"The checkpoint {path} is empty.")
    if not is_footer(footer):
        data, footer = data + footer, b""
    elif make_footer(data, POSITION.unpack_from(footer, len(MAGIC))) != footer:
        raise DamagedError(f"The checkpoint {path} is damaged: its content does not fit its SHA-256.")
    inspect(data, path)
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), bool(footer)
    except Exception as error:  # a file that was changed may lead torch's reader into an exception of any type
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DamagedError(f"The checkpoint {path} is damaged, or is none: {reason}") from None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Open a checkpoint of this template.

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
    return state


def options_of(state: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Return the options of a checkpoint that `load_checkpoint` opened.

    Raises:
        UserError: when it holds none.
    """
    options = state.get("options")
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise UserError(f"The checkpoint {path} holds no options of a run: give one that this template has written.")
    return options


# ---- the command line ------------------------------------------------------------------------------------------------
def describe(state: dict[str, Any]) -> str:
    """Say what a checkpoint holds, in lines of at most 80 letters where words allow it."""
    options, score = state.get("options", {}), state.get("score")
    rows = [("holds", ", ".join(state))]
    if "progress" in state:
        epoch, update, sample = (f"{state['progress'][name]:,}" for name in ("epoch", "update", "sample"))
        rows.append(("position", f"completed: {epoch} epochs, {update} updates, {sample} samples of the next epoch"))
    for name, weights in state.get("networks", {}).items():
        tensors = [value for _, value in leaves(weights) if torch.is_tensor(value)]
        count = sum(tensor.numel() for tensor in tensors)
        kind = options.get("model_type", "of unknown type")
        rows.append(("network", f"{name} ({kind}): {count:,} numbers in {len(tensors):,} tensors, buffers included"))
    for name, optimizer in state.get("optimizers", {}).items():
        rates = ", ".join(f"{group['lr']:g}" for group in optimizer["param_groups"])
        count = sum(len(group["params"]) for group in optimizer["param_groups"])
        kind = options.get("optim", "of unknown type")
        rows.append(("optimizer", f"{name} ({kind}): learning rate {rates}, {count:,} parameter tensors"))
    if score:
        monitor = options.get("monitor")
        results = score["results"]
        shown = {monitor: results[monitor]} if monitor in results else results
        text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        rows.append(("score", f"{text} on {score['num_samples']:,} samples, after update {score['update']:,}"))
    if not state.get("exact", True):
        rows.append(("note", "from the middle of an update: to be looked at, not to be resumed from"))
    rows.append(("options", ", ".join(f"{name}={value}" for name, value in options.items()) or "none"))
    return "\n".join(
        textwrap.fill(
            printable(text), width=80, initial_indent=f"  {label:<11}", subsequent_indent=" " * 13,
            break_long_words=False, break_on_hyphens=False,
        ) for label, text in rows
    )  # fmt: skip


def print_hash(path: str) -> None:
    try:
        found = digests(load_checkpoint(path))
    except (TypeError, AssertionError) as error:
        raise UserError(f"{path} is not filled as this template does: {error}") from None
    print(printable(path))
    for name, text in found.items():
        print(f"  {printable(name):<11} {text}")


def print_content(path: str) -> None:
    state = load_checkpoint(path)
    try:
        text = describe(state)
    except (TypeError, ValueError, LookupError, AttributeError):
        raise UserError(f"{path} is not filled as this template does: {', '.join(map(str, state))}") from None
    print(f"{printable(path)}, {Path(path).stat().st_size:,} bytes\n{text}")


def print_integrity(path: str) -> None:
    verify(path)
    print(f"{printable(path)}: good")


COMMANDS = {"hash": print_hash, "show": print_content, "verify": print_integrity}


def main(argv: list[str] | None = None) -> None:
    parser = OptionParser(
        prog="python -m utils.checkpoint",
        description="hash: the SHA-256 of each part, and of all that decides how training goes on (run). "
        "show: what a file holds. verify: whether it is what was once written. "
        "Exit status: 0 all is well, 2 a file cannot be read or is none of this template, 3 one is damaged.",
    )
    parser.add_argument("command", type=one_of(tuple(COMMANDS)), metavar="hash|show|verify")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a checkpoint")
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        parser.exit(2, parser.format_usage())
    opt, status = parser.parse_args(argv), 0
    for path in opt.files:
        try:
            COMMANDS[opt.command](path)
        except UserError as error:  # the other files are of interest all the same
            print(f"{parser.prog}: error: {printable(str(error))}", file=sys.stderr)
            status = max(status, error.status)
    sys.exit(status)


if __name__ == "__main__":
    run_main(main)
