"""The parts of a trainer, made from its options."""

from argparse import Namespace
from pathlib import Path

from engine.checkpoints.checkpointer import Checkpointer
from engine.devices.process_group import Distributed
from utils.errors import UserError


def check_swa_start(opt: Namespace, updates_per_epoch: int) -> None:
    """Raise UserError when --max_updates ends a new run before the epoch in which its average begins."""
    if opt.swa_start is None or opt.max_updates is None or opt.resume:  # which may have cut epochs short
        return
    if opt.swa_start > (last := -(-opt.max_updates // updates_per_epoch)):
        end = f"--max_updates {opt.max_updates} ends in epoch {last}"
        raise UserError(f"--swa_start {opt.swa_start} is after the last epoch: {end}.")


def make_checkpointer(opt: Namespace, run_dir: Path, updates_per_epoch: int, distributed: Distributed) -> Checkpointer:
    """Build the writer of the run's checkpoints, in the format of --checkpoint_format."""
    every = opt.save_every_updates or max(1, round(opt.save_every * updates_per_epoch))
    plan = {"run_dir": run_dir, "prefix": opt.model_type or opt.proj_name, "every": every, "keep": opt.keep}
    if opt.checkpoint_format == "sharded":
        from engine.checkpoints.distributed import DistributedCheckpointer

        return DistributedCheckpointer(distributed, **plan)
    return Checkpointer(**plan, writes=distributed.is_main)
