"""Find the checkpoint that a person means: a file, a run directory, or the newest run."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.checkpoints.checkpointer import Checkpointer, read_record
from engine.checkpoints.find import run_name
from utils.errors import UserError

LATEST = "latest"


def checkpoint_of(
    text: str | Path, output_dir: str | Path, fits: Callable[[Mapping[str, Any]], bool] = lambda options: True
) -> Path:
    """Return the checkpoint of a name: of a run its best one, and without one the newest that is left.

    Args:
        text: a checkpoint, which need not exist; a run directory; `latest`; or DIR/latest, the newest run below DIR.
        output_dir: where `latest` looks for runs, also in directories below.
        fits: says whether a run with these options is one that `latest` may mean.

    Raises:
        UserError: there is no such run, or it has no checkpoint.
    """
    path = Path(text)
    if path.name == LATEST and not path.exists():
        root = Path(output_dir) if str(text) == LATEST else path.parent
        path = next((run for run, options in newest_runs(root) if fits(options)), path)
        if path.name == LATEST:
            raise UserError(f"{text}: there is no run of this task with a checkpoint below {root}. Name one.")
    return best_checkpoint(path) if path.is_dir() else path


def best_checkpoint(run: Path) -> Path:
    """Return the best checkpoint of a run directory, else the newest; UserError when there is none."""
    found = Checkpointer.candidates(run)
    best = [path for path in found if path.name.endswith("_best_ckpt.pth")]
    if not found:
        inside = next(newest_runs(run), None)
        hint = f" The newest run below it: {inside[0]}, or {run / LATEST}" if inside else ""
        raise UserError(f"{run}: there is no checkpoint in this directory.{hint}")
    return (best or found)[0]


def newest_runs(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the run directories below `root` that have a checkpoint, with their options, newest first.

    The name of a run ends with the time when it began; the times of files do not survive a copy.
    """
    runs: dict[tuple[int, str], tuple[Path, str]] = {}
    for path in {checkpoint.parent for checkpoint in root.glob("**/*_ckpt.pth")}:
        name = run_name(path)
        if name:
            runs[int(name.rpartition("_")[2]), str(path)] = path, name
    for key in sorted(runs, reverse=True):
        path, name = runs[key]
        yield path, read_record(path / f"config_{name}.json")
