"""Cross-validate a task: train it K times, each time validated on another fold, and never look at the test part.

    python -m tools.folds --folds 5 trainer_vanilla.py --n_epoch 5

Options of the tool stand before the program, options of the task after it. The folds are cut from train and val by
groups, see extras/own_data/folds.py. Each run is an ordinary one, in DIR/fold_I. Then the best checkpoint of each is
evaluated on its own fold: scores.csv has every metric by fold, with mean and standard deviation, and out_of_fold.csv
has a prediction for each sample, by a network that was not trained on it. See docs/sweeps.md.
"""

import csv
import json
import shlex
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.options.parser import OptionParser, file_path, number, run_main
from engine.runs.run_dir import ENDED
from engine.runs.signals import StopSignal
from options import train_parser
from tools.processes import start
from tools.tables import aligned, write_table
from tools.task import read_command
from tools.task_program import command_of
from trainer import TrainerBase
from utils.errors import UserError
from utils.seed import draw_seed
from utils.timestamp import make_timestamped_dir

PLAN = "folds.json"  # in the directory: the command, its seed, and the number of folds
OWN = ("fold", "resume", "requeue")  # options that a run has from this program, or cannot have
POLL = 0.2  # seconds between two looks at a run


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(prog="python -m tools.folds", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--folds", type=number(int, low=2, high=1000), default=5, metavar="K", help="number of folds")
    add("--resume", type=file_path, default=None, metavar="DIR",
        help="go on in the directory of a cross-validation, with the rest of its command repeated")
    own, task, options = read_command(parser, argv)
    command_of(own.program)  # an error now, and not for each fold
    refuse_own(task, options)
    opt = task.parse_options([*options, f"--fold=1/{own.folds}"])
    if not opt.val_every:
        raise UserError("--val_every 0 leaves nothing to compare: a fold is what a run validates on.")
    root = Path(own.resume) if own.resume else make_timestamped_dir(Path(opt.output_dir) / "folds")
    seed = agree_on_plan(root, own, options, opt.seed if given_seed(options) else draw_seed())
    print(f"Directory of the folds: {root}", flush=True)
    for fold in range(1, own.folds + 1):
        train(own, root, [*options, f"--seed={seed}"], fold)
    results = [evaluate(task, opt, root / f"fold_{fold}") for fold in range(1, own.folds + 1)]
    print(report(root, results, sum(1 for _ in read_rows(root, own.folds))), flush=True)


def refuse_own(task: type[TrainerBase], options: Sequence[str]) -> None:
    """Raise UserError when the options of the task have one that this program gives to each run."""
    given = train_parser(task).parse_given(options)
    for name in OWN:
        if given.get(name):
            raise UserError(f"--{name} is not for a cross-validation, which sets it for each run: leave it out.")


def given_seed(options: Sequence[str]) -> bool:
    return any(text.split("=")[0] == "--seed" for text in options)


def agree_on_plan(root: Path, own: Namespace, options: Sequence[str], seed: int) -> int:
    """Save what defines the runs in a new directory; return the seed that is in an old one.

    Raises:
        UserError: the directory is that of other runs.
    """
    plan = {"program": own.program, "folds": own.folds, "options": list(options)}
    path = root / PLAN
    if not own.resume:
        path.write_text(json.dumps(plan | {"seed": seed}, indent=4), encoding="utf-8")
        return seed
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        seed = int(kept.pop("seed"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"--resume {root} is not the directory of a cross-validation.") from None
    if kept != plan:
        raise UserError(f"--resume {root} was begun with another command: repeat that, with --folds {kept['folds']}.")
    return seed


# ---- train -----------------------------------------------------------------------------------------------------------
def train(own: Namespace, root: Path, options: Sequence[str], fold: int) -> None:
    """Train the run of a fold in a process of its own, or go on with it; nothing if it has ended.

    A signal is passed on: the run saves and ends, and then so does this program.

    Raises:
        SystemExit: with the exit status of the run, if it failed.
    """
    directory = root / f"fold_{fold}"
    if any(directory.glob(f"*/{ENDED}")):
        return
    added = [f"--fold={fold}/{own.folds}", f"--output_dir={directory}", "--resume=auto"]
    print(f"\nFold {fold} of {own.folds}: {directory}", flush=True)
    rest = shlex.join([f"--folds={own.folds}", f"--resume={root}", own.program])
    remedy = f"To go on: python -m tools.folds {rest} and the options of the task as before."
    try:
        status = run([*command_of(own.program), *options, *added])
    except (KeyboardInterrupt, SystemExit):
        print(f"Stopped. {remedy}", file=sys.stderr, flush=True)
        raise
    if status:
        print(f"Fold {fold} ended with status {status}. {remedy}", file=sys.stderr, flush=True)
        raise SystemExit(status)


def run(command: Sequence[str]) -> int:
    """Run a command to its end, which a signal brings about, and return its exit status."""
    with StopSignal() as stop:
        process = start(command)
        is_stopped = False
        while process.poll() is None:
            if stop.pending() and not is_stopped:
                is_stopped = True
                process.terminate()  # it saves, and ends
            time.sleep(POLL)
        stop.raise_if_set()
    return process.returncode


# ---- evaluate --------------------------------------------------------------------------------------------------------
def evaluate(task: type[TrainerBase], opt: Namespace, directory: Path) -> dict[str, float]:
    """Evaluate the best checkpoint of a fold's run on the fold, in DIRECTORY/val; return the scores by name."""
    runs = sorted(path.parent for path in directory.glob(f"*/{ENDED}"))
    flags = [str(runs[-1]), "--split=val", "--no-viz", f"--save_path={directory / 'val'}"]
    evaluator = task.evaluator_class
    evaluator.run_test(evaluator.parse_options([*flags, f"--gpu_devices={opt.gpu_devices}"]))
    (newest,) = sorted((directory / "val").glob("*/results.json"))[-1:]
    results = json.loads(newest.read_text(encoding="utf-8"))["results"]
    return {name: value for name, value in results.items() if isinstance(value, int | float)}


def read_rows(root: Path, num_folds: int) -> list[dict[str, str]]:
    """Return the rows of the predictions.csv of all folds, each with its fold; [] where the task writes none."""
    rows = []
    for fold in range(1, num_folds + 1):
        for path in sorted((root / f"fold_{fold}" / "val").glob("*/predictions.csv"))[-1:]:
            with open(path, newline="", encoding="utf-8") as file:
                rows += [{"fold": str(fold), **row} for row in csv.DictReader(file)]
    return rows


def report(root: Path, results: Sequence[Mapping[str, float]], num_rows: int) -> str:
    """Write scores.csv and out_of_fold.csv, and return the scores as a text.

    Args:
        root: the directory of the folds.
        results: the scores of each fold.
        num_rows: of all predictions.
    """
    header = ["metric", *(f"fold {fold}" for fold in range(1, len(results) + 1)), "mean", "sd"]
    table = [header, *(row_of(name, [result.get(name) for result in results]) for name in results[0])]
    write_table(root / "scores.csv", table)
    names = ["scores.csv"]
    if num_rows:
        rows = read_rows(root, len(results))
        columns = list(dict.fromkeys(name for row in rows for name in row))
        write_table(root / "out_of_fold.csv", [columns, *([row.get(name, "") for name in columns] for row in rows)])
        names.append(f"out_of_fold.csv with {num_rows:,} predictions")
    why = "Each best checkpoint was chosen by its own fold, which flatters a little. The test part was not looked at."
    return "\n".join(["", *aligned(table), why, f"Saved in {root}: {', '.join(names)}"])


def row_of(name: str, values: Sequence[float | None]) -> list[str]:
    """Return the cells of a metric: its values, their mean and their standard deviation.

    >>> row_of("accuracy", [0.5, 0.7])
    ['accuracy', '0.5000', '0.7000', '0.6000', '0.1414']
    """
    known = [value for value in values if value is not None]
    numbers = [*values, statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None]
    return [name, *("" if value is None else f"{value:.4f}" for value in numbers)]


if __name__ == "__main__":
    run_main(main)
