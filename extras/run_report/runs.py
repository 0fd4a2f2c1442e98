"""Read what a run has left in its directory: options, curves, the best epoch, and how it ended."""

import csv
import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.checkpoints.checkpointer import ENDED, PROVENANCE, read_record
from engine.checkpoints.find import run_name
from engine.registry import load
from engine.runs.lock import LOCK_FILE, is_locked
from options import train_parser
from trainer import TrainerBase
from utils.earlystopper import direction
from utils.errors import UserError

# By the program that the run's command names: the trainer, whose defaults are compared, and the program of evaluation.
# A record names nothing else, as it may come from elsewhere.
PROGRAMS = {
    "trainer_vanilla.py": ("trainer_vanilla:TrainerVanilla", "eval_vanilla.py"),
    "trainer_seg_on_carvana.py": ("trainer_seg_on_carvana:TrainerSeg", "eval_seg_on_carvana.py"),
    "trainer_gan.py": ("extras.gan.trainer_gan:TrainerGAN", "eval_gan.py"),
    "-m examples.demo": ("trainer_vanilla:TrainerVanilla", "eval_vanilla.py"),
}
# Found in the data, drawn, or of a run's place: they differ between runs that are set alike.
NOT_SET = {"n_channels", "n_classes", "class_names", "output_dir", "resume", "resume_notes", "description"}
LOG_TAIL = 2**16  # bytes
FINISHED = "Finished after "
LAST_WORD = re.compile(rf"ERROR Stopped by (?P<reason>.+) after update [\d,]+\.|INFO (?:(?P<end>{FINISHED})|Resumed )")
BY_A_PERSON = ("Ctrl-C", "the time limit", "the signal ")


@dataclass
class RunRecord:
    """The record of a run: what it has left in its directory.

    Attributes:
        path: its directory.
        name: PROJECT_TIMESTAMP.
        options: by name, resolved.
        rows: of metrics.csv, numbers by column; an empty cell is left out.
        provenance: the record of the command, the code and the machine.
        ended: the position at which it ended; {} without an end.
        status: running, finished, stopped early, interrupted or crashed.
    """

    path: Path
    name: str
    options: dict[str, Any]
    rows: list[dict[str, float]]
    provenance: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, Any] = field(default_factory=dict)
    status: str = "running"

    @property
    def best(self) -> dict[str, float] | None:
        """The row of the epoch that was best by --monitor, the first of equals; None before a validation."""
        column = f"val/{self.options.get('monitor')}"
        rows = [row for row in self.rows if math.isfinite(row.get(column, math.nan))]
        mode = str(self.options.get("monitor_mode", "auto"))
        sign = 1 if direction(column.removeprefix("val/"), mode) == "max" else -1
        return max(rows, key=lambda row: sign * row[column], default=None)

    @property
    def seconds(self) -> float:
        """Seconds of training, validation and saving."""
        return sum(row.get(name, 0.0) for row in self.rows for name in ("time/train", "time/val", "time/save"))

    @property
    def program(self) -> str:
        """The program that the run's command names, as `trainer_vanilla.py` or `-m examples.demo`; "" if unknown."""
        try:
            words = shlex.split(str(self.provenance.get("command", "")))[1:3]
        except ValueError:  # a quote without an end
            words = []
        if words[:1] == ["-m"]:
            return " ".join(words)
        return os.path.basename(words[0]) if words else ""


def read_run(path: str | Path, row: Mapping[str, float] | None = None, status: str | None = None) -> RunRecord:
    """Read a run directory.

    Args:
        path: the directory.
        row: the newest line of metrics.csv, if it may not be in the file yet.
        status: of the run, if it is known; None looks.

    Raises:
        UserError: it is no directory of a run.
    """
    path = Path(path)
    name = run_name(path) if path.is_dir() else None
    options = read_record(path / f"config_{name}.json") if name else {}
    if not options:
        raise UserError(f"{path} is no directory of a run: it has no config_*.json. Name one, or latest.")
    rows = read_rows(path / "metrics.csv")
    if row is not None:
        rows = [old for old in rows if old["epoch"] < row["epoch"]] + [dict(row)]
    record = RunRecord(path, name, options, rows, read_record(path / PROVENANCE), read_record(path / ENDED))
    record.status = status or status_of(record)
    return record


