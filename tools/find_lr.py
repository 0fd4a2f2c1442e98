"""Suggest a learning rate for a task: try rates from tiny to huge with the task's own updates.

    python -m tools.find_lr trainer_vanilla.py --batch_size 64
    python -m tools.find_lr --range 1e-5 0.1 --runs 5 trainer_vanilla.py

Options of the tool stand before the program, options of the task after it. See docs/finding_settings.md.
"""

import itertools
import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.options.parser import OptionParser, number, run_main
from tools.digest import digests
from tools.lr_finder import LrCurve, describe, draw_curve, find_lr
from tools.snapshot import Snapshot
from tools.task import parts_of, read_command, run_tool, trial, try_step
from trainer import TrainerBase
from utils.errors import UserError
from utils.files import full_disk_explained


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(prog="python -m tools.find_lr", description=__doc__.split("\n")[0])
    add, whole = parser.add_argument, partial(number, int)
    add(
        "--range",
        nargs=2,
        type=number(float, above=0, high=1e6),
        default=[1e-7, 1.0],
        metavar=("LOW", "HIGH"),
        help="the lowest and the highest rate",
    )
    add("--values", type=whole(low=10, high=10_000), default=50, metavar="N", help="number of rates")
    add("--updates", type=whole(low=1, high=1000), default=3, metavar="N", help="updates with each rate")
    add(
        "--runs",
        type=whole(low=1, high=100),
        default=3,
        metavar="N",
        help="runs, each from the same weights with other samples",
    )
    own, task, options = read_command(parser, argv)
    low, high = own.range
    if not low < high:
        parser.error(f"--range {low:g} {high:g}: the lower rate stands first")

    def examine(trainer: TrainerBase) -> None:
        if isinstance(trainer.opt.lr, dict):
            raise UserError("find_lr tries one rate for all networks: give --lr as a number, not by network.")
        try_learning_rates(trainer, low, high, own.values, own.updates, own.runs, base_lr=trainer.opt.lr)

    run_tool(trial(task, examine, beside_the_runs), options)


def beside_the_runs(opt: Namespace) -> dict[str, str]:
    """Write to a directory that --resume auto does not take for a run."""
    return {"output_dir": str(Path(opt.output_dir) / "find_lr")}


def try_learning_rates(
    trainer: TrainerBase,
    low: float,
    high: float,
    num_values: int,
    num_updates: int,
    num_runs: int,
    base_lr: float | None = None,
    option: str = "--lr",
) -> LrCurve:
    """Run the range test with a trainer's own updates, report and save the result, and return the curve.

    Args:
        trainer: is restored to its state, bit for bit.
        low, high, num_values, num_updates, num_runs, base_lr: see `tools.lr_finder.find_lr`.
        option: the name of the rate in the suggestion.

    Raises:
        UserError: the task's step returns no loss.
    """
    if trainer.opt.micro_batch_size == "auto":
        trainer.session.find_micro_batch_size()
    trainer.set_train_mode()
    before = digests(trainer.state_dict())["run"]

    def batches(run: int) -> Iterator[Any]:
        for epoch in itertools.count(run, num_runs):  # other samples than in the other runs
            yield from trainer.train_loader.updates(epoch)

    def step(update: Any) -> float:
        values = try_step(trainer, update)
        return math.nan if values is None else loss_of(values)

    trainer.run_dir.note(
        f"Trying {num_values} learning rates from {low:g} to {high:g}, {num_updates} updates with each, {num_runs} "
        f"times."
    )
    curve = find_lr(
        step,
        trainer.optimizers.values(),
        batches,
        lambda: Snapshot(parts_of(trainer)),
        Snapshot.put_back,
        low=low,
        high=high,
        num_values=num_values,
        num_updates=num_updates,
        num_runs=num_runs,
        base_lr=base_lr,
    )
    trainer.run_dir.note(describe(curve, option))
    if digests(trainer.state_dict())["run"] != before:
        raise RuntimeError("the range test left another state behind than it found")
    if trainer.distributed.is_main:
        for path in save_curve(curve, trainer.run_dir.path):
            trainer.run_dir.note(f"Saved {path}")
    trainer.distributed.leave()
    return curve


def loss_of(values: Mapping[str, float]) -> float:
    """Return the loss among the values of a step: "loss", or the sum of all with "loss" in their name; NaN of none.

    >>> loss_of({"loss": 0.5, "grad_norm": 2.0}), loss_of({"loss/generator": 1.0, "loss/critic": 0.5})
    (0.5, 1.5)

    Raises:
        UserError: there are values, but no loss.
    """
    losses = [value for name, value in values.items() if "loss" in name]
    if values and not losses:
        raise UserError(f"The step returns no loss, but {', '.join(values)}: name one of them so that 'loss' is in it.")
    return values.get("loss", sum(losses)) if values else math.nan


def save_curve(curve: LrCurve, directory: Path) -> list[Path]:
    """Write `lr_finder.npz` (rates, losses, mean, suggestion, NaN without one) and `lr_finder.png`."""
    numbers = directory / "lr_finder.npz"
    picture = directory / "lr_finder.png"
    suggestion = math.nan if curve.suggestion is None else curve.suggestion
    with full_disk_explained("The learning-rate finder", directory):
        np.savez(numbers, rates=curve.rates, losses=curve.losses, mean=curve.mean, suggestion=suggestion)
        draw_curve(curve, picture)
    return [picture, numbers]


if __name__ == "__main__":
    run_main(main)
