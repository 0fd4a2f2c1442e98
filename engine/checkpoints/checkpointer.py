"""The checkpoints of one run: their names, how many are kept, and which of them a run goes on from."""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.checkpoints.file import (
    FORMAT,
    check_shards,
    load_checkpoint,
    read_position,
    save_checkpoint,
    shards_named_by,
    verify,
)
from engine.checkpoints.shard_record import DIRECTORY, remove_others
from engine.devices.job import place
from engine.registry import short_name
from utils.errors import DamagedError, UserError
from utils.files import sweep_temporaries, write_atomically

ENDED = "finished.json"  # is there when a run has come to its end, and tells where it stood
UNKNOWN = (2**64, 2**64)  # the position of a file that cannot tell it: beyond all others, so that it is looked at first


class Checkpointer:
    """Names, writes and finds the checkpoints of one run directory.

    The newest is `PREFIX_last_ckpt.pth`; those before it are `PREFIX_last-UPDATE_ckpt.pth`. Each write goes to a
    temporary file first, which takes its name when it is whole, so at every moment `last` is either the old or the new
    one, and one before it is removed only when enough good newer ones are there.

    Args:
        run_dir: where they go.
        prefix: the first part of their names, usually the model type; of ``module:name``, the name.
        every: updates from one to the next.
        keep: how many of `last` to keep, the newest included.
        writes: whether this process does: of several, one.

    Attributes:
        longest_save: seconds.
        seconds: of all that were written.
    """

    KINDS = ("best", "last", "earlystop", "InT")  # InT: interrupted
    HALFWAY = "crash"  # from the middle of an update, or of what follows one: to be looked at, never to be resumed from
    in_shards = False  # whether `save` takes a state whose tensors are cut up between processes

    def __init__(self, run_dir: str | Path, prefix: str, every: int = 1, keep: int = 2, writes: bool = True):
        self.run_dir = Path(run_dir)
        self.prefix = short_name(prefix)
        self.every = every
        self.keep = keep
        self.writes = writes
        self.longest_save = self.seconds = 0.0

    def path(self, kind: str) -> Path:
        return self.run_dir / f"{self.prefix}_{kind}_ckpt.pth"

    def is_due(self, update: int) -> bool:
        """Whether to save after so many updates."""
        return update % self.every == 0

    # ---- write ---------------------------------------------------------------------------------------------------
    def save(self, state: dict[str, Any], *kinds: str) -> float:
        """Write the state as checkpoints of these kinds, remove all beyond `keep`, and return `longest_save`."""
        if not self.writes:
            return 0.0
        started = time.perf_counter()
        self._write(state, kinds)
        seconds = time.perf_counter() - started
        self.longest_save, self.seconds = max(self.longest_save, seconds), self.seconds + seconds
        return self.longest_save

    def finish(self) -> None:
        """Wait until what was saved is on the disk; `save` has waited already, unless a subclass writes meanwhile."""

    def _write(self, state: dict[str, Any], kinds: tuple[str, ...]) -> None:
        if "last" in kinds:
            self._keep_the_last_one((state["progress"]["epoch"], state["progress"]["update"]))
        save_checkpoint({"format": FORMAT, **state}, *(self.path(kind) for kind in kinds))
        if not self.longest_save:
            load_checkpoint(self.path(kinds[0]), tensors_of=())  # what cannot be opened is noticed at the first one
        if "last" in kinds:
            self._prune()
        self._sweep_shards()

    def _keep_the_last_one(self, next_position: tuple[int, int]) -> None:
        """Give `last` a second name, under which it stays when the next one, of another position, takes its place."""
        last = self.path("last")
        position = read_position(last) if self.keep > 1 and last.exists() else None
        if position in (None, next_position):
            return
        second = self.path(f"last-{position[1]}")
        second.unlink(missing_ok=True)
        try:
            os.link(last, second)
        except OSError:  # a file system without links
            write_atomically(second, last.read_bytes())

    def _before_last(self) -> list[Path]:
        """The kept ones, newest first."""
        found = self.run_dir.glob(f"{self.prefix}_last-*_ckpt.pth")
        return sorted(found, key=lambda path: read_position(path) or (0, 0), reverse=True)

    def _prune(self) -> None:
        """Remove kept ones, once enough newer ones are proven good. A damaged one does not count."""
        num_good = 1  # the one that was just written
        for path in self._before_last():
            if num_good >= self.keep:
                path.unlink()
            elif is_good(path):
                num_good += 1

    def _sweep_shards(self) -> None:
        """Remove shards that no checkpoint refers to, those included that were set aside."""
        if (self.run_dir / DIRECTORY).is_dir():
            found = self.run_dir.glob("*_ckpt.pth*")
            with contextlib.suppress(UserError):  # a file that cannot be read, but is not damaged, may refer to any
                remove_others(self.run_dir, {name for path in found if (name := shards_named_by(path))})

    def rescue(self, get_state: Callable[[], dict[str, Any]], logger: logging.Logger) -> None:
        """Save what an exception interrupts. It must not take the exception's place when the disk is full, say."""
        try:
            state = get_state()
            kind = "InT" if state["exact"] else self.HALFWAY
            self.save(state, kind)
            self.finish()
        except Exception as error:
            logger.error(f"The interrupted state could not be saved: {error or type(error).__name__}")
            return
        if self.writes:
            note = "" if state["exact"] else ", from within an update, or what follows one: to be looked at"
            logger.info(f"Saved: {self.path(kind)}{note}")

    # ---- begin ---------------------------------------------------------------------------------------------------
    def begin(self, position: tuple[int, int] = (0, 0)) -> list[str]:
        """Clear the directory for a run that goes on from `position` (epochs, updates); say what was moved.

        Left-over temporary files of a process that died while writing are removed. Checkpoints ahead of the position
        are of a future that will not come, or comes again: they are renamed, or the next resume would take one of them
        for the newest. So are those that are too damaged to tell their position.
        """
        if not self.writes:
            return []
        sweep_temporaries(self.run_dir)
        (self.run_dir / ENDED).unlink(missing_ok=True)
        moved = []
        for path in self.candidates(self.run_dir):
            of_file = read_position(path)
            if (of_file or UNKNOWN) > position:
                names = (path.with_name(f"{path.name}.aside{number or ''}") for number in range(10**6))
                path.rename(aside := next(name for name in names if not name.exists()))
                why = "ahead of where the run goes on" if of_file else "damaged"
                moved.append(f"{path.name} is {why}; renamed to {aside.name}.")
        self._sweep_shards()
        return moved

    # ---- find ----------------------------------------------------------------------------------------------------
    @classmethod
    def candidates(cls, directory: Path) -> list[Path]:
        """The checkpoints of a directory that a run can go on from, if they are good; newest position first.

        The position is read from the file, because times do not survive a copy.
        """
        patterns = [*(f"*_{kind}_ckpt.pth" for kind in cls.KINDS), "*_last-*_ckpt.pth"]
        found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
        # `last` has two names for a moment: the shorter one stays.
        order = {path: (read_position(path) or UNKNOWN, path.stat().st_mtime_ns, -len(path.name)) for path in found}
        return sorted(found, key=order.__getitem__, reverse=True)

    @classmethod
    def find(cls, source: str | Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
        """Return the checkpoint to resume from, and its content: `source`, or the newest good one of a run directory.

        Args:
            source: a checkpoint or a run directory.
            warn: is told of each damaged checkpoint that is passed over.

        Raises:
            DamagedError: when there are checkpoints, but none that is good.
            UserError: when there is nothing to resume from.
        """
        source, deep = Path(source), place()[0] == 0  # of several processes, the choice of process 0 is taken
        if not source.exists():
            raise UserError(f"--resume {source}: there is no such run directory or checkpoint.")
        if source.is_file():
            try:
                state = load_checkpoint(source, tensors_of=())
                check_shards(state, source, deep)
            except DamagedError as error:
                raise DamagedError(f"{error}\nGive the directory to go on from the newest good one in it.") from None
            if not state.get("exact"):
                where = "from the middle of an update, or of what follows one"
                raise UserError(f"--resume {source}: it is {where}. Give the directory instead.")
            return source, state
        good, damaged = [], []
        for path in cls.candidates(source):
            try:
                verify(path, deep)
                good.append(path)
            except UserError as error:  # damaged, or not to be read
                damaged.append(path.name)
                warn(f"{error} The newest good one is used.")
        for path in good:
            state = load_checkpoint(path, tensors_of=())
            if state.get("exact"):
                return path, state
        if damaged:
            raise DamagedError(
                f"--resume {source}: no good checkpoint is left. Damaged: {', '.join(damaged)}.\n"
                f"To begin anew, leave --resume out."
            )
        raise UserError(f"--resume {source}: there is no checkpoint to resume from in this directory.")


def is_good(path: Path) -> bool:
    try:
        verify(path, deep=False)
    except UserError:
        return False
    return True