def read_rows(path: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv; those that are not numbers are left out, and [] without the file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [numbers(row) for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error):
        return []
    return [row for row in rows if "epoch" in row]


def numbers(row: Mapping[str | None, Any]) -> dict[str, float]:
    """Return the cells of a row that are numbers.

    >>> numbers({"epoch": "1", "val/loss": "", "lr": "1e-3", None: ["x"]})
    {'epoch': 1.0, 'lr': 0.001}
    """
    found = {}
    for name, text in row.items():
        try:
            found[name] = float(text)
        except (TypeError, ValueError):
            continue
    return found


def status_of(run: RunRecord) -> str:
    """Return how a run ended, or that it is running."""
    if (run.path / LOCK_FILE).exists() and is_locked(run.path):
        return "running"
    last_word = last_word_of(run.path / f"{run.name}_log.txt")
    if run.ended or last_word == FINISHED:  # earlier versions wrote no finished.json
        ended = run.ended or {name: int(value) for name, value in (run.rows or [{}])[-1].items() if value % 1 == 0}
        ends = (("epoch", "n_epoch"), ("update", "max_updates"))
        reached = [at_least(ended.get(position), run.options.get(option)) for position, option in ends]
        return "finished" if any(reached) else "stopped early"
    return "interrupted" if last_word and last_word.startswith(BY_A_PERSON) else "crashed"


def at_least(value: Any, wanted: Any) -> bool:
    """Return whether both are numbers, and the first is not below the second."""
    return isinstance(value, int) and isinstance(wanted, int) and value >= wanted


def last_word_of(path: Path) -> str | None:
    """Return what has stopped a run, from the end of its log, or FINISHED; None without a word, as after a kill."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    found = list(LAST_WORD.finditer(text))
    return (found[-1]["end"] or found[-1]["reason"]) if found else None


# ---- options ---------------------------------------------------------------------------------------------------------
def defaults_of(run: RunRecord, task: type | None = None) -> dict[str, Any]:
    """Return the defaults of a run's task; of a task that does not ship, those of the template.

    Args:
        run: the run.
        task: the trainer's class, if it is known.
    """
    if task is None:
        reference = PROGRAMS.get(run.program, ("", ""))[0]
        task = load(reference, "run") if reference else TrainerBase
    parser = train_parser(task)
    return {name: parser.get_default(name) for name in parser.known}


def differing(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (option, value, default) of those that differ, without what the data or chance has set.

    >>> differing({"lr": 0.1, "seed": 3, "loss_type": "CE"}, {"lr": 0.001, "seed": None, "loss_type": ["CE"]})
    [('lr', 0.1, 0.001)]
    """
    return [
        (name, value, defaults[name])
        for name, value in options.items()
        if name in defaults and name not in NOT_SET and name != "seed" and plain(value) != plain(defaults[name])
    ]


def plain(value: Any) -> Any:
    """Return a value in the form in which values are compared: none, nothing and an empty mapping are alike."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return None if value in (None, {}, [], "") else value


def as_text(value: Any) -> str:
    """Return a value of an option as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def settings_text(different: Sequence[tuple[str, Any, Any]]) -> str:
    """Return options that differ as text for a line.

    >>> settings_text([("lr", 0.1, 0.001), ("metrics", ["f1"], None)])
    'lr=0.1 metrics=["f1"]'
    """
    return " ".join(f"{name}={as_text(value)}" for name, value, _ in different)


# ---- find runs -------------------------------------------------------------------------------------------------------
def find_runs(root: str | Path, depth: int = 5) -> Iterator[Path]:
    """Yield the run directories below `root`, and itself, newest first, also those without a checkpoint.

    Args:
        root: where to look.
        depth: how many directories deep.
    """
    found: dict[Path, int] = {}
    for place, directories, files in os.walk(root):
        path = Path(place)
        if len(path.relative_to(root).parts) >= depth:
            directories.clear()
        directories[:] = [name for name in directories if not name.startswith(".")]
        if any(file.startswith("config_") and file.endswith(".json") for file in files) and (name := run_name(path)):
            found[path] = int(name.rpartition("_")[2])
    yield from sorted(found, key=lambda path: (found[path], str(path)), reverse=True)


def named_run(text: str) -> Path:
    """Return the directory that a person means: a run, a checkpoint in it, `latest`, or DIR/latest.

    Raises:
        UserError: there is no run.
    """
    path = Path(text)
    if path.name == "latest" and not path.exists():
        root = path.parent if len(path.parts) > 1 else Path("Results")
        newest = next(find_runs(root), None)
        if newest is None:
            raise UserError(f"{text}: there is no run below {root}. Name one.")
        return newest
    return path.parent if path.is_file() else path
