"""Find the checkpoint that a run resumes from, and the name of the run."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.checkpoints.checkpointer import PROVENANCE, Checkpointer, read_record
from engine.checkpoints.file import FORMAT, load_checkpoint, verify
from engine.devices.job import place
from utils.errors import DamagedError, UserError

RUN_NAME = r"\w[\w.-]{,99}_\d+"  # PROJECT_TIMESTAMP; as it becomes a part of paths, no other one is accepted
NAMED_FILE = re.compile(rf"config_({RUN_NAME})\.json|({RUN_NAME})_log\.txt")


def find_checkpoint(source: str | Path, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint to resume from, and its content: `source`, or the newest intact one of a run directory.

    Args:
        source: a checkpoint or a run directory.
        warn: called with a line on each damaged checkpoint that is passed over.

    Raises:
        DamagedError: when there are checkpoints, but none is intact.
        UserError: when there is nothing to resume from.
    """
    source, deep = Path(source), place().rank == 0  # of several processes, process 0 chooses
    if not source.exists():
        raise UserError(f"--resume {source}: there is no such run directory or checkpoint.")
    name = run_name(source if source.is_dir() else source.parent)
    damaged = []
    for path in [source] if source.is_file() else Checkpointer.candidates(source):
        try:
            state = load_checkpoint(path, tensors_of=())
            if "shards" in state:
                verify(path, deep)
        except UserError as error:
            if path == source:
                hint = "Give the directory to resume from the newest intact one in it."
                raise type(error)(f"{error}\n{hint}" if isinstance(error, DamagedError) else str(error)) from None
            damaged.append(path.name)
            warn(f"{error} The newest intact one is used.")
            continue
        if state["format"] != FORMAT:
            raise UserError(
                f"--resume {path}: an earlier version wrote it, whose runs this one cannot resume. It can be "
                f"evaluated, or started from: --pretrained --model_path {path}"
            )
        if name and state.get("run_name", name) != name:
            raise UserError(
                f"--resume {path}: it is of the run {state['run_name']}, but in the directory of {name}. "
                "Move it away."
            )
        return path, state
    if damaged:
        raise DamagedError(
            f"--resume {source}: no intact checkpoint is left. Damaged: {', '.join(damaged)}.\n"
            f"To start from the beginning, leave --resume out."
        )
    raise UserError(f"--resume {source}: there is no checkpoint to resume from in this directory.")


def run_name(directory: Path) -> str | None:
    """Return the name of the run whose directory this is, PROJECT_TIMESTAMP; None if it is no run's.

    The record of its provenance has it, so it outlives a renamed directory. An earlier version recorded none, and named
    the files of a renamed run that it resumed after the new directory. So then of several names in those of the files,
    that in the newest checkpoint counts, else the one that ends with the directory's, else that of the oldest config.
    """
    recorded = str(read_record(directory / PROVENANCE).get("run_name"))
    if re.fullmatch(RUN_NAME, recorded):
        return recorded
    order: dict[str, tuple[bool, bool, int]] = {}
    for path in directory.iterdir():
        if match := NAMED_FILE.fullmatch(path.name):
            name = match[1] or match[2]
            rank = (not name.endswith(f"_{directory.name}"), match[1] is None, path.lstat().st_mtime_ns)
            order[name] = min(rank, order.get(name, rank))
    for path in Checkpointer.candidates(directory) if len(order) > 1 else ():
        with contextlib.suppress(UserError):
            if (name := str(load_checkpoint(path, tensors_of=()).get("run_name"))) in order:
                return name
    return min(order, key=order.__getitem__, default=None)
