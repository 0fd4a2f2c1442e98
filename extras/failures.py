"""Explain in one line what has ended a run: the option or the line of code that is to be mended, and how to go on."""

import signal
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from callbacks.callback import call_one
from data.loader import Update
from data.sampler import sample_names
from engine.devices.process_group import share_of
from engine.options.parser import printable
from engine.runs.signals import Terminated, TimeIsUp
from utils.errors import DivergedError, LoadingError, UserError
from utils.files import NO_SPACE, StorageError

ROOT = Path(__file__).resolve().parent.parent
STANDARD_LIBRARY = Path(traceback.__file__).resolve().parent
# Of the template, and seldom the culprit.
MACHINERY = ("engine", "utils", "data", "callbacks", "extras", "tools", "trainer.py", "eval.py")
OF_TASK = 2  # the rank of a file
COMPONENTS = ("model", "loss")  # of the template, the culprit if no code of the task is on the way
MOST_NAMES = 10  # of samples, in a message
MORE_SKIPS = 10  # added to --max_skips in the proposed command, when they are used up
REASONS = {
    KeyboardInterrupt: "Ctrl-C",
    TimeIsUp: "the time limit",
    StorageError: "a full disk",
    DivergedError: "a loss or gradient that is not finite",
    LoadingError: "a loading process that died or hangs",
}
MEMORY_ADVICE = "--activation_checkpointing and --amp bf16 need less memory, too."


def failed_part(trainer, error: BaseException, first_update: int) -> str:
    """Name what an error has broken off: a callback, the first update or the first validation; else ""."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is call_one.__code__:
            return f"{type(frame.f_locals['callback']).__name__}.{frame.f_locals['hook']}"
    if "Expected more than 1 value per channel" in str(error):  # of torch, perhaps in the last batch of an epoch
        sizes = "--batch_size or --micro_batch_size"
        if trainer.distributed.size > 1:
            sizes = "--batch_size, --micro_batch_size or number of processes, which share each update"
        last = "" if trainer.opt.drop_last else ", or --drop_last if it is the last of an epoch"
        return f"a batch of one sample, which cannot be normalized: give another {sizes}{last}"
    if trainer.progress.update == first_update:
        return "the first update"
    return "the first validation" if is_validating(trainer, error) and not trainer.score else ""


def is_validating(trainer, error: BaseException) -> bool:
    """Return whether an error has broken off a validation."""
    evaluate = trainer.evaluator.evaluate.__code__
    return any(frame.f_code is evaluate for frame, _ in traceback.walk_tb(error.__traceback__))


def before_the_run(trainer_class: type, opt: Namespace, error: BaseException) -> UserError:
    """Turn what the task's own code raised while a trainer was built into one line; keep the traceback in a file."""
    path = Path(opt.output_dir, f"{opt.proj_name}_failed_log.txt")
    where = ""
    with suppress(OSError):  # what has failed matters more than that --output_dir cannot be made
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        where = f"\nThe traceback is in {path}."
    suspects = [
        ("with_shapes", trainer_class.evaluator_class.build_networks),
        ("with_shapes", trainer_class.build_networks),
        ("checked_optimizers", trainer_class.build_optimizers),
        ("checked_schedulers", trainer_class.build_schedulers),
        ("__init__", trainer_class.build_callbacks),
    ]
    line = blame(error, suspects=suspects)
    return UserError(f"Failed before the first update: {line}{where}")


def explained(trainer, error: Exception, failed: str, is_new_run: bool) -> UserError:
    """Turn what the task's own code, data or options raised into one line; keep the traceback in the log."""
    text = "".join(traceback.format_exception(error))
    if trainer.distributed.is_main:
        trainer.run_dir.log_quietly(text)
    elif not isinstance(error, UserError):
        trainer.logger.error(text)  # to standard error: process 0 alone writes files
    parts = {
        "--model_type": list(trainer.networks.values()),
        "--loss_type": [trainer.criterion],
        "--optim": list(trainer.optimizers.values()),
        "--lr_scheduler": list(trainer.schedulers.values()),
        "--data_type": list(trainer.datasets.values()),
    }
    suspects = [
        ("default_collate", type(trainer.datasets["train"]).__getitem__),
        ("eval_step", trainer.evaluator.eval_step),
        ("backward", trainer.compute_loss),
        ("train_update", trainer.train_step),
    ]
    line = blame(error, parts, suspects)
    if not isinstance(error, UserError):
        line = f"Failed in {failed}: {line}"
    if not trainer.distributed.is_main:
        return UserError(line)
    path = trainer.run_dir.discarded_log_path if is_new_run else trainer.run_dir.log_path
    return UserError(f"{line}\nThe traceback is in {path}.")


