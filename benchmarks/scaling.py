"""How many more samples in a second do two processes of one core each train than one process of one core?

    python -m benchmarks.scaling
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.harness import ROOT, TIMEOUT, Benchmark, Case, Column, Mark, main

COMMON = """
Each process has one thread. Samples per second are those of the second of two epochs: updates and their data, without
validation and saving. The update is the same in all variants, and cut in two by two processes. What limits two
processes: they add up their gradients in every update, through gloo on this machine, they wait for the slower one, and
they share the memory and the caches of one processor. `copies` is two runs of one process side by side that have
nothing to do with each other, with their samples added: what this machine gives two processes at most.
"""
ABOUT = {
    "UNet": "**U-Net**, width 16, 128 x 128 pixels, drawn cars, updates of 8: much to compute for each number of a "
            "gradient." + COMMON,
    "MLP": "**Multilayer perceptron**, the FashionMNIST sample, updates of 510: little to compute for each of 670 "
           "thousand numbers of a gradient.",
}  # fmt: skip


def flags_of(kind: str, opt: argparse.Namespace, directory: str) -> list[str]:
    """The program and its options, but for the number of processes."""
    common = ["--n_epoch=2", "--seed=0", "--save_every=2", "--val_every=2", "--gpu_devices=cpu"]
    if kind == "MLP":
        few = ["--train_val_sample_rate=300"] if opt.quick else []
        return ["trainer_vanilla.py", *common, "--batch_size=510", *few]
    from tools.synthetic.make_carvana_like import make_carvana_like

    size = ["--patch_size=32", "--width=4"] if opt.quick else ["--patch_size=128", "--width=16"]
    cars = Path(directory) / "cars"
    make_carvana_like(cars, cars=8, views=4 if opt.quick else 16, size=(96, 64) if opt.quick else (256, 192))
    data = [f"--data_dir={cars}", "--train_val_sample_rate=1", "--test_sample_rate=4", "--val_split=4"]
    return ["trainer_seg_on_carvana.py", *common, *data, *size, "--batch_size=8", "--num_workers=0"]


def start(flags: list[str], directory: str) -> subprocess.Popen:
    command = [sys.executable, *flags, f"--output_dir={directory}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def speed_of(process: subprocess.Popen, directory: str) -> float:
    """The samples per second of a run's second epoch, when it has ended."""
    if process.wait(TIMEOUT):
        raise RuntimeError(f"the training ended with status {process.returncode}")
    (path,) = Path(directory).glob("*/metrics.csv")
    with open(path, newline="", encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[-1]["samples_per_second"])


def train(opt: argparse.Namespace, kind: str, own: tuple[str, ...] = (), copies: int = 1) -> dict[str, float]:
    """Train once, or several runs side by side."""
    with tempfile.TemporaryDirectory() as directory:
        flags = [*flags_of(kind, opt, directory), *own]
        places = [f"{directory}/run{number}" for number in range(copies)]
        processes = [start(flags, place) for place in places]
        return {"per_second": sum(speed_of(*pair) for pair in zip(processes, places, strict=True))}


def case(kind: str) -> Case:
    variants = {
        "one process": partial(train, kind=kind),
        "two, ddp": partial(train, kind=kind, own=("--nproc=2", "--parallel=ddp")),
        "two, fsdp": partial(train, kind=kind, own=("--nproc=2", "--parallel=fsdp")),
        "copies": partial(train, kind=kind, copies=2),
    }
    marks = [
        Mark("two, ddp / one process", "two, ddp", "one process", "per_second", at_least=1.7),
        Mark("two, fsdp / one process", "two, fsdp", "one process", "per_second"),
        Mark("copies / one process", "copies", "one process", "per_second"),
    ]
    columns = [Column("per_second", "samples/s", "{:,.0f}")]
    return Case(kind, f"Two processes, {kind}", ABOUT[kind], variants, marks, columns)


BENCHMARK = Benchmark("scaling", __doc__, [case("UNet"), case("MLP")])

if __name__ == "__main__":
    main(BENCHMARK)
