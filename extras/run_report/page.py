"""Write the report of a run: one HTML file that needs no network, see docs/report.md.

What a page shows comes from names, logs and options, which may hold anything. So the template escapes all of it, the
numbers of the curves stand in a script of type application/json, and a content security policy lets the browser run
only the two scripts whose digests are named.
"""

import base64
import csv
import functools
import hashlib
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.checkpoints.checkpointer import read_record
from engine.options.parser import printable
from extras.run_report.runs import PROGRAMS, RunRecord, as_text, defaults_of, differing, read_run
from utils.files import write_atomically
from utils.time_shares import time_shares

HERE = Path(__file__).resolve().parent
REFRESH = 15  # seconds between two looks of a browser at the page of a run that lives
LARGEST_PICTURE = 2**22  # bytes
LARGEST_TABLE = 2**25  # bytes of a predictions.csv
MOST_CLASSES = 40  # of a confusion matrix
PICTURES = {  # of an evaluation, with their captions
    "mistakes.png": "Mistakes, those with the largest losses first",
    "overlays.png": "Predictions over the images",
    "calibration.png": "Calibration",
    "curves.png": "Precision, recall and ROC",
}


def write_report(
    path: str | Path,
    row: Mapping[str, float] | None = None,
    status: str | None = None,
    task: type | None = None,
    evaluation: str | Path | None = None,
) -> Path:
    """Write report.html into a run directory, and return its path.

    Args:
        path: the directory.
        row: the newest line of metrics.csv, if it may not be in the file yet.
        status: of the run, if it is known.
        task: the class of its trainer, if it is known.
        evaluation: the directory of an evaluation; None looks for the newest of this run.

    Raises:
        UserError: it is no directory of a run, or the page cannot be written.
    """
    run = read_run(path, row, status)
    report = run.path / "report.html"
    write_atomically(report, render(run, task, evaluation).encode(errors="replace"))
    return report


def render(run: RunRecord, task: type | None = None, evaluation: str | Path | None = None) -> str:
    """Return the page of a run."""
    options = {name: as_text(value) for name, value in run.options.items()}
    different = differing(run.options, defaults_of(run, task))
    found = Path(evaluation) if evaluation else find_evaluation(run.path)
    text, scripts, template = parts_of_page()
    return template.render(
        run=run,
        **text,
        digests=[digest(script) for script in scripts],
        refresh=REFRESH if run.status == "running" else None,
        monitor=f"val/{run.options.get('monitor')}",
        different=[(name, as_text(value), as_text(default)) for name, value, default in different],
        options=options,
        curves=curves_of(run),
        shares=shares_of(run.rows),
        commands=commands_of(run),
        data=picture(run.path / "data.png"),
        evaluation=read_evaluation(found) if found else None,
    )


@functools.cache
def parts_of_page(page: str = "page.html", script: str = "page.js") -> tuple[dict[str, Any], list[str], Any]:
    """Return what every page has in it by name, its two scripts, and the template."""
    import jinja2

    class Markup(str):
        """Text of this directory, which is not escaped."""

        def __html__(self):
            return self

    files = {
        "plot": "uplot/uPlot.iife.min.js", "plot_style": "uplot/uPlot.min.css", "licence": "uplot/LICENSE",
        "script": script, "style": "page.css",
    }  # fmt: skip
    text = {name: Markup((HERE / file).read_text(encoding="utf-8")) for name, file in files.items()}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number_text, "duration": duration_text, "printable": shown_text}
    return text, [text["plot"], text["script"]], environment.get_template(page)


def digest(script: str) -> str:
    """Return the digest of a script as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def number_text(value: Any) -> str:
    """Return a number with four digits.

    >>> number_text(0.87654321), number_text(1234567.0), number_text(None), number_text(160.0)
    ('0.8765', '1,234,567', 'none', '160')
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "none" if value is None else str(value)
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 10000 else f"{value:.4g}"


