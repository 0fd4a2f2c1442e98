"""Several processes learn what one learns: the same weights after 50 updates, to rounding.

python -m tests.torture.agreement
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests import small_tasks
from tests.processes import in_processes
from tests.small_tasks import largest_difference, train, weights_of
from tests.torture import harness
from tests.torture.harness import Row
from tools.synthetic.make_carvana_like import make_carvana_like

WHAT = "training of 50 updates with 2 and 3 processes against one process: the same weights and learning rates"
PAGE = "distributed"
MODES = ("ddp", "fsdp")
SIZES = (2, 3)
SINGLE, DOUBLE = 1e-5, 1e-12  # the largest difference of a weight that is allowed, in float32 and in float64


@dataclass(frozen=True)
class Case:
    """A small run.

    Attributes:
        name: for messages.
        task: its class in tests/small_tasks.py.
        flags: its options.
        tolerance: the largest difference of a weight that is allowed.
    """

    name: str
    task: str
    flags: tuple[Any, ...]
    tolerance: float = SINGLE


MICRO = ("--micro_batch_size", 3, "--warmup_epoch", 1)
SGD = ("--optim", "sgd", "--lr", 0.1, "--batch_size", 16)
# 145 samples in ten updates of 16, the last one of a single sample, or in eleven of 14, the last one of five; 16 images
# in four updates of 5, the last one of a single image.
CASES = (
    Case("vanilla, SGD, micro-batches, clipped norm", "TrainerSmall", (*SGD, *MICRO, "--clip", 0.5)),
    Case("vanilla, SGD, step schedule, clipped values, loading processes", "TrainerSmall",
         (*SGD, "--clip", 0.02, "--clip_type", "value", "--num_workers", 1, "--micro_batch_size", 4,
          "--lr_scheduler", "step", "--lr_decay_every", 1.5)),
    Case("vanilla, AdamW in float64", "TrainerSmall64", ("--batch_size", 14, *MICRO, "--clip", 0.5), DOUBLE),
    Case("vanilla, AdamW", "TrainerSmall", ("--batch_size", 16, "--lr", 0.01, *MICRO)),
    Case("segmentation, SGD, micro-batches, clipped norm", "TrainerSegAlone",
         ("--optim", "sgd", "--lr", 0.05, "--micro_batch_size", 2, "--clip", 0.5, "--n_epoch", 13, "--augment")),
    Case("segmentation, SGD in float64, clipped norm", "TrainerSeg64",
         ("--optim", "sgd", "--lr", 0.01, "--micro_batch_size", 2, "--clip", 0.5, "--n_epoch", 13), DOUBLE),
    Case("segmentation, AdamW in float64", "TrainerSeg64", ("--micro_batch_size", 2, "--n_epoch", 13), DOUBLE),
)  # fmt: skip
COUNT, QUICK = len(CASES), 1
NOTE = (
    "DDP and FSDP; micro-batches of another number than processes, a last update with fewer samples than processes, "
    "clipping, warm-up; the U-Net without batch normalization. All processes have the same bits, and a second run "
    "of two processes, too"
)


def learn(cases: tuple[Case, ...], modes: tuple[str, ...], directory: Path, cars: Path) -> dict[tuple[str, str], dict]:
    """Train all cases in all modes; return the weights, and the learning rate of each update."""
    found = {}
    for number, case in enumerate(cases):
        for mode in modes:
            task = getattr(small_tasks, case.task)
            data = ("--data_dir", cars) if "Seg" in case.task else ()
            rates: list[float] = []

            class Noting(task):
                def optimizer_step(self, name: str | None = None, rates=rates) -> torch.Tensor:
                    rates.append(self.optimizers[name or next(iter(self.optimizers))].param_groups[0]["lr"])
                    return super().optimizer_step(name)

            trainer = train(Noting, (*case.flags, *data, "--parallel", mode), directory / f"{number}_{mode}")
            found[case.name, mode] = {"weights": weights_of(trainer), "rates": rates}
    return found


def faults_of(case: Case, alone: dict, several: list[dict], again: list[dict]) -> tuple[list[str], float]:
    """Return the faults of the runs of several processes, and the largest difference from the run of one."""
    difference = largest_difference(alone["weights"], several[0]["weights"])
    faults = [] if difference <= case.tolerance else [f"weights differ by {difference:.1e}"]
    faults += [] if len(alone["rates"]) >= 50 else [f"only {len(alone['rates'])} updates were made"]
    for rank, found in enumerate(several):
        faults += [] if found["rates"] == alone["rates"] else [f"process {rank} has another learning rate"]
        if largest_difference(found["weights"], several[0]["weights"]) != 0:
            faults.append(f"process {rank} has other weights than process 0")
    for found in again:
        if largest_difference(found["weights"], several[0]["weights"]) != 0:
            faults.append("a second run has other weights")
    return faults, difference


def run(count: int = COUNT, seed: int = 0, sizes: tuple[int, ...] = SIZES, twice: bool = True) -> Row:
    """Try the first `count` cases."""
    row, largest, cases = Row(), {SINGLE: 0.0, DOUBLE: 0.0}, CASES[:count]
    with harness.scratch() as directory:
        cars = directory / "cars"
        if any("Seg" in case.task for case in cases):
            make_carvana_like(cars, cars=6, views=4, size=(96, 64))
        small = tuple(case for case in cases if "Seg" not in case.task)
        (alone,) = in_processes(1, learn, cases, ("none",), directory / "alone", cars, timeout=600)
        for size in sizes:
            several = in_processes(size, learn, cases, MODES, directory / str(size), cars, timeout=1200)
            again: list[dict] = []
            if twice and size == sizes[0]:
                again = in_processes(size, learn, small, MODES, directory / f"{size}again", cars, timeout=600)
            for case in cases:
                for mode in MODES:
                    key = case.name, mode
                    of_again = [found[key] for found in again if key in found]
                    of_several = [found[key] for found in several]
                    faults, difference = faults_of(case, alone[case.name, "none"], of_several, of_again)
                    largest[case.tolerance] = max(largest[case.tolerance], difference)
                    row.add(f"{case.name}, {size} processes, {mode}", faults)
    row.note = f"{NOTE}. Largest difference of a weight: {largest[SINGLE]:.1e} in float32"
    row.note += f", {largest[DOUBLE]:.1e} in float64" if any(case.tolerance == DOUBLE for case in cases) else ""
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
