"""Find the checkpoint that a person means: a file, a run directory, or the newest run."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from engine.checkpoints.checkpointer import Checkpointer
from engine.checkpoints.file import load_checkpoint
from engine.checkpoints.find import run_name
from utils.errors import UserError

LATEST = "latest"


def checkpoint_of(text: str | Path, output_dir: str | Path, evaluator: str | None = None) -> Path:
    """Return the checkpoint of a name: of a run its best one, and without one the newest that is left.

    Args:
        text: a checkpoint, which need not exist; a run directory; `latest`; or DIR/latest, the newest run below DIR.
        output_dir: where `latest` looks for runs, also in directories below.
        evaluator: the name of a class; `latest` is then the newest run that it has validated. None: any run.

    Raises:
        UserError: there is no such run, or it has no checkpoint.
    """
    path = Path(text)
    if path.name == LATEST and not path.exists():
        root = Path(output_dir) if str(text) == LATEST else path.parent
        path = next((run for run in newest_runs(root) if evaluator in (None, evaluator_of(run))), path)
        if path.name == LATEST:
            raise UserError(f"{text}: there is no run of this task with a checkpoint below {root}. Name one.")
    return best_checkpoint(path) if path.is_dir() else path


def evaluator_of(run: Path) -> str | None:
    """Return the name of the class that has validated a run; None if its checkpoint does not say it."""
    with contextlib.suppress(UserError):
        made_by = load_checkpoint(best_checkpoint(run), tensors_of=()).get("evaluator")
        return made_by.rpartition(":")[2] if isinstance(made_by, str) else None
    return None


def best_checkpoint(run: Path) -> Path:
    """Return the best checkpoint of a run directory, else the newest; UserError when there is none."""
    found = Checkpointer.candidates(run)
    best = [path for path in found if path.name.endswith("_best_ckpt.pth")]
    if not found:
        inside = next(newest_runs(run, depth=2), None)
        hint = f" The newest run below it: {inside}, or {run / LATEST}" if inside else ""
        raise UserError(f"{run}: there is no checkpoint in this directory.{hint}")
    return (best or found)[0]


def newest_runs(root: Path, depth: int = 5) -> Iterator[Path]:
    """Yield the run directories below `root` that have a checkpoint, newest first.

    The name of a run ends with the time when it began; the times of files do not survive a copy.

    Args:
        root: where to look.
        depth: how many directories deep; those of a sweep are four below Results.
    """
    runs: dict[Path, int] = {}
    for place, directories, files in os.walk(root):  # it passes over what cannot be read, or has just been removed
        path = Path(place)
        if len(path.relative_to(root).parts) >= depth:
            directories.clear()
        if any(file.endswith("_ckpt.pth") for file in files):
            with contextlib.suppress(OSError):
                if name := run_name(path):
                    runs[path] = int(name.rpartition("_")[2])
    yield from sorted(runs, key=lambda path: (runs[path], str(path)), reverse=True)