def duration_text(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds.

    >>> duration_text(3.2), duration_text(75), duration_text(7325)
    ('3.2 s', '1:15 min', '2:02:05 h')
    """
    whole = round(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h"


def shown_text(text: Any) -> str:
    """Return a text with control characters and marks of direction escaped, for a command that is to be copied."""
    return "\n".join(printable(line) for line in str(text).split("\n"))


# ---- curves, time, commands ------------------------------------------------------------------------------------------
def curves_of(run: RunRecord) -> dict[str, Any]:
    """Return the curves for the page: the epochs, the best of them, and panels of a title and its lines.

    The metrics come first, each with training and validation in one panel; a value that is not finite is a gap.
    """
    rows = run.rows
    columns = list(dict.fromkeys(name for row in rows for name in row))
    metrics = dict.fromkeys(name.split("/", 1)[1] for name in columns if name.startswith(("train/", "val/")))
    panels = {metric: [f"{part}/{metric}" for part in ("train", "val")] for metric in metrics}
    monitor = str(run.options.get("monitor"))
    order = sorted(panels, key=lambda metric: (metric not in (monitor, "loss"), metric == "grad_norm"))
    panels = {metric: panels[metric] for metric in order}
    panels |= {name: [name] for name in columns if name.split("/")[0] == "lr" or name == "samples_per_second"}
    drawn = []
    for title, names in panels.items():
        lines = [{"name": name, "values": column_of(rows, name)} for name in names if name in columns]
        drawn.append({"title": title, "lines": lines})
    best = run.best
    return {
        "key": run.name,
        "epochs": [row["epoch"] for row in rows],
        "best": best["epoch"] if best else None,
        "panels": drawn,
    }


def column_of(rows: Sequence[Mapping[str, float]], name: str) -> list[float | None]:
    """Return the values of a column, None where there is none or it is not finite."""
    return [value if math.isfinite(value := row.get(name, math.nan)) else None for row in rows]


def shares_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the shares of the measured time, of updates, of waiting for data, of validation and of saving."""
    sums = {name: sum(row.get(f"time/{name}", 0.0) for row in rows) for name in ("train", "data_wait", "val", "save")}
    total = sums["train"] + sums["val"] + sums["save"]
    if not total > 0 or not math.isfinite(total):
        return {}
    parts = {
        "updates": sums["train"] - sums["data_wait"],
        "waiting for data": sums["data_wait"],
        "validation": sums["val"],
        "saving": sums["save"],
    }
    shares = time_shares(total, parts)
    return {name: shares[name] for name in parts}


def commands_of(run: RunRecord) -> list[tuple[str, str]]:
    """Return (what for, command) of the commands that go on from a run; those of an unknown program are left out."""
    path, commands = shlex.quote(os.path.relpath(run.path)), []
    if run.program:
        program = run.program if run.program.startswith("-m ") else program_path(run)
        commands.append(("Go on", f"python {program} --resume {path}"))
    if run.program in PROGRAMS:
        commands.append(("Evaluate", f"python {PROGRAMS[run.program][1]} {path}"))
    commands.append(("Predict files", f"python predict.py {path} FILE_OR_DIR"))
    command, commit = run.provenance.get("command"), str(run.provenance.get("git_commit"))
    if command:
        checkout = f"git checkout {commit}\n" if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit) else ""
        seed = run.options.get("seed")
        given = isinstance(seed, int) and not re.search(r"--seed\b", str(command))
        commands.append(("Repeat", f"{checkout}{command}{f' --seed {seed}' if given else ''}"))
    return [(what, shown_text(text)) for what, text in commands]


def program_path(run: RunRecord) -> str:
    """Return the program of a run as its command names it, quoted."""
    return shlex.quote(shlex.split(str(run.provenance["command"]))[1])


# ---- evaluations and pictures ----------------------------------------------------------------------------------------
def find_evaluation(run: Path, beside: Path = Path("test_viz")) -> Path | None:
    """Return the newest directory of an evaluation of a run: in it, or in `test_viz` with a checkpoint of it."""
    found = [path.parent for pattern in ("*/results.json", "*/*/results.json") for path in run.glob(pattern)]
    for path in beside.glob("*/results.json"):
        model = str(read_record(path).get("what")).split(" on ")[0]
        if os.path.abspath(os.path.dirname(model)) == os.path.abspath(run):
            found.append(path.parent)
    return max(found, key=lambda path: (path / "results.json").stat().st_mtime_ns, default=None)


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """Return what an evaluation has found, for the page; None if its results.json cannot be read."""
    record = read_record(path / "results.json")
    results, intervals, trivial, per_class = (
        mapping(record.get(name)) for name in ("results", "intervals", "trivial", "per_class")
    )
    if not results:
        return None
    rows = []
    for name, value in results.items():
        simple, interval = mapping(trivial.get(name)), intervals.get(name)
        between = " to ".join(map(number_text, interval)) if isinstance(interval, list) else ""
        rows.append((name, value, between, simple.get("score"), simple.get("predictor", "")))
    classes = {name: scores for name, scores in per_class.items() if isinstance(scores, dict)}
    images = {file: picture(path / file) for file in PICTURES}
    return {
        "what": record.get("what", ""),
        "n": record.get("n"),
        "path": path,
        "rows": rows,
        "classes": classes,
        "columns": list(dict.fromkeys(key for scores in classes.values() for key in scores)),
        "matrix": confusion_matrix(path / "predictions.csv", list(classes)),
        "pictures": [(PICTURES[file], image) for file, image in images.items() if image],
    }


def mapping(value: Any) -> dict[str, Any]:
    """Return a value of a record that is to be a mapping; {} if it is something else."""
    return value if isinstance(value, dict) else {}


def confusion_matrix(path: Path, names: Sequence[str]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Count predictions.csv: a row for each actual class with, by predicted class, the count and its share of the row.

    [] where there are no classes in the file, or too many for a page.
    """
    known = set(names)
    if not 0 < len(names) <= MOST_CLASSES or not path.is_file() or path.stat().st_size > LARGEST_TABLE:
        return []
    counts: dict[tuple[str, str], int] = {}
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file):
            pair = (row.get("target"), row.get("prediction"))
            if known.issuperset(pair):
                counts[pair] = counts.get(pair, 0) + 1
    if not counts:
        return []
    matrix = []
    for actual in names:
        row = [counts.get((actual, predicted), 0) for predicted in names]
        matrix.append((actual, [(count, count / max(sum(row), 1)) for count in row]))
    return matrix


def picture(path: Path) -> str | None:
    """Return a PNG as an address that holds it; None if there is none, or it is too large for a page."""
    if not path.is_file() or path.stat().st_size > LARGEST_PICTURE:
        return None
    content = path.read_bytes()
    is_png = content.startswith(b"\x89PNG\r\n\x1a\n")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}" if is_png else None
