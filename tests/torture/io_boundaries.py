"""The death of the process at every call by which a save touches the disk: afterwards a checkpoint is loadable.

python -m tests.torture.io_boundaries

The process that saves is a fork of this one, in which each call is counted, and the one whose turn it is does
not return.
"""

import builtins
import errno
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.checkpoints.checkpointer import Checkpointer
from engine.checkpoints.file import verify
from engine.checkpoints.find import find_checkpoint
from tests.torture import harness
from tests.torture.harness import Row
from utils.errors import UserError

WHAT = "death of the process at every I/O boundary of a save"
COUNT, QUICK = 1000, 1000  # at most: it ends when no boundary is left
CALLS = (
    "open", "write", "close", "fsync", "fdatasync", "link", "symlink", "rename", "replace", "unlink", "remove", "mkdir",
    "rmdir", "truncate", "ftruncate", "utime", "sendfile", "copy_file_range", "chmod",
)  # fmt: skip
KINDS = (("last",), ("best", "last"))
KEEPS = (1, 2, 3)
LINKS = (True, False)  # whether the file system has links
EARLIER = (0, 1, 2, 4)  # saves before the one in which the process dies
NOTE = "open, each write (also in its middle), flush, close, fsync, link, rename, unlink, those of the directory too"


class Boundaries:
    """Counts the calls that change what is on the disk, and ends the process before the one numbered `die_at`."""

    def __init__(self, die_at: int):
        self.die_at, self.count = die_at, 0

    def cross(self) -> None:
        self.count += 1
        if self.count == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, function: Callable) -> Callable:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self.cross()
            return function(*arguments, **keywords)

        return call

    def install(self, links: bool) -> None:
        """Watch the whole process, for the rest of its life, and let it have links or not."""
        plain_open = builtins.open

        def watched_open(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            if not set(mode) & set("wax+"):
                return plain_open(file, mode, *arguments, **keywords)
            self.cross()
            return WatchedFile(plain_open(file, mode, *arguments, **keywords), self)

        builtins.open = watched_open
        for name in CALLS:
            if hasattr(os, name):
                setattr(os, name, self.watch(getattr(os, name)))
        if not links:
            os.link = no_link


def no_link(*arguments: Any, **keywords: Any) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


class WatchedFile:
    """An open file whose writes are cut in two, with a boundary between the halves."""

    def __init__(self, file: Any, boundaries: Boundaries):
        self.file, self.boundaries = file, boundaries

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "WatchedFile":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def write(self, data: Any) -> int:
        self.boundaries.cross()
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        self.boundaries.cross()
        self.file.write(data[half:])
        return len(data)

    def flush(self) -> None:
        self.boundaries.cross()
        self.file.flush()

    def close(self) -> None:
        self.boundaries.cross()
        self.file.close()


def state_after(update: int) -> dict[str, Any]:
    """A small state that differs from that of any other update."""
    progress = {"epoch": 0, "update": update, "sample": update, "is_exact": True}
    return {"progress": progress, "weights": torch.full((1000,), float(update))}


def save_and_die(
    checkpointer: Checkpointer, update: int, kinds: tuple[str, ...], die_at: int, links: bool = True
) -> bool:
    """Save in a forked process that dies at a boundary; False when it had none so far out, and finished."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            Boundaries(die_at).install(links)
            checkpointer.save(state_after(update), *kinds)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    assert status == 0, "the save itself failed"
    return False


def faults_after(directory: Path, old: int | None, new: int, kinds: tuple[str, ...], keep: int) -> list[str]:
    """Return the faults of a directory in which a save died."""
    faults = []
    for path in harness.checkpoints(directory):
        try:
            verify(path)
        except UserError as error:
            faults.append(str(error))
    try:
        _, found = find_checkpoint(directory, faults.append)
        update = found["progress"]["update"]
        faults += [] if update in (old, new) else [f"found update {update}, not {old} or {new}"]
        faults += [] if bool((found["weights"] == update).all()) else ["the content is that of another update"]
    except UserError as error:
        faults += [] if old is None else [f"nothing was found: {error}"]
    try:  # the next process sweeps, and saves as if nothing had been
        next_one = Checkpointer(directory, "Net", keep=keep)
        next_one.begin((0, new))
        faults += [f"{path.name} is left over" for path in directory.glob(".*.tmp")]
        next_one.save(state_after(new + 1), *kinds)
        update = find_checkpoint(directory, faults.append)[1]["progress"]["update"]
        faults += [] if update == new + 1 else [f"after the next save, update {update} is found"]
    except (UserError, OSError) as error:
        faults.append(f"the next save failed: {error}")
    return faults


def run(count: int = COUNT, seed: int = 0) -> Row:
    """Try every boundary of every kind of save, `count` of each kind at most."""
    row, numbers = Row(), []
    for keep, kinds, links, earlier in itertools.product(KEEPS, KINDS, LINKS, EARLIER):
        how = f"--keep {keep}, {' and '.join(kinds)}, {earlier} saves before{'' if links else ', no links'}"
        for boundary in range(1, count + 1):
            with harness.scratch() as directory:
                checkpointer = Checkpointer(directory, "Net", keep=keep)
                for update in range(1, earlier + 1):
                    checkpointer.save(state_after(update), *kinds)
                if not save_and_die(checkpointer, earlier + 1, kinds, boundary, links):
                    numbers.append(boundary - 1)
                    break
                faults = faults_after(directory, earlier or None, earlier + 1, kinds, keep)
                row.add(f"{how}, boundary {boundary}", faults)
    if not numbers or min(numbers) < 6:
        row.failures.append(f"too few boundaries were met: {numbers}")
    keeps = ", ".join(map(str, KEEPS))
    row.note = (
        f"{NOTE}; {min(numbers, default=0)} to {max(numbers, default=0)} boundaries a save; with --keep {keeps}, "
        "the first save and later ones, one kind of checkpoint and two, on a file system with links and one without"
    )
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
