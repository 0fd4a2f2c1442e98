"""Compare runs on one page: a table that can be sorted, curves over each other, and the options that differ."""

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from extras.run_report.page import column_of, digest, parts_of_page
from extras.run_report.runs import NOT_SET, RunRecord, as_text, plain, read_run
from utils.files import write_atomically

COLOURS = 8  # of page.css; more runs take them again


def write_comparison(paths: Sequence[str | Path], output: str | Path) -> Path:
    """Write the page of several runs, and return its path.

    Raises:
        UserError: one is no directory of a run, or the page cannot be written.
    """
    output = Path(output)
    runs = [read_run(path) for path in dict.fromkeys(map(os.path.abspath, paths))]
    write_atomically(output, render(runs).encode(errors="replace"))
    return output


def render(runs: Sequence[RunRecord]) -> str:
    """Return the page of several runs."""
    text, scripts, template = parts_of_page("compare.html", "compare.js")
    different = differing_between(runs)
    names = names_of(runs)
    return template.render(
        **text,
        digests=[digest(script) for script in scripts],
        names=names,
        columns=["best", "epoch of best", "last", "mean over seeds", "deviation", "seconds"],
        rows=[
            (name, run.status, numbers, [as_text(values[place]) for values in different.values()])
            for place, (name, run, numbers) in enumerate(zip(names, runs, numbers_of(runs), strict=True))
        ],
        different={option: list(map(as_text, values)) for option, values in different.items()},
        colours=COLOURS,
        curves=curves_of(runs, names),
    )


def names_of(runs: Sequence[RunRecord]) -> list[str]:
    """Return the directories of runs below the one that they share."""
    paths = [os.path.abspath(run.path) for run in runs]
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, root) for path in paths]


def differing_between(runs: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """Return the options that differ between the runs that have them, with the value of each run, None if it has none.

    An option that is newer than some of the runs is no difference.
    """
    options = dict.fromkeys(name for run in runs for name in run.options if name not in NOT_SET)
    there = {name: [plain(run.options[name]) for run in runs if name in run.options] for name in options}
    different = [name for name, values in there.items() if any(value != values[0] for value in values)]
    return {name: [run.options.get(name) for run in runs] for name in different}


def numbers_of(runs: Sequence[RunRecord]) -> list[list[float | None]]:
    """Return for each run the numbers of the table; runs whose options differ in the seed alone share two of them."""
    groups: dict[str, list[float]] = {}
    best = []
    for run in runs:
        column = f"val/{run.options.get('monitor')}"
        last = next((row[column] for row in reversed(run.rows) if column in row), None)
        value = run.best[column] if run.best else None
        best.append((value, run.best["epoch"] if run.best else None, last))
        if value is not None:
            groups.setdefault(group_of(run), []).append(value)
    found = []
    for run, (value, epoch, last) in zip(runs, best, strict=True):
        values = groups.get(group_of(run), [])
        mean = statistics.fmean(values) if len(values) > 1 else None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        found.append([value, epoch, last, mean, deviation, run.seconds])
    return found


def group_of(run: RunRecord) -> str:
    """Return a text that two runs share if their options differ in the seed alone."""
    kept = {name: plain(value) for name, value in run.options.items() if name not in NOT_SET and name != "seed"}
    return json.dumps(kept, sort_keys=True, default=str)


def curves_of(runs: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """Return the curves for the page: the epochs of all runs, and a panel for each metric with a line for each run."""
    epochs = sorted({row["epoch"] for run in runs for row in run.rows})
    columns = dict.fromkeys(name for run in runs for row in run.rows for name in row)
    shown = [name for name in columns if name.startswith(("val/", "train/"))]
    panels = []
    for column in sorted(shown, key=lambda name: not name.startswith("val/")):
        lines = []
        for place, (name, run) in enumerate(zip(names, runs, strict=True)):
            by_epoch = {row["epoch"]: row for row in run.rows}
            values = column_of([by_epoch.get(epoch, {}) for epoch in epochs], column)
            lines.append({"name": name, "colour": place % COLOURS, "values": values})
        panels.append({"title": column, "lines": lines})
    return {"epochs": epochs, "panels": panels}
