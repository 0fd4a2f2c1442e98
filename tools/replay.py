"""Keep an update that went wrong, and make it again under a magnifying glass."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.checkpoints.file import FORMAT, load_checkpoint, save_checkpoint
from engine.checkpoints.sharded_state import whole
from engine.checkpoints.state import check_plain
from utils.batch import iterate_tensors, move_to
from utils.errors import DivergedError, UserError

SHOWN = 10  # names in a message


def tell_names(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def keep_for_replay(trainer, update, error: DivergedError) -> str:
    """Write the trainer's state before an update, and the update's data, to a file; return what to tell the user.

    Batches of types that a checkpoint cannot hold are left out, and a replay then takes them from the data set, where
    the same position gives the same samples. An update of which a step was made has no state before it to go back to,
    so there is no file.

    Args:
        trainer: its state is that before the update, when `trainer.progress.is_exact` is true.
        update: what the update was made from, see `data.sampler.Update`.
        error: what was wrong.
    """
    names = getattr(trainer.train_loader.dataset, "names", None) or range(len(trainer.train_loader.dataset))
    names = [str(names[index]) for index in update.indices]
    names = [name for of_process in trainer.distributed.gather(names) for name in of_process]
    number = trainer.progress.update + 1
    told = f"Epoch {trainer.progress.epoch + 1}, update {number}: {error}. Samples: {tell_names(names)}."
    if not trainer.progress.is_exact:
        return f"{told}\nAnother network was already stepped, so the update can be neither skipped nor replayed."
    # Of several processes each has only a part of the update, and the replay is made by one.
    micro_batches = [move_to(batch, "cpu") for batch in update.micro_batches] if trainer.distributed.size == 1 else []
    try:
        check_plain(micro_batches, "a batch")
    except TypeError:
        micro_batches = []
    path = trainer.run_dir.path / f"{trainer.checkpointer.prefix}_update{number}_replay.pth"
    record = {"micro_batches": micro_batches, "names": names, "reason": str(error)}
    state = {"format": FORMAT, **whole(trainer.state_dict(), trainer.distributed.is_main), "replay": record}
    if not trainer.distributed.is_main:
        return f"{told}\nTo look into it, with all names: --replay {path}"
    for earlier in trainer.run_dir.path.glob("*_replay.pth"):
        earlier.unlink()  # each is as large as a checkpoint
    try:
        save_checkpoint(state, path)
    except UserError as not_saved:
        return f"{told}\nIt cannot be replayed. {not_saved}"
    return f"{told}\nTo look into it, with all names: --replay {path}"


def load_replay(path: str | Path) -> dict[str, Any]:
    """Open what `keep_for_replay` wrote; UserError for any other checkpoint."""
    state = load_checkpoint(path)
    if "replay" not in state:
        raise UserError(f"--replay {path}: this checkpoint holds no update to replay. Give a ..._replay.pth file.")
    return state


def replay(build_trainer: Callable[[str], Any], path: str | Path) -> None:
    """Make the update of a replay file again with torch's anomaly detection, and tell what is found.

    Anomaly detection names the operation whose gradient is NaN first, with the line of the forward pass that called it
    (the traceback that it prints). It tells nothing of an infinite gradient, so parameters are listed too.

    Args:
        build_trainer: makes a trainer with the options of the file, which writes to the directory that it is given.
        path: the file.

    Raises:
        DivergedError: when the update goes wrong again, which is the rule: same state, same data, same random numbers.
    """
    with tempfile.TemporaryDirectory() as directory:  # it is no run, so it leaves none
        repeat_update(build_trainer(directory), load_replay(path))


def repeat_update(trainer, state: dict[str, Any]) -> None:
    """Make the update of a replay file on a trainer that was built with its options, see `replay`."""
    record, say = state["replay"], trainer.logger.info
    trainer.load_state_dict(state)
    position = trainer.progress
    say(f"Replaying the update after update {position.update}, in epoch {position.epoch + 1}.")
    say(f"What was seen: {record['reason']}")
    say(f"Its {len(record['names'])} samples: {tell_names(record['names'])}")
    micro_batches = record["micro_batches"]
    if not micro_batches:
        micro_batches = next(trainer.train_loader.updates(position.epoch, position.sample)).micro_batches
    for place, batch in enumerate(micro_batches):
        for number, tensor in enumerate(iterate_tensors(batch)):
            bad = [row for row in range(len(tensor)) if not tensor[row].isfinite().all()] if tensor.ndim else []
            if bad:
                say(f"Micro-batch {place + 1}, tensor {number + 1}: not finite in its samples {bad[:SHOWN]}")
    trainer.freezing.set_train_mode(trainer.networks)
    trainer.guard.begin_update()
    found = None
    try:
        with torch.autograd.set_detect_anomaly(True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Anomaly Detection has been enabled")
            trainer.train_step(micro_batches)
            trainer.guard.check_earlier(wait=True)
    except (DivergedError, RuntimeError) as error:
        if not isinstance(error, DivergedError) and "returned nan values" not in str(error):
            raise
        found = " ".join(str(error).split())
    for name, network in trainer.networks.items():
        bad = [key for key, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        if bad:
            say(f"Gradients of {name!r} that are not finite: {tell_names(bad)}")
    if found:
        raise DivergedError(f"the update went wrong again: {found}")
    say("The update was made without anything infinite or NaN: what was seen does not repeat here.")
