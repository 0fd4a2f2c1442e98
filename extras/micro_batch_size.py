"""Find the largest micro-batch that fits into memory (--micro_batch_size auto).

An update is a mean over its samples, however they are cut into micro-batches. So the size that fits can be found by
trying, and changes no result. (Batch normalization sees the micro-batch: with it the size does count.)
"""

import copy
import gc
from collections.abc import Callable
from typing import Any

import torch

from engine.devices.process_group import Distributed, share_of
from engine.options.parser import changed, saved_options
from engine.registry import load
from extras.failures import MEMORY_ADVICE
from utils.errors import DivergedError, UserError


def largest_that_fits(most: int, fits: Callable[[int], bool]) -> int:
    """Return the first of `most`, half of it, a quarter ... that fits; 0 if not even 1 does.

    >>> largest_that_fits(24, lambda size: size < 7)
    6
    """
    size = most
    while size and not fits(size):
        size //= 2
    return size


def find_micro_batch_size(trainer) -> None:
    """Set the trainer's micro-batch size to the largest that fits into the memory of a GPU.

    Elsewhere it stays the whole update. Sizes are tried on the first update, with forward pass, backward pass and
    optimizer step. After each try everything is as it was, bit for bit.

    Raises:
        UserError: not even one sample fits, or the network is sharded, so that one process cannot try alone.
    """
    if trainer.device.type != "cuda":
        reason = f"the memory of this device ({trainer.device.type}) has no limit to try"
        trainer.run_dir.note(f"Micro-batch size: {trainer.micro_batch_size}, the whole update: {reason}.")
        return keep(trainer, trainer.micro_batch_size)
    if trainer.distributed.is_sharded:
        raise UserError("--micro_batch_size auto cannot try sizes with --parallel fsdp: give a number.")
    _, largest_share = share_of(trainer.opt.batch_size, 0, trainer.distributed.size)
    parts = {name: part for name, part in trainer.stateful().items() if name != "callbacks"}
    make_snapshot = load("tools.snapshot:Snapshot", "micro_batch_size")
    snapshot = make_snapshot(parts, device="cpu")  # on the GPU it would take memory that the training needs
    trainer.set_train_mode()
    together = trainer.distributed
    with together.gradients(synchronize=False):
        trainer.distributed = Distributed()  # one process may run out of memory alone
        trainer.guard.sum_losses = None
        try:
            size = largest_that_fits(largest_share, lambda size: fits(trainer, size, snapshot))
        finally:
            trainer.distributed = together
            trainer.guard.sum_losses = together.sum if together.size > 1 else None
    size = -together.largest(-size)  # the smallest
    if not size:
        raise UserError(f"Out of memory with a single sample. {MEMORY_ADVICE}")
    is_smaller = size < largest_share  # the same in all processes
    size = size if is_smaller else trainer.opt.batch_size
    trainer.run_dir.note(f"Micro-batch size: {size}, the largest tried that fits.")
    keep(trainer, size)
    if is_smaller:
        trainer.train_loader, trainer.val_loader = trainer.build_loaders()
        trainer.train_loader.count = trainer.evaluator.loss_counter()


def keep(trainer, size: int) -> None:
    """Save the size with the options: a resumed run must go on with it, because batch normalization depends on it."""
    trainer.micro_batch_size = size
    trainer.opt = changed(trainer.opt, micro_batch_size=size)
    trainer.run_dir.record_options(saved_options(trainer.opt))


def fits(trainer, size: int, snapshot: Any) -> bool:
    """Return whether memory is enough for a step with `size` samples at once; put everything back."""
    precision = copy.deepcopy(trainer.precision)  # its scaler cannot begin an update again
    first_update = load("tools.task:first_update", "micro_batch_size")
    update = first_update(trainer.train_loader, trainer.opt.batch_size, size)
    trainer.guard.begin_update(update)
    is_enough = True
    try:
        trainer.train_step(update)
        trainer.guard.check_earlier(wait=True)
    except DivergedError:
        pass  # training will report it
    except torch.OutOfMemoryError:
        is_enough = False
    trainer.guard.forget()
    snapshot.put_back()
    trainer.precision = precision
    for network in trainer.networks.values():
        network.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    return is_enough
