"""Give a tool a task: its own options first, then the task's program, then the options of the task.

    python -m tools.find_lr --range 1e-5 0.1 trainer_vanilla.py --batch_size 64

`torchrun` and `coverage run` share this convention. The program is a file, a module such as examples.own_task, or
MODULE:CLASS.
"""

import argparse
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from callbacks.callback import Callback
from data.loader import Update, UpdateLoader
from engine.checkpoints.file import load_checkpoint
from engine.epoch_log import read_scalars
from engine.options.parser import OptionParser, changed
from options import train_parser
from tools.task_program import load_class
from trainer import TrainerBase
from utils.errors import DivergedError


def read_command(
    parser: OptionParser, argv: Sequence[str] | None = None, default: Callable[[Namespace], str] | None = None
) -> tuple[Namespace, type[TrainerBase], list[str]]:
    """Parse a tool's command line.

    Args:
        parser: with the tool's own options.
        argv: the command line; None for that of this process.
        default: returns the program when none is given, from the tool's own options; None when one must be given.

    Returns:
        The tool's options, with the name of the task's program as `program`; the task's class; the task's options.

    Raises:
        UserError: the program cannot be loaded.
        SystemExit: status 2, an option of the tool is wrong or stands behind the program.
    """
    own_flags = {flag for action in parser.known.values() for flag in action.option_strings}
    parser.add_argument(
        "program",
        metavar="TASK",
        nargs="?" if default else None,
        help="the task's program: a file, a module, or MODULE:CLASS",
    )
    rest = parser.add_argument("task_options", nargs=argparse.REMAINDER, metavar="...", help="options of the task")
    rest.required = False
    own = parser.parse_args(argv)
    if own.program is None:
        own.program = default(own)
    task = load_class(own.program, TrainerBase, "task")
    for text in own.task_options:
        flag = text.split("=")[0]
        if flag in own_flags and flag[2:] not in train_parser(task).known:
            parser.error(f"{flag} is an option of this tool: give it before {own.program}")
    return own, task, own.task_options


def run_tool(task: type[TrainerBase], argv: Sequence[str]) -> None:
    """Run a class that `attached` or `trial` has made, as the task's own program would run."""
    task.main(list(argv))


def attached(task: type[TrainerBase], *make_callbacks: Callable) -> type[TrainerBase]:
    """Return a class that trains as `task` does, watched by more callbacks, each made when the trainer is built."""

    class Attached(task):
        def build_callbacks(self):
            return [*super().build_callbacks(), *(make() for make in make_callbacks)]

    return with_name_of(task, Attached)


def trial(
    task: type[TrainerBase],
    examine: Callable[[TrainerBase], None],
    change: Callable[[Namespace], dict[str, Any]],
    callbacks: Sequence[Callback] = (),
) -> type[TrainerBase]:
    """Return a class that calls `examine(trainer)` instead of training, and leaves no run that could be resumed.

    With --resume, the trainer has the state of that run, whose directory is not touched.

    Args:
        task: of the user.
        examine: the tool. It may train.
        change: returns the options to replace, given those of the command line; "output_dir" at least.
        callbacks: the only ones.
    """

    class Trial(task):
        start: str | None = None  # the checkpoint whose state the trainer gets

        @classmethod
        def parse_options(cls, argv=None):
            opt = super().parse_options(argv)
            cls.start = opt.resume
            of_a_trial = dict.fromkeys(("resume", "callbacks", "profile", "stop_below"))
            of_a_trial |= {"logger": ["none"], "requeue": False, "save_code": False}
            if cls.start:
                of_a_trial |= {"pretrained": False, "model_path": None}
            return changed(opt, **of_a_trial | change(opt))

        def build_callbacks(self):
            return list(callbacks)

        def train(self):
            if path := self.distributed.broadcast(self.start):
                self.load_state_dict(load_checkpoint(path))
            examine(self)

    return with_name_of(task, Trial)


def parts_of(trainer: TrainerBase) -> dict[str, Any]:
    """Return the parts of a trainer that a tool has to restore: all that it saves, without the callbacks."""
    return {name: part for name, part in trainer.stateful().items() if name != "callbacks"}


def first_update(loader: UpdateLoader, batch_size: int, micro_batch_size: int | None = None) -> Update:
    """Return the first update of the training with other sizes. It is loaded, since a batch of any form can be."""
    sampler = loader.sampler
    own = {"seed": sampler.seed, "share": sampler.share, "max_bad_samples": loader.bad.limit}
    other = UpdateLoader(loader.dataset, batch_size, micro_batch_size, **own)
    other.count = loader.count
    return next(other.updates(0))


def try_step(trainer: TrainerBase, update: Any) -> dict[str, float] | None:
    """Make the trainer's step and return its values, the means over all processes; nothing is counted or logged.

    Returns:
        The values; {} when no sample could be loaded; None when a loss or gradient was not finite, and then the weights
        are as before.
    """
    if not trainer.distributed.begin_update(update, may_lose_samples=trainer.opt.skip_bad_samples > 0):
        return {}
    trainer.guard.begin_update(update)
    try:
        values = trainer.train_step(update)
        trainer.guard.check_earlier(wait=True)
    except DivergedError:
        trainer.guard.undo()
        values = None
    trainer.precision.finish_update()
    if values is None:
        return None
    numbers = dict(zip(values, read_scalars([*values.values()]), strict=True))
    return trainer.distributed.mean(numbers, sum(update.amounts))


def with_name_of(task: type, derived: type) -> type:
    """Give a derived class the name and description of its task, which messages and --help show."""
    derived.__name__ = task.__name__
    derived.__qualname__ = task.__qualname__
    derived.__doc__ = task.__doc__
    return derived
