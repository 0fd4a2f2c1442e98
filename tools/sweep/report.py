"""The result of a sweep: a table on the terminal and as a CSV file, a picture, and which options matter."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from tools.sweep.plan import import_optuna
from tools.sweep.runner import short
from tools.sweep.study import FAILED, Study, Trial
from utils.files import write_atomically

ENOUGH = 10  # finished trials, below which an importance says little


def ranked(trials: Sequence[Trial], mode: str) -> list[Trial]:
    """Return the trials, best mean first; those without a finished run come last, in their order."""
    sign = -1 if mode == "max" else 1
    return sorted(trials, key=lambda trial: math.inf if trial.mean is None else sign * trial.mean)


def table(trials: Sequence[Trial], metric: str, mode: str) -> str:
    """Return a line for each trial, best first: its settings, mean and deviation over its finished runs, and its state.

    >>> from tools.sweep.study import Run
    >>> runs = [Run(0, "finished", value=0.8), Run(1, "finished", value=0.9)]
    >>> print(table([Trial(0, {"lr": "1e-3"}, runs)], "accuracy", "max"))
    trial  lr    val/accuracy  sd      runs  state
    000    1e-3  0.8500        0.0707  2/2   finished
    """
    names = list(trials[0].settings) if trials else []
    rows = [["trial", *names, f"val/{metric}", "sd", "runs", "state"]]
    for trial in ranked(trials, mode):
        settings = [short(trial.settings[name]) for name in names]
        numbers = ["" if number is None else f"{number:.4f}" for number in (trial.mean, trial.deviation)]
        rows.append([trial.name, *settings, *numbers, f"{len(trial.values)}/{len(trial.runs)}", trial.state])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def write_csv(path: Path, trials: Sequence[Trial], metric: str, mode: str) -> None:
    """Write the table with the full values of the settings, and the value of each run."""
    names = list(trials[0].settings) if trials else []
    seeds = [f"seed {run.seed}" for run in trials[0].runs] if trials else []
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", *names, f"val/{metric}", "sd", "finished runs", "runs", "state", *seeds])
    for trial in ranked(trials, mode):
        values = [trial.mean, trial.deviation, len(trial.values), len(trial.runs), trial.state]
        values += [run.value for run in trial.runs]
        cells = [f"{value:.6g}" if isinstance(value, float) else value for value in values]
        writer.writerow([trial.name, *(trial.settings[name] for name in names), *cells])
    write_atomically(path, file.getvalue().encode())


def failures(trials: Sequence[Trial]) -> list[str]:
    """Return a line for each failed run: its exit status and the last line that it printed."""
    return [
        f"{trial.name} seed={run.seed} failed with status {run.status}: {run.last_line}"
        for trial in trials
        for run in trial.runs
        if run.state == FAILED
    ]


def plot(path: Path, study: Study) -> None:
    """Draw the metric over each swept option; a point is the mean of a finished trial."""
    import matplotlib

    matplotlib.use("Agg")
    from optuna.visualization.matplotlib import plot_slice

    plot_slice(study.study, params=list(study.spaces), target_name=f"val/{study.metric}")
    figure = matplotlib.pyplot.gcf()
    figure.set_size_inches(3 + 3 * len(study.spaces), 4)
    figure.savefig(path, bbox_inches="tight", dpi=100)
    matplotlib.pyplot.close(figure)


def importance(study: Study, num_finished: int) -> str:
    """Return a line that says which options decide whether a trial is among the best; "" for few trials or options."""
    if num_finished < ENOUGH or len(study.spaces) < 2:
        return ""
    shares = import_optuna().importance.get_param_importances(study.study)
    return "Importance: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
