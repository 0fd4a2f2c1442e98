"""What a sweep comes to: a table on the terminal, the same as a CSV file, and a picture."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from tools.sweep.record import FAILED, FINISHED, PRUNED, Trial, short
from utils.draw import new_figure, render
from utils.files import write_atomically

FEW = 6  # values that have each a place of its own on an axis


def ranked(trials: Sequence[Trial], mode: str) -> list[Trial]:
    """The trials, best mean first; those without a finished run come last, in their order."""
    sign = -1 if mode == "max" else 1
    return sorted(trials, key=lambda trial: math.inf if trial.mean is None else sign * trial.mean)


def table(trials: Sequence[Trial], metric: str, mode: str) -> str:
    """A line for each trial, best first: its settings, mean and deviation over its finished runs, and its state.

    >>> from tools.sweep.record import Run
    >>> runs = [Run(0, "finished", value=0.8), Run(1, "finished", value=0.9)]
    >>> print(table([Trial(0, {"lr": "1e-3"}, runs)], "accuracy", "max"))
    trial  lr    val/accuracy  sd      runs  state
    000    1e-3  0.8500        0.0707  2/2   finished
    """
    names = list(trials[0].settings) if trials else []
    rows = [["trial", *names, f"val/{metric}", "sd", "runs", "state"]]
    for trial in ranked(trials, mode):
        numbers = ["" if number is None else f"{number:.4f}" for number in (trial.mean, trial.deviation)]
        settings = [short(trial.settings[name]) for name in names]
        rows.append([trial.name, *settings, *numbers, f"{len(trial.values)}/{len(trial.runs)}", trial.state])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def failures(trials: Sequence[Trial]) -> list[str]:
    """Two lines for each run that failed: which, and its exit status with the last line that it printed."""
    return [
        f"{trial.name} seed={run.seed} failed with status {run.status}: {run.last_line}"
        for trial in trials for run in trial.runs if run.state == FAILED
    ]  # fmt: skip


def write_csv(path: Path, trials: Sequence[Trial], metric: str, mode: str) -> None:
    """Write what `table` shows, with the settings as they were given and the value of each run."""
    names = list(trials[0].settings) if trials else []
    seeds = [run.seed for run in trials[0].runs] if trials else []
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    each = [f"seed {seed}" for seed in seeds]
    writer.writerow(["trial", *names, f"val/{metric}", "sd", "finished runs", "runs", "state", *each])
    for trial in ranked(trials, mode):
        values = [trial.mean, trial.deviation, len(trial.values), len(trial.runs), trial.state]
        values += [run.value for run in trial.runs]
        cells = [f"{value:.6g}" if isinstance(value, float) else "" if value is None else value for value in values]
        writer.writerow([trial.name, *(trial.settings[name] for name in names), *cells])
    write_atomically(path, file.getvalue().encode())


# ---- the picture -----------------------------------------------------------------------------------------------------
def plot(path: Path, trials: Sequence[Trial], metric: str, mode: str) -> bool:
    """Draw a panel for each option that was swept: its values against the metric; False when there is nothing to draw.

    A point is the mean of a trial, the bar its deviation over the seeds. The best is marked; pruned trials are hollow,
    at the best that they had reached.
    """
    drawn = [trial for trial in trials if any(run.value is not None for run in trial.runs)]
    if not drawn:
        return False
    names = [name for name in drawn[0].settings if len({trial.settings[name] for trial in drawn}) > 1]
    names = names or list(drawn[0].settings)[:1]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = new_figure(4.2 * columns, 3.4 * rows)
    best = ranked(drawn, mode)[0]
    for place, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, place + 1)
        draw_panel(axes, name, drawn, best)
        axes.set_xlabel(name)
        axes.set_ylabel(f"val/{metric}")
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8, frameon=False)
    render(figure, path)
    return True


def draw_panel(axes, name: str, trials: Sequence[Trial], best: Trial) -> None:
    """Draw the trials over the values of one option: many numbers on their scale, anything else side by side."""
    texts = list(dict.fromkeys(trial.settings[name] for trial in trials))
    numbers = [as_number(text) for text in texts]
    if None not in numbers and len(texts) <= FEW:
        texts.sort(key=float)
    if None not in numbers and len(texts) > FEW:
        places = dict(zip(texts, numbers, strict=True))
        if min(numbers) > 0 and max(numbers) / min(numbers) >= 10:
            axes.set_xscale("log")
    else:
        places = {text: float(index) for index, text in enumerate(texts)}
        axes.set_xticks(range(len(texts)), [text[-20:] for text in texts], rotation=0 if len(texts) < 5 else 90)
        axes.set_xlim(-0.5, len(texts) - 0.5)
    for state, label, style in (
        (FINISHED, "finished", {"marker": "o"}), (PRUNED, "pruned", {"marker": "o", "mfc": "none", "alpha": 0.6}),
        (None, "not finished", {"marker": "x", "alpha": 0.6}),
    ):  # fmt: skip
        chosen = [t for t in trials if (t.state if t.state in (FINISHED, PRUNED) else None) == state]
        points = [(places[t.settings[name]], height(t), t.deviation or 0.0) for t in chosen]
        if points:
            x, y, error = zip(*points, strict=True)
            axes.errorbar(x, y, error, linestyle="none", color="C0" if state else "C7", label=label, **style)
    axes.plot(places[best.settings[name]], height(best), "*", color="C3", markersize=12, label="best")


def height(trial: Trial) -> float:
    """Where a trial is drawn: at its mean, or at what it had reached."""
    reached = [run.value for run in trial.runs if run.value is not None]
    return trial.mean if trial.mean is not None else sum(reached) / len(reached)


def as_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
