"""How long is a training step of the U-Net, in float32 and with --amp bf16 --channels_last, and is the Dice the same?

    python -m benchmarks.unet_step
    python -m benchmarks.unet_step --case dice    (an hour on two cores)
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.harness import MEMORY, Benchmark, Case, Column, Mark, main
from engine.options.parser import OptionParser

FAST = ("--amp=bf16", "--channels_last")
ABOUT_STEP = """
One update of the U-Net of the paper's width (29 million parameters) on images of 128 x 128 pixels, batch size 4,
through the trainer: forward, loss (cross entropy and Dice), backward, clipping, AdamW. The same batch each time,
which is in memory. Five steps after two that are not measured; the figure of a run is their median.
"""
ABOUT_DICE = """
The small U-Net of the tour (width 16, 12 epochs with augmentation, 24 drawn cars with 16 views each, 128 x 128
pixels), trained both ways from the same seed, and tested on cars that it has not seen. Each run has a seed of its
own: 0, 1, ...
"""


def flags_of(opt: argparse.Namespace, directory: str, fast: bool) -> list[str]:
    """The flags that both cases share, with the data drawn in `directory`."""
    where = [f"--data_dir={directory}/cars", f"--output_dir={directory}/runs", "--gpu_devices=cpu", "--num_workers=0"]
    return [*where, *(FAST if fast else ()), *(f"--{flag}" for flag in opt.flags)]


def step(opt: argparse.Namespace, fast: bool) -> dict[str, float]:
    """The seconds of one update."""
    from tools.synthetic.make_carvana_like import make_carvana_like
    from trainer_seg_on_carvana import TrainerSeg

    sizes = ["--patch_size=32", "--width=4"] if opt.quick else ["--patch_size=128"]
    with tempfile.TemporaryDirectory() as directory:
        make_carvana_like(Path(directory) / "cars", cars=4, views=4, size=(192, 128))
        own = ["--batch_size=4", "--train_val_sample_rate=1", "--test_sample_rate=4", "--val_split=4", "--seed=0"]
        trainer = TrainerSeg(TrainerSeg.parse_options([*flags_of(opt, directory, fast), *own, *sizes]))
        update = next(iter(trainer.train_loader.updates(0)))
        for network in trainer.networks.values():
            network.train()
        seconds = []
        for _ in range(7):
            started = time.perf_counter()
            values = trainer.guarded_step(update)
            seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds[2:]), "loss": float(values["loss"])}


def dice(opt: argparse.Namespace, fast: bool) -> dict[str, float]:
    """The Dice on the test part after a whole training, and how long that took."""
    from eval_seg_on_carvana import EvaluatorSeg
    from tools.synthetic.make_carvana_like import make_carvana_like
    from trainer_seg_on_carvana import TrainerSeg

    with tempfile.TemporaryDirectory() as directory:
        cars = {"cars": 8, "views": 2, "size": (96, 64)} if opt.quick else {"cars": 24, "views": 16, "size": (480, 320)}
        make_carvana_like(Path(directory) / "cars", **cars)
        sizes = (
            ["--patch_size=32", "--width=4", "--n_epoch=2"]
            if opt.quick
            else ["--patch_size=128", "--width=16", "--n_epoch=12"]
        )
        own = ["--train_val_sample_rate=1", "--test_sample_rate=0.125", "--augment", f"--seed={opt.number}", *sizes]
        trainer = TrainerSeg(TrainerSeg.parse_options([*flags_of(opt, directory, fast), *own]))
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        best = str(trainer.checkpointer.path("best"))
        argv = [f"--model_path={best}", f"--save_path={directory}/test", "--no-viz"]
        tested = EvaluatorSeg.run_test(EvaluatorSeg.parse_options(argv))
    return {"seconds": seconds, "dice": tested.results()["dice"]}


def add_options(parser: OptionParser) -> None:
    parser.add_argument(
        "--flags", nargs="*", default=[], metavar="NAME=VALUE", help="further options of the trainer, without their --"
    )


PLAIN, QUICKER = "float32", "bf16, channels_last"
CASES = [
    Case(
        "step", "A training step of the U-Net", ABOUT_STEP,
        {PLAIN: partial(step, fast=False), QUICKER: partial(step, fast=True)},
        [Mark(f"{PLAIN} / {QUICKER}", PLAIN, QUICKER, at_least=2.5)],
        [Column("seconds", "seconds a step"), MEMORY],
    ),
    Case(
        "dice", "The U-Net in bfloat16: is it as good?", ABOUT_DICE,
        {PLAIN: partial(dice, fast=False), QUICKER: partial(dice, fast=True)},
        [
            Mark("difference of the Dice", PLAIN, QUICKER, "dice", at_most=0.005, difference=True),
            Mark(f"{PLAIN} / {QUICKER}, seconds of training", PLAIN, QUICKER),
        ],
        [Column("dice", "test Dice", "{:.4f}"), Column("seconds", "training, s", "{:.0f}"), MEMORY],
        is_long=True,
    ),
]  # fmt: skip
BENCHMARK = Benchmark("unet_step", __doc__, CASES, add_options)

if __name__ == "__main__":
    main(BENCHMARK)
