"""When the memory of a GPU runs out: how many samples go through the network at once (--micro_batch_size auto).

An update is a mean over its samples, however they are cut into micro-batches. So the size that fits can be found by
trying, and made smaller when the memory runs out later, without another update than before. (Batch normalization sees
the micro-batch, so with it the size does count.)
"""

import contextlib
import gc
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from engine.devices.process_group import Distributed, share_of
from engine.options.parser import saved_options
from engine.snapshot import Snapshot, parts_of
from utils.batch import count_samples, cut
from utils.errors import DivergedError, UserError

ADVICE = "--activation_checkpointing and --amp bf16 need less, too."


def cut_up(micro_batches: list, size: int) -> list:
    """Cut those that have more than `size` samples.

    >>> [len(piece) for piece in cut_up([torch.zeros(5), torch.zeros(2)], size=2)]
    [2, 2, 1, 2]
    """
    counts = [count_samples(batch) for batch in micro_batches]
    if max(counts) <= size:
        return micro_batches
    return [
        cut(batch, begin, min(begin + size, count))
        for batch, count in zip(micro_batches, counts, strict=True) for begin in range(0, count, size)
    ]  # fmt: skip


def versions(optimizers: Iterable[Optimizer]) -> list[tuple[int, int]]:
    """How often each weight, and what an optimizer keeps for it, was written to: a step changes this, even half of one.

    What an optimizer has only just made counts when it was written to.
    """
    found = []
    for optimizer in optimizers:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            kept = [v._version for v in optimizer.state.get(parameter, {}).values() if torch.is_tensor(v)]
            found.append((parameter._version, sum(kept)))
    return found


# ---- in the middle of a run ------------------------------------------------------------------------------------------
def step_in_memory(trainer, update: Any) -> dict[str, torch.Tensor]:
    """Make the trainer's step; with --micro_batch_size auto, again with smaller micro-batches when memory runs out.

    Before it is made again, all is put back to what it was before the update. From then on the size stays smaller.

    Raises:
        UserError: when memory ran out and the update is not made again: that is not asked for, it was half made, a
            sample alone does not fit, or there are several processes, which wait for this one within the update.
    """
    optimizers = list(trainer.optimizers.values()) if trainer.may_halve else []
    before, had_state = versions(optimizers), [bool(optimizer.state) for optimizer in optimizers]
    while True:
        micro_batches = update.micro_batches
        if trainer.may_halve:  # the loader goes on with the size with which it has begun
            micro_batches = cut_up(micro_batches, trainer.opt.micro_batch_size)
        try:
            return trainer.train_step(micro_batches)
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0].rstrip(".")
        # Outside of the except block, since the error holds on to all that the step has computed.
        largest = max(map(count_samples, micro_batches))
        reason = f"{reason}, with {largest} samples at once"
        if not trainer.may_halve:
            raise UserError(f"{reason}. Give --micro_batch_size auto, or a smaller one. {ADVICE}")
        if trainer.distributed.size > 1:
            raise UserError(f"{reason}, in process {trainer.distributed.rank}. Give a smaller number. {ADVICE}")
        if trainer.guard.stepped or versions(optimizers) != before:
            raise UserError(f"{reason}, in the middle of an optimizer's step. Give a smaller number. {ADVICE}")
        for optimizer, had in zip(optimizers, had_state, strict=True):
            if not had:
                optimizer.state.clear()  # what a step that was broken off has made for some of the weights
        trainer.guard.begin_again()
        trainer.precision.begin_again()
        free_memory(trainer)
        if largest == 1:
            trainer.exact = True
            raise UserError(f"{reason}, which is the least. {ADVICE}")
        trainer.opt.micro_batch_size = largest // 2
        number = trainer.progress.update + 1
        trainer.logger.warning(f"{reason}. Update {number} is made again, from here on with {largest // 2}.")


def free_memory(trainer) -> None:
    """Let go of the gradients, and of what torch keeps in reserve."""
    for network in trainer.networks.values():
        network.zero_grad(set_to_none=True)
    gc.collect()
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()


# ---- before a run ----------------------------------------------------------------------------------------------------
def fit_micro_batches(trainer) -> None:
    """Replace --micro_batch_size auto by the largest number that fits, which is then saved with the options.

    On a GPU sizes are tried, see `largest_that_fits`. Elsewhere the whole update is taken.
    """
    options = trainer.opt
    if options.micro_batch_size != "auto":
        return
    if trainer.device.type == "cuda":
        if trainer.distributed.is_sharded:
            raise UserError("--micro_batch_size auto cannot try sizes with --parallel fsdp: give a number.")
        size = largest_that_fits(trainer)
        note = f"the most, of {options.batch_size} samples of an update, that was tried and fits"
    else:
        size = options.batch_size
        note = f"the whole update, since the memory of this device ({trainer.device.type}) has no limit to be tried"
    trainer.may_halve, options.micro_batch_size = True, size
    if size < options.batch_size:
        if options.eval_batch_size == options.batch_size:  # which it is unless another was given
            options.eval_batch_size = size
        before = (trainer.train_loader, trainer.val_loader)
        trainer.train_loader, trainer.val_loader = trainer.build_loaders()
        for loader, old in zip((trainer.train_loader, trainer.val_loader), before, strict=True):
            loader.warn, loader.interrupt = old.warn, old.interrupt
    trainer.run_dir.note(f"Micro-batch size: {size}, {note}.")
    trainer.run_dir.record_options(saved_options(options))


def largest_that_fits(trainer) -> int:
    """Return how many samples fit into memory at once: of each process all of its share, or a half of it, a quarter...

    Each is tried with a whole step on the first update: forward and backward pass, and the optimizer's step. After each
    try all is as it was, bit for bit. Several processes try without waiting for each other, since one may run out of
    memory alone; then all take the smallest number.

    Raises:
        UserError: when not even one sample fits.
    """
    together, sum_losses = trainer.distributed, trainer.guard.sum_losses
    update = next(iter(trainer.train_loader.updates(0)))
    whole, num_halvings = share_of(trainer.opt.batch_size, 0, together.size)[1], 0
    snapshot = Snapshot(parts_of(trainer), device="cpu")  # so as not to need more memory than the training will
    trainer.freezing.set_train_mode(trainer.networks)
    with together.gradients(synchronize=False):
        trainer.distributed, trainer.guard.sum_losses = Distributed(), None  # this process alone
        try:
            while whole >> num_halvings and not fits(trainer, update, whole >> num_halvings, snapshot):
                num_halvings += 1
        finally:
            trainer.distributed, trainer.guard.sum_losses = together, sum_losses
    num_halvings = together.agree(num_halvings)
    if not whole >> num_halvings:
        raise UserError(f"Out of memory with a single sample. {ADVICE}")
    return trainer.opt.batch_size if num_halvings == 0 else whole >> num_halvings


def fits(trainer, update: Any, size: int, snapshot: Snapshot) -> bool:
    """Whether memory is enough for a step with `size` samples at once. Then all is put back to the snapshot."""
    is_enough = True
    trainer.guard.begin_update(update)
    try:
        trainer.train_step(cut_up(update.micro_batches, size))
        trainer.guard.settle(wait=True)
    except DivergedError:
        pass  # which is for the training to tell
    except torch.OutOfMemoryError:
        is_enough = False
    finally:
        with contextlib.suppress(DivergedError):
            trainer.guard.settle(wait=True)
        snapshot.put_back()
        trainer.precision.begin_again()
        free_memory(trainer)
    return is_enough
