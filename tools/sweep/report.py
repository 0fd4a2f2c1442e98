"""The result of a sweep: a table on the terminal and as a CSV file, a picture, and which options matter."""

import math
from collections.abc import Sequence
from pathlib import Path

from tools.sweep.plan import Plan, import_optuna
from tools.sweep.runner import short
from tools.sweep.study import FAILED, FINISHED, PRUNED, Study, Trial
from tools.tables import aligned, write_table

ENOUGH = 10  # finished trials, below which an importance says little


def report(root: Path, study: Study) -> bool:
    """Print the table, and save it and the picture; return whether every run has finished or was pruned."""
    trials = study.trials()
    saved = ["table.csv"]
    write_csv(root / "table.csv", trials, study.plan)
    finished = [trial for trial in trials if trial.mean is not None]
    if finished:
        plot(root / "sweep.png", study, finished)
        saved.append("sweep.png")
    lines = ["", *table(trials, study.plan), "", *failures(trials)]
    if len(finished) >= ENOUGH and len(study.plan.spaces) > 1:
        lines.append(importance(study))
    print("\n".join([*lines, f"Saved in {root}: {', '.join(saved)}"]), flush=True)
    return all(trial.state in (FINISHED, PRUNED) for trial in trials)


def ranked(trials: Sequence[Trial], mode: str) -> list[Trial]:
    """Return the trials, best mean first; those without a finished run come last, in their order."""
    sign = -1 if mode == "max" else 1
    return sorted(trials, key=lambda trial: math.inf if trial.mean is None else sign * trial.mean)


def table(trials: Sequence[Trial], plan: Plan) -> list[str]:
    """Return a line for each trial, best first: its settings, mean and deviation over its finished runs, and its state.

    >>> from tools.sweep.study import Run
    >>> runs = [Run(0, "finished", value=0.8), Run(1, "finished", value=0.9)]
    >>> plan = Plan("TrainerVanilla", "accuracy", "max", {"lr": None})
    >>> print("\\n".join(table([Trial(0, {"lr": "1e-3"}, runs)], plan)))
    trial  lr    val/accuracy  sd      runs  state
    000    1e-3  0.8500        0.0707  2/2   finished
    """
    rows = [["trial", *plan.spaces, f"val/{plan.metric}", "sd", "runs", "state"]]
    for trial in ranked(trials, plan.mode):
        settings = [short(trial.settings.get(name, "")) for name in plan.spaces]  # "": no effect beside the others
        numbers = ["" if number is None else f"{number:.4f}" for number in (trial.mean, trial.deviation)]
        rows.append([trial.name, *settings, *numbers, f"{len(trial.values)}/{len(trial.runs)}", trial.state])
    return aligned(rows)


def write_csv(path: Path, trials: Sequence[Trial], plan: Plan) -> None:
    """Write the table with the full values of the settings, and the value of each run."""
    seeds = [f"seed {run.seed}" for run in trials[0].runs] if trials else []
    rows = [["trial", *plan.spaces, f"val/{plan.metric}", "sd", "finished runs", "runs", "state", *seeds]]
    for trial in ranked(trials, plan.mode):
        settings = [trial.settings.get(name, "") for name in plan.spaces]
        values = [trial.mean, trial.deviation, len(trial.values), len(trial.runs), trial.state]
        values += [run.value for run in trial.runs]
        cells = [f"{value:.6g}" if isinstance(value, float) else value for value in values]
        rows.append([trial.name, *settings, *cells])
    write_table(path, rows)


def failures(trials: Sequence[Trial]) -> list[str]:
    """Return a line for each failed run: its exit status and the last line that it printed."""
    return [
        f"{trial.name} seed={run.seed} failed with status {run.status}: {run.last_line}"
        for trial in trials
        for run in trial.runs
        if run.state == FAILED
    ]


def plot(path: Path, study: Study, finished: Sequence[Trial]) -> None:
    """Draw the metric over each swept option; a point is the mean of a finished trial."""
    import matplotlib

    matplotlib.use("Agg")
    from optuna.visualization.matplotlib import plot_slice

    names = [name for name in study.plan.spaces if any(name in trial.settings for trial in finished)]
    plot_slice(study.study, params=names, target_name=f"val/{study.plan.metric}")
    figure = matplotlib.pyplot.gcf()
    figure.set_size_inches(3 + 3 * len(names), 4)
    figure.savefig(path, bbox_inches="tight", dpi=100)
    matplotlib.pyplot.close(figure)


def importance(study: Study) -> str:
    """Return a line that says which options decide whether a trial is among the best."""
    shares = import_optuna().importance.get_param_importances(study.study)
    return "Importance: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
