"""What the command of a trainer does: it trains, unless an option asks for something else."""

import gc
import itertools
import math
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.checkpoints.file import load_checkpoint
from engine.checkpoints.state import digests
from engine.devices.launch import own_command, reported, run_to_the_end, start_processes
from engine.devices.process_group import place
from engine.options.parser import run_main
from engine.snapshot import Snapshot, parts_of
from utils.errors import UserError


def launch(trainer_class: type, argv: Sequence[str] | None = None) -> None:
    """Do what a command line asks of a task's trainer, and end with its exit status.

    Args:
        trainer_class: the task's.
        argv: the command line; None for this process's.
    """
    run_to_the_end(lambda: run_main(lambda: run(trainer_class, argv)))


def run(trainer_class: type, argv: Sequence[str] | None) -> None:
    """Train in this process, or start those that train; or do what is asked for instead."""
    gc.freeze()  # what the imports made stays to the end: the garbage collector need not go through it again and again
    with reported():
        opt = trainer_class.parse_options(argv)
        if opt.verify_resume:
            from tools.verify_resume import verify_resume

            verify_resume(opt.verify_resume, opt.seed, opt.num_workers)
        elif opt.replay:
            from tools.replay import replay

            replay(lambda directory: trainer_class(Namespace(**vars(opt) | {"output_dir": directory})), opt.replay)
        elif opt.doctor:
            from tools.doctor import examine

            if num_processes(opt) > 1 or place()[1] > 1:
                raise UserError("--doctor looks at the task in one process: leave --nproc and --parallel out.")
            opt.compile = False  # what is looked at must not be compiled away
            examine(lambda directory: trainer_class(elsewhere(opt, directory)), opt.resume)
        elif (count := num_processes(opt)) > 1 and place()[1] == 1:
            on_cpus = ["--gpu_devices", "cpu"] if opt.nproc > 1 else []
            start_processes([*own_command(argv), *on_cpus], count, opt.max_restarts)
        elif opt.find_lr:
            find_learning_rate(trainer_class, opt)
        else:
            trainer_class(opt).train()


def elsewhere(opt: Namespace, directory: str | Path) -> Namespace:
    """The options for a trainer that is no run: it writes to another directory, and is given its state later."""
    state_comes_later = {"resume": None, "pretrained": False} if opt.resume else {}
    return Namespace(**vars(opt) | {"output_dir": str(directory)} | state_comes_later)


def find_learning_rate(trainer_class: type, opt: Namespace) -> None:
    """Try learning rates, and suggest one: in the log, a picture and a file, in the directory find_lr of --output_dir.

    Raises:
        UserError: when the loss is not finite from the beginning, or the task's step returns none.
    """
    trainer = trainer_class(elsewhere(opt, Path(opt.output_dir) / "find_lr"))
    if path := trainer.distributed.broadcast(opt.resume):
        trainer.load_state_dict(load_checkpoint(path))
    low, high = opt.find_lr_range
    counts = (opt.find_lr_values, opt.find_lr_updates, opt.find_lr_runs)
    try_learning_rates(trainer, low, high, *counts, base_lr=opt.lr)


def try_learning_rates(
    trainer, low: float, high: float, num_values: int, num_updates: int, num_runs: int, base_lr: float | None = None,
    option: str = "--lr",
):  # fmt: skip
    """Make the range test with a trainer's own updates, tell and save what came of it, and return the curve.

    Args:
        trainer: is put back to the state that it has.
        low, high, num_values, num_updates, num_runs, base_lr: see `utils.lr_finder.find_lr`.
        option: what the rate is called, in the suggestion.
    """
    from tools.trial_step import try_step
    from utils.lr_finder import describe, find_lr, loss_of, save_curve

    if trainer.opt.micro_batch_size == "auto":
        trainer.session.find_micro_batch_size()
    trainer.freezing.set_train_mode(trainer.networks)
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
        step, trainer.optimizers.values(), batches, lambda: Snapshot(parts_of(trainer)), Snapshot.put_back,
        low=low, high=high, num_values=num_values, num_updates=num_updates, num_runs=num_runs, base_lr=base_lr,
    )  # fmt: skip
    trainer.run_dir.note(describe(curve, option))
    if digests(trainer.state_dict())["run"] != before:
        raise RuntimeError("the range test left another state behind than it found")
    if trainer.distributed.is_main:
        for path in save_curve(curve, trainer.run_dir.path):
            trainer.run_dir.note(f"Saved {path}")
    trainer.distributed.leave()
    return curve


def num_processes(opt: Namespace) -> int:
    """How many processes the options ask for: --nproc, or one for each of several GPUs."""
    of_gpus = len(opt.gpu_devices.split(",")) if opt.parallel in ("ddp", "fsdp") else 1
    return opt.nproc if opt.nproc > 1 else of_gpus
