"""The checkpoints of one run: their names, and how many are kept. See find.py for the one that a run resumes from."""

import contextlib
import itertools
import json
import logging
import os
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.checkpoints.file import SHARDS, for_shards, load_checkpoint, read_position, save_checkpoint, verify
from engine.devices.process_group import Distributed
from engine.registry import short_name
from utils.errors import UserError
from utils.files import sweep_temporaries, write_atomically

ENDED = "finished.json"  # is there when a run has come to its end, and holds its position
PROVENANCE = "provenance.json"
UNKNOWN = (2**64, 2**64)  # the position of a file without one: beyond all others, so that it is looked at first


class Checkpointer:
    """Names, writes and finds the checkpoints of one run directory.

    The newest is `PREFIX_last_ckpt.pth`; the ones before it are `PREFIX_last-UPDATE_ckpt.pth`. Each is written to a
    temporary file that takes its name when it is whole, so at every moment `last` is either the old or the new one. One
    before it is removed only when there are enough intact newer ones.

    Args:
        run_dir: where they are.
        prefix: the first part of their names: the model type, or with several networks the project; of ``module:name``,
            the name.
        every: updates from one to the next.
        keep: how many of `last` to keep, the newest included.
        writes: whether this process writes: of several, one does.

    Attributes:
        longest_save: seconds.
    """

    KINDS = ("best", "last", "earlystop", "InT")  # InT: interrupted
    in_shards = False  # whether `save` takes a state whose tensors are sharded between processes

    def __init__(self, run_dir: str | Path, prefix: str, every: int = 1, keep: int = 2, writes: bool = True):
        self.run_dir = Path(run_dir)
        self.prefix = short_name(prefix)
        self.every = every
        self.keep = keep
        self.writes = writes
        self.longest_save = 0.0

    def path(self, kind: str) -> Path:
        return self.run_dir / f"{self.prefix}_{kind}_ckpt.pth"

    def is_due(self, update: int) -> bool:
        """Whether to save after so many updates."""
        return update % self.every == 0

    # ---- write ---------------------------------------------------------------------------------------------------
    def save(self, state: dict[str, Any], *kinds: str) -> float:
        """Write the state as checkpoints of these kinds, prune to `keep`, and return `longest_save`."""
        if not self.writes:
            return 0.0
        started = time.perf_counter()
        self._write(state, kinds)
        self.longest_save = max(self.longest_save, time.perf_counter() - started)
        return self.longest_save

    def finish(self) -> None:
        """Wait until what was saved is on the disk. Here `save` has waited; a subclass may write in the background."""

    def _write(self, state: dict[str, Any], kinds: tuple[str, ...]) -> None:
        if "last" in kinds:
            self._keep_the_last_one((state["progress"]["epoch"], state["progress"]["update"]))
        save_checkpoint(state | {"saved_as": list(kinds)}, *(self.path(kind) for kind in kinds))
        if "last" in kinds:
            self._prune()
        self._sweep_shards()

    def _keep_the_last_one(self, next_position: tuple[int, int]) -> None:
        """Give `last` a second name, under which it stays when one of another position replaces it."""
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

    def _prune(self) -> None:
        """Remove the oldest of `last`, once enough newer ones are verified. A damaged one does not count."""
        positions = {path: read_position(path) for path in self.run_dir.glob(f"{self.prefix}_last-*_ckpt.pth")}
        # A name that `_keep_the_last_one` would not give is that of somebody else's file.
        older = [path for path, found in positions.items() if found and path == self.path(f"last-{found[1]}")]
        num_good = 1  # the one that was just written
        for path in sorted(older, key=positions.__getitem__, reverse=True):
            if num_good >= self.keep:
                path.unlink()
            else:
                with contextlib.suppress(UserError):
                    verify(path, deep=False)
                    num_good += 1

    def _sweep_shards(self) -> None:
        """Remove the shards that no checkpoint names."""
        if (self.run_dir / SHARDS).exists():
            for_shards("sweep_shards")(self.run_dir)

    def rescue(self, get_state: Callable[[], dict[str, Any]], logger: logging.Logger) -> None:
        """Save the state that an exception interrupts; log an error, such as a full disk, and raise none."""
        try:
            state = get_state()
            if not state["progress"]["is_exact"]:
                logger.info("Nothing is saved: the exception broke off a step, or the count of an epoch.")
                return
            self.save(state, "InT")
            self.finish()
        except Exception as error:
            logger.error(f"The interrupted state could not be saved: {error or type(error).__name__}")
            return
        if self.writes:
            logger.info(f"Saved: {self.path('InT')}")

    # ---- begin ---------------------------------------------------------------------------------------------------
    def begin(self, position: tuple[int, int] = (0, 0), resumed: str | Path | None = None) -> list[str]:
        """Prepare the directory of a run that is resumed at `position` (epochs, updates); return what was renamed.

        Temporary files that a killed process left are removed. Checkpoints ahead of the position are renamed, because
        the next resume would take one of them for the newest. So are those too damaged to have a position.

        Args:
            position: where the run starts.
            resumed: the checkpoint that it resumes. The kill may have come between the files of one save, such as best
                and last. Those that are missing are written, because a run that was at its end saves no more.
        """
        if not self.writes:
            return []
        sweep_temporaries(self.run_dir)
        (self.run_dir / ENDED).unlink(missing_ok=True)
        moved = []
        for path in self.candidates(self.run_dir):
            of_file = read_position(path)
            if (of_file or UNKNOWN) > position:
                aside = first_free(path.with_name(f"{path.name}.aside"))
                path.rename(aside)
                why = "ahead of the position of this run" if of_file else "damaged"
                moved.append(f"{path.name} is {why}; renamed to {aside.name}.")
        if resumed:
            self._complete_save(Path(resumed))
        self._sweep_shards()
        return moved

    def _complete_save(self, resumed: Path) -> None:
        kinds = load_checkpoint(resumed, tensors_of=()).get("saved_as")
        position = read_position(resumed)
        for kind in kinds if isinstance(kinds, list) else ():
            path = self.path(kind)
            if kind not in self.KINDS or (path.exists() and read_position(path) == position):
                continue
            if kind == "last":
                self._keep_the_last_one(position)
            write_atomically(path, resumed.read_bytes())
        self._prune()

    # ---- find ----------------------------------------------------------------------------------------------------
    @classmethod
    def candidates(cls, directory: Path) -> list[Path]:
        """Return the checkpoints of a directory that a run can resume from, if they are intact; newest position first.

        The position is read from the file, because times do not survive a copy.
        """
        patterns = [*(f"*_{kind}_ckpt.pth" for kind in cls.KINDS), "*_last-*_ckpt.pth"]
        found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
        # `last` has two names for a moment: the shorter one stays.
        order = {path: (read_position(path) or UNKNOWN, path.stat().st_mtime_ns, -len(path.name)) for path in found}
        return sorted(found, key=order.__getitem__, reverse=True)


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file of a run; {} when it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def first_free(path: Path, before_number: str = "") -> Path:
    """Return the path, or if there is such a file, one with a number behind it."""
    names = (path.with_name(f"{path.name}{before_number}{number}") for number in itertools.count(1))
    return next(name for name in itertools.chain([path], names) if not name.exists())


def build_checkpointer(
    opt: Namespace, run_dir: Path, num_networks: int, updates_per_epoch: int, distributed: Distributed
) -> Checkpointer:
    """Build the writer of a run's checkpoints, in the format of --checkpoint_format."""
    every = opt.save_every_updates or max(1, round(opt.save_every * updates_per_epoch))
    prefix = opt.model_type if num_networks == 1 and opt.model_type else opt.proj_name
    if opt.checkpoint_format == "sharded":
        checkpointer_class = for_shards("DistributedCheckpointer")
        return checkpointer_class(distributed, run_dir, prefix, every, opt.keep)
    return Checkpointer(run_dir, prefix, every, opt.keep, writes=distributed.is_main)
