"""Checkpoints in shards, killed and resumed with other numbers of processes: complete, and right to rounding.

python -m tests.torture.sharded --count 3
"""

import random
from pathlib import Path

import torch

from engine.checkpoints.file import load_checkpoint
from tests.torture import harness
from tests.torture.harness import Life, Row
from tools.digest import leaves

WHAT = "checkpoints in shards, killed and resumed with another number of processes"
COUNT, QUICK = 3, 1
ORDERS = ((2, 1, 3), (3, 2, 1), (1, 3, 2))  # processes of each of the three lives
CLOSE = 1e-5
UPDATES = 32  # of a run: 510 samples in two epochs, 32 an update
FLAGS = (  # without Adam, whose division by small numbers makes much of rounding, with or without shards
    *("--train_val_sample_rate", "600", "--n_epoch", "2", "--seed", "1", "--gpu_devices", "cpu"),
    *("--optim", "nesterov", "--lr", "0.05"),
)
SHARDED = ("--checkpoint_format", "sharded", "--save_every_updates", "3")


def job() -> harness.Job:
    return harness.Job("sharded", ("trainer_vanilla.py",), FLAGS)


def largest_difference(a: Path, b: Path) -> float:
    """Between the weights, and what the optimizers keep, of two checkpoints."""
    first, second = [load_checkpoint(path) for path in (a, b)]
    found = 0.0
    for part in ("networks", "optimizers"):
        others = dict(leaves(second[part]))
        for place, value in leaves(first[part]):
            if torch.is_tensor(value):
                found = max(found, float((value.double() - others[place].double()).abs().max()))
    return found


def try_order(counts: tuple[int, ...], mode: str, whole: Path, dice: random.Random, directory: Path) -> list[str]:
    """Live as often as `counts` has numbers, and be killed at the end of each life but the last."""
    kills = sorted(dice.sample(range(7, UPDATES), len(counts) - 1))  # after 6, the checkpoint of 3 is there
    life = None
    for number, count in enumerate(counts):
        flags = ("--nproc", count, "--parallel", mode)
        one = job().under("tools.kill", "--at", kills[number]) if number < len(kills) else job()
        run_dir = life.run_dir if life else None
        command = one.resume(run_dir, *flags) if life else one.command("--output_dir", directory, *SHARDED, *flags)
        life = Life(command, directory, run_dir)
        status, expected = life.end(), (0,) if number == len(kills) else (6, -9)
        if status not in expected:
            return [f"with {count} processes it ended with {status}: {life.told()}"]
    (last,) = life.run_dir.glob("*_last_ckpt.pth")
    difference = largest_difference(last, whole)
    return [] if difference <= CLOSE else [f"killed after {kills}, it ends {difference:.1e} away from one process"]


def run(count: int = COUNT, seed: int = 0) -> Row:
    """Try the orders."""
    row = Row()
    with harness.scratch() as directory:
        one = Life(job().command("--output_dir", directory / "whole"), directory / "whole")
        if one.end() != 0:
            raise RuntimeError(f"It does not even run without interruption: {one.told()}")
        (whole,) = one.run_dir.glob("*_last_ckpt.pth")
        for number in range(count):
            counts, mode = ORDERS[number % len(ORDERS)], ("fsdp", "ddp")[number // len(ORDERS) % 2]
            what = f"{mode} with {', then '.join(map(str, counts))} processes"
            dice = harness.draw(seed, number)
            row.add(what, try_order(counts, mode, whole, dice, directory / str(number)))
    row.note = f"with 2, 1 and 3 processes in three orders, fsdp and ddp, killed twice; {CLOSE:g} from one process"
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