def out_of_memory(trainer, error: torch.OutOfMemoryError) -> UserError:
    """Say how to go on with smaller batches, which change no result."""
    if is_validating(trainer, error):
        option = "--eval_batch_size"
        size = trainer.evaluator.eval_batch_size(trainer.opt, trainer.micro_batch_size)
    else:
        option = "--micro_batch_size"
        _, largest_share = share_of(trainer.opt.batch_size, 0, trainer.distributed.size)
        size = min(trainer.micro_batch_size, largest_share)
    reason = str(error).split(". ")[0].rstrip(".")
    if size < 2:
        return UserError(f"{reason}, with a single sample at once. {MEMORY_ADVICE}")
    how = f"{option} {size // 2}"
    if trainer.checkpointer.candidates(trainer.run_dir.path):
        how = f"--resume {trainer.run_dir.path} {how}"
    return UserError(f"{reason}, with {size} samples at once. To go on: {how}. {MEMORY_ADVICE}")


def describe_update(trainer, update: Update, error: Exception) -> str:
    """Say what failed in the update under way, and name its samples; all processes call it."""
    all_names = sample_names(trainer.train_loader.dataset)
    gathered = trainer.distributed.gather([printable(str(all_names[index])) for index in update.indices])
    names = [name for of_process in gathered for name in of_process]
    shown = ", ".join(names[:MOST_NAMES])
    if len(names) > MOST_NAMES:
        shown += f" and {len(names) - MOST_NAMES} more"
    where = f"Epoch {trainer.progress.current_epoch}, update {trainer.progress.update + 1}"
    return f"{where}: {error}. Samples: {shown}."


# ---- who is to blame -------------------------------------------------------------------------------------------------
def blame(
    error: BaseException,
    parts: Mapping[str, Iterable[Any]] | None = None,
    suspects: Iterable[tuple[str, Callable]] = (),
) -> str:
    """Return one line that names an error, the option that it comes from, and the line of code.

    Args:
        error: an exception with its traceback.
        parts: by option, the objects that it made. The option is named if a method of one of them leads to the error.
        suspects: (name of a function of the machinery, function of the task). The second returned what the first one
            refuses, so it is named if no code of the task leads to the error, but the first does.
    """
    option = ""
    places = []
    passed = set()
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        passed.add(code.co_name)
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_varnames else None
        for name, objects in (parts or {}).items():
            if any(owner is made for made in objects):
                option = name
        if rank := rank_of(code.co_filename):
            places.append((rank, len(places), f"{shorten(code.co_filename)}:{line}"))
    if not any(rank == OF_TASK for rank, _, _ in places):
        made_by = [function.__code__ for name, function in suspects if name in passed and hasattr(function, "__code__")]
        for code in made_by:
            if rank_of(code.co_filename) == OF_TASK:
                line = f"{code.co_name}, {shorten(code.co_filename)}:{code.co_firstlineno}"
                return described(error, option, line)
    return described(error, option, max(places)[-1] if places else "")


def described(error: BaseException, option: str, place: str) -> str:
    """Return one line on an error, with the option and the line of code if they are known."""
    where = ", ".join(text for text in (option, place) if text)
    message = " ".join(str(error).split()) or "no message"
    if "device-side assert" in message:  # a GPU names no value, and whatever is computed next raises
        message = "the GPU found an index out of range, most often a label that is no class: --gpu_devices cpu names it"
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{message}" + (f" ({where})" if where else "")


def rank_of(file: str) -> int:
    """Return how likely a file is to be mended: 2 for code of the task, 1 for a component of the template, else 0."""
    path = Path(file)
    if not path.exists() or "site-packages" in path.parts or "dist-packages" in path.parts:
        return 0
    if not path.is_relative_to(ROOT):
        return 0 if path.is_relative_to(STANDARD_LIBRARY) else OF_TASK
    first = path.relative_to(ROOT).parts[0]
    return 0 if first in MACHINERY else 1 if first in COMPONENTS else OF_TASK


def shorten(file: str) -> str:
    """Return a path relative to the working directory, if it is below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


# ---- the last lines of the log ---------------------------------------------------------------------------------------
def ending(trainer, error: BaseException) -> list[str]:
    """Return the lines that the log ends with: what has stopped the run, and how to go on."""
    lines = [f"Stopped by {reason_of(error)} after update {trainer.progress.update:,}."]
    checkpointer, directory = trainer.checkpointer, trainer.run_dir.path
    if any(checkpointer.path(kind).exists() for kind in checkpointer.KINDS):
        how = f"To go on: --resume {directory}"
        if isinstance(error, DivergedError) and not trainer.guard.stepped:  # the same update would diverge again
            how = f"To go on without this update: --resume {directory} --nan_policy skip"
            if trainer.guard.num_skipped >= trainer.opt.max_skips:
                how += f" --max_skips {trainer.guard.num_skipped + MORE_SKIPS}"
        lines.append(how)
        if isinstance(error, DivergedError):
            lines.append(f"To look into the update: python -m tools.replay {directory}")
    return lines


def reason_of(error: BaseException) -> str:
    """Name what stopped a run; the class of any error that is not expected."""
    if isinstance(error, Terminated):
        return f"the signal {signal.Signals(error.signum).name}"
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return REASONS[StorageError]
    return next((text for kind, text in REASONS.items() if isinstance(error, kind)), type(error).__name__)
