"""The plain record of a sweep: which trials there are, what became of their runs, and what they reached.

A trial is one setting of the options that are swept. It has a run for each seed.
"""

import csv
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine.options.files import read_text
from utils.errors import UserError
from utils.files import write_json

WAITING, RUNNING, FINISHED = "waiting", "running", "finished"
PRUNED, FAILED, INTERRUPTED = "pruned", "failed", "interrupted"
STATES = (WAITING, RUNNING, FINISHED, PRUNED, FAILED, INTERRUPTED)
TO_DO = (WAITING, RUNNING, INTERRUPTED)  # in a record that is read; a run that was going on then does so no more
OUTPUT = "output.txt"  # in the directory of a run: what it printed
MAX_RECORD = 2**25  # bytes


@dataclass
class Run:
    """One run of the trainer.

    Attributes:
        seed: of the run.
        state: one of `STATES`.
        status: its exit status, once it ended; negative for a signal that killed it.
        last_line: the last that it printed, when it failed.
        value: the best value of the monitored metric, as far as it came.
        epochs: that it completed.
        seconds: that it took, over all resumes.
    """

    seed: int
    state: str = WAITING
    status: int | None = None
    last_line: str = ""
    value: float | None = None
    epochs: int = 0
    seconds: float = 0.0


@dataclass
class Trial:
    """One setting of the swept options, as texts by name, with a run for each seed.

    >>> trial = Trial(3, {"lr": "1e-3"}, [Run(0, FINISHED, value=0.8), Run(1, FINISHED, value=0.9)])
    >>> trial.name, round(trial.mean, 3), trial.state
    ('003', 0.85, 'finished')
    """

    number: int
    settings: dict[str, str]
    runs: list[Run] = field(default_factory=list)
    number_in_study: int | None = None  # of a search, whose study other machines may add trials to

    @property
    def name(self) -> str:
        return f"{self.number:03d}"

    @property
    def values(self) -> list[float]:
        """The values of the runs that are finished."""
        return [run.value for run in self.runs if run.state == FINISHED and run.value is not None]

    @property
    def mean(self) -> float | None:
        """The mean of `values`; None without one."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of `values`; None of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def state(self) -> str:
        """That of the runs: the first of these that any of them has."""
        states = {run.state for run in self.runs}
        order = (RUNNING, WAITING, INTERRUPTED, PRUNED, FAILED, FINISHED)
        return next(state for state in order if state in states)

    def directory(self, root: Path, run: Run) -> Path:
        """Where one of its runs writes: as --output_dir, so that the run itself has a directory in it."""
        return root / "runs" / f"{self.name}-seed{run.seed}"


def short(text: str) -> str:
    """A number with four digits, such as a search draws; anything else as it is.

    >>> short("0.0015676677195506068"), short("1e-3"), short("adamW")
    ('0.001568', '1e-3', 'adamW')
    """
    try:
        return text if len(text) <= 8 else f"{float(text):.4g}"
    except ValueError:
        return text


# ---- the file --------------------------------------------------------------------------------------------------------
def save_trials(path: Path, trials: Iterable[Trial]) -> None:
    write_json(path, [asdict(trial) for trial in trials])


def load_trials(path: Path) -> list[Trial]:
    """Read what `save_trials` wrote; UserError when it is something else."""
    try:
        trials = []
        for entry in json.loads(read_text(path, MAX_RECORD)):
            trial = Trial(**{**entry, "runs": [Run(**run) for run in entry["runs"]]})
            if trial.number != len(trials) or not is_sound(trial):
                raise ValueError(f"trial {len(trials)} is damaged")
            trials.append(trial)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Is this the directory of a sweep?") from None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not the record of a sweep: {error}.") from None
    return trials


def is_sound(trial: Trial) -> bool:
    texts = all(isinstance(text, str) for entry in trial.settings.items() for text in entry)
    runs = all(
        type(run.seed) is int and run.state in STATES and isinstance(run.last_line, str)
        and (run.value is None or type(run.value) is float) and type(run.epochs) is int
        for run in trial.runs
    )  # fmt: skip
    return texts and runs and bool(trial.runs) and type(trial.number_in_study) in (int, type(None))


# ---- what a run wrote ------------------------------------------------------------------------------------------------
def read_curve(directory: Path, metric: str) -> list[tuple[int, float]]:
    """The (epoch, value) of each validation of the newest run in a directory; empty while there is none.

    Args:
        directory: the --output_dir of the run.
        metric: the name of the metric, without val/.

    Raises:
        UserError: when metrics.csv has no such column.
    """
    paths = sorted(directory.glob("*/metrics.csv"))
    if not paths:
        return []
    with open(paths[-1], newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        curve = [(int(row["epoch"]), float(row.get(f"val/{metric}") or "nan")) for row in rows]
    except (LookupError, ValueError, TypeError) as error:
        raise UserError(f"{paths[-1]} is not what a run has written: {error}.") from None
    return [(epoch, value) for epoch, value in curve if not math.isnan(value)]


def best_of(values: Iterable[float], mode: str) -> float | None:
    """The largest ("max") or smallest ("min") of the finite values; None without one."""
    finite = [value for value in values if math.isfinite(value)]
    return (max if mode == "max" else min)(finite) if finite else None


def last_line(path: Path) -> str:
    """The last line with something in it of a file, cut at 300 letters; "" without one."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
