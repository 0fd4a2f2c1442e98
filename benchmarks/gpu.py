"""On one CUDA GPU: our trainer against a loop by hand, plain and compiled, in float32 and bfloat16.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --flags compile --case mlp_8192

Synthetic data, made in place; no network, no files. Each case has a process of its own, in which the variants take
turns after a warm-up; that way the compiler works only once for each. The table of a case is printed when it is
done, and all figures as JSON on the last line.
"""

import argparse
import contextlib
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any
from unittest import mock

from benchmarks.harness import ANSWER, Case, Column, Mark, has_gpu, section_of, table_of, write_section
from engine.options.parser import BoolAction, OptionParser, number, one_of, run_main
from engine.runs.provenance import command_line
from utils.errors import UserError

MLP_SAMPLES, UNET_SAMPLES = 1_048_576, 512
CASES = {f"mlp_{size}": ("mlp", size) for size in (1024, 8192, 32768)} | {
    f"unet_{size}": ("unet", size) for size in (32, 64)
}
ABOUT = {
    "mlp": "{samples:,} synthetic pictures of 28 x 28 through the multilayer perceptron, batch size {size:,}, AdamW, "
    "label smoothing 0.1. By hand: the pictures as bytes on the GPU, one `index_select` per batch.",
    "unet": "{samples:,} synthetic images of 256 x 256 in memory through the U-Net of the paper's width, batch "
    "size {size}, AdamW, cross entropy and Dice, in channels-last order. By hand: all images on the GPU.",
}
MORE = (
    " **plainloop** is the trainer's own epoch (`train_epoch`, with log and TensorBoard), without validation and "
    "checkpoint; **by hand** has fused AdamW and no log; **compiled** is the same with `torch.compile`, **graphs** "
    'with `mode="reduce-overhead"`, which uses CUDA graphs. Samples per second; a run is an epoch.'
)
Epoch = Callable[[], Any]  # runs all updates of an epoch


# ---- data ------------------------------------------------------------------------------------------------------------
def make_data(kind: str, num_samples: int, side: int):
    """Three parts of synthetic data in memory, as the trainer takes them: train, val and test."""
    import torch

    from data.FashionMNIST import FashionMNIST

    generator = torch.Generator().manual_seed(0)

    def part(name: str, count: int):
        labels = torch.randint(0, 10, (count,), generator=generator)
        images = torch.randint(0, 256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
        names = [f"{name}/{index}" for index in range(count)]
        if kind == "mlp":
            return FashionMNIST(images, labels, names)
        pictures = torch.rand((count, 3, side, side), generator=generator)
        return Pictures(pictures, (pictures.mean(dim=1) > 0.5).long(), names)

    return {name: part(name, count) for name, count in (("train", num_samples), ("val", 64), ("test", 64))}


class Pictures:
    """Images (N, 3, H, W) float32 and masks (N, H, W) in memory, fetched by whole batches."""

    is_random, in_memory = False, True

    def __init__(self, images, masks, names: list[str]):
        self.images, self.masks, self.names = images, masks, names
        self.device, self.num_bytes = images.device, images.nbytes + masks.nbytes

    def to(self, device):
        return Pictures(self.images.to(device), self.masks.to(device), self.names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        return self.images[index], self.masks[index]

    def __getitems__(self, indices):
        import torch

        indices = torch.as_tensor(indices, device=self.device)
        return self.images.index_select(0, indices), self.masks.index_select(0, indices)

    @staticmethod
    def collate_fn(batch):
        return batch


# ---- variants --------------------------------------------------------------------------------------------------------
def plainloop(kind: str, datasets, opt: argparse.Namespace, size: int, amp: str, directory: str) -> Epoch:
    """Our trainer's epoch, without its end."""
    from trainer_seg_on_carvana import TrainerSeg
    from trainer_vanilla import TrainerVanilla

    class Timed({"mlp": TrainerVanilla, "unet": TrainerSeg}[kind]):
        def finish_epoch(self):  # no validation, no checkpoint
            self.progress.finish_epoch()
            self.epoch_log.clear()

    flags = [f"--batch_size={size}", f"--amp={amp}", "--n_epoch=100000", "--save_every=100000", "--seed=0"]
    flags += [f"--output_dir={directory}", f"--gpu_devices={opt.gpu}"]
    flags += [] if kind == "mlp" else ["--channels_last", "--num_workers=0", "--clip=0", f"--patch_size={opt.side}"]
    flags += ["--width=4"] if kind == "unet" and opt.quick else []
    with mock.patch("eval.build_datasets", lambda of_trainer: datasets):
        trainer = Timed(Timed.parse_options([*flags, *(f"--{flag}" for flag in opt.flags)]))
    trainer.call("on_train_start")
    return trainer.train_epoch


def by_hand(kind: str, datasets, opt: argparse.Namespace, size: int, amp: str, mode: str | None) -> Epoch:
    """A loop by hand; `mode` is None without the compiler, else that of torch.compile."""
    import torch
    from torch import nn

    from loss.dice_loss import CEDiceLoss
    from model.UNet import UNet
    from model.vanilla_model import VanillaModel

    device = torch.device("cpu" if opt.gpu == "cpu" else f"cuda:{opt.gpu}")
    train = datasets["train"]
    images, targets = train.images.to(device), (train.labels if kind == "mlp" else train.masks).to(device)
    torch.manual_seed(0)
    if kind == "mlp":
        model, criterion = VanillaModel().to(device), nn.CrossEntropyLoss(label_smoothing=0.1)
    else:
        model = UNet(3, 2, width=4 if opt.quick else 64).to(device, memory_format=torch.channels_last)
        images, criterion = images.contiguous(memory_format=torch.channels_last), CEDiceLoss(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)

    def compute(batch, target):
        batch = batch.float() / 255 if kind == "mlp" else batch
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp == "bf16"):
            return criterion(model(batch), target)

    if mode is not None and kind == "mlp":
        compute = torch.compile(compute, mode=mode)
    elif mode is not None:  # the compiler of torch 2.11 fails on the loss of images
        model.compile(mode=mode)

    def epoch() -> None:
        model.train()
        for indices in torch.randperm(len(targets), device=device).split(size):
            optimizer.zero_grad(set_to_none=True)
            compute(images.index_select(0, indices), targets.index_select(0, indices)).backward()
            optimizer.step()

    return epoch


def variants_of(opt: argparse.Namespace, kind: str, datasets, size: int, directory: str) -> dict[str, Callable]:
    """The function that builds each variant, by name."""
    ours = functools.partial(plainloop, kind, datasets, opt, size, directory=directory)
    hand = functools.partial(by_hand, kind, datasets, opt, size)
    return {  # the longest to wait for, and to do without, last
        "plainloop, bf16": functools.partial(ours, "bf16"),
        "by hand, bf16": functools.partial(hand, "bf16", None),
        "by hand, compiled, bf16": functools.partial(hand, "bf16", "default"),
        "by hand, graphs, bf16": functools.partial(hand, "bf16", "reduce-overhead"),
        "plainloop, float32": functools.partial(ours, "no"),
        "by hand, float32": functools.partial(hand, "no", None),
    }


# ---- one case, in this process ---------------------------------------------------------------------------------------
def measure_case(opt: argparse.Namespace, name: str) -> dict[str, Any]:
    """Build every variant, warm it up, and run them in turn; what fails is noted, and the others go on."""
    import torch

    from benchmarks.harness import machine

    kind, size = CASES[name]
    num_samples = {"mlp": MLP_SAMPLES, "unet": UNET_SAMPLES}[kind]
    if opt.quick:
        size, num_samples = 16, 64
    wait = torch.cuda.synchronize if opt.gpu != "cpu" else lambda: None
    torch.set_float32_matmul_precision("high")  # for all of them; plain float32 is rarely wanted on a GPU
    runs, failed, epochs = {}, {}, {}
    with tempfile.TemporaryDirectory() as directory:
        datasets = make_data(kind, num_samples, opt.side)
        deadline = time.monotonic() + opt.seconds
        for variant, build in variants_of(opt, kind, datasets, size, directory).items():
            try:
                if time.monotonic() > deadline:
                    raise UserError(f"left out: the {opt.seconds} seconds of the case are over")
                epochs[variant] = build()
                for _ in range(3):  # graphs are recorded in the second call
                    epochs[variant]()
                wait()
            except Exception as error:
                traceback.print_exc()
                epochs.pop(variant, None)
                failed[variant] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
                gc.collect()
        for _ in range(opt.runs):
            for variant in list(epochs):
                try:
                    if opt.gpu != "cpu":
                        torch.cuda.reset_peak_memory_stats()
                    wait()
                    started = time.perf_counter()
                    epochs[variant]()
                    wait()
                    figures = {"seconds": (seconds := time.perf_counter() - started), "rate": num_samples / seconds}
                    figures["gpu_memory"] = torch.cuda.max_memory_allocated() / 1e6 if opt.gpu != "cpu" else 0.0
                    runs.setdefault(variant, []).append(figures)
                except Exception as error:
                    traceback.print_exc()
                    del epochs[variant]
                    failed[variant] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return {"runs": runs, "failed": failed, "machine": machine(), "num_samples": num_samples, "size": size}


# ---- all cases -------------------------------------------------------------------------------------------------------
def case_of(name: str, num_samples: int, size: int) -> Case:
    """Describe the table of a case."""
    kind, _ = CASES[name]
    title = {"mlp": "The multilayer perceptron", "unet": "The U-Net"}[kind]
    variants = variants_of(argparse.Namespace(), kind, None, size, "")
    ours = "plainloop, bf16"
    return Case(
        name,
        f"{title} on a GPU, batch size {size:,}",
        ABOUT[kind].format(samples=num_samples, size=size) + MORE,
        variants,
        [
            Mark("plainloop / by hand, compiled, bf16", ours, "by hand, compiled, bf16", "rate", at_least=0.95),
            Mark("plainloop / by hand, graphs, bf16", ours, "by hand, graphs, bf16", "rate", at_least=0.95),
            Mark("plainloop / by hand, bf16", ours, "by hand, bf16", "rate"),
            Mark("plainloop / by hand, float32", "plainloop, float32", "by hand, float32", "rate"),
            Mark("plainloop, bf16 / float32", ours, "plainloop, float32", "rate"),
        ],
        [
            Column("rate", "samples/s", "{:,.0f}"),
            Column("seconds", "epoch, s", "{:.4f}"),
            Column("gpu_memory", "peak GPU memory, MB, of all", "{:,.0f}"),
        ],
    )


def run_case(opt: argparse.Namespace, name: str) -> dict[str, Any]:
    """Measure a case in a process of its own; what it prints besides is kept for an error."""
    command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--case", name, "--here"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3 * opt.seconds + 60)
    answers = [line.removeprefix(ANSWER) for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if not answers:
        raise UserError(f"status {done.returncode}: {' / '.join(done.stderr.strip().splitlines()[-3:])}")
    if opt.verbose:
        print(done.stderr[-4000:], file=sys.stderr)
    return json.loads(answers[-1])


def build_parser() -> OptionParser:
    parser = OptionParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--case", type=one_of(tuple(CASES)), nargs="+", default=list(CASES), metavar="NAME", help=", ".join(CASES))
    add("--runs", type=number(int, low=1, high=1000), default=5, metavar="N", help="epochs of each variant, in turn")
    add("--flags", nargs="*", default=[], metavar="NAME=VALUE", help="options of our trainer, without their --")
    add("--seconds", type=number(int, low=1), default=50, metavar="S",
        help="after so long, a case builds no further variant (default: 50)")
    add("--gpu", type=one_of((*map(str, range(8)), "cpu")), default="0", metavar="ID",
        help="the GPU; cpu to try it out (default: 0)")
    add("--side", type=number(int, low=16), default=256, metavar="N", help="side of the U-Net's images (default: 256)")
    add("--quick", action=BoolAction, default=False, help="tiny sizes, to see that it works; not a measurement")
    add("--write", action=BoolAction, default=False, help="put the tables into docs/benchmarks.md")
    add("--verbose", action=BoolAction, default=False, help="show what the processes wrote to stderr")
    add("--here", action=BoolAction, default=False, help="measure the one case in this process")
    return parser


def run_all() -> None:
    """The program."""
    parser = build_parser()
    opt = parser.parse_args()
    if opt.quick:
        opt.side = 32
    if opt.write and (opt.quick or opt.runs < 5 or opt.gpu == "cpu"):
        parser.error("--write is for a GPU, in full size, with at least 5 runs")
    if opt.gpu != "cpu" and not has_gpu():
        print("Left out: there is no CUDA GPU.")
        return
    if opt.here:
        with contextlib.redirect_stdout(sys.stderr):
            answer = measure_case(opt, opt.case[0])
        print(ANSWER + json.dumps(answer), flush=True)
        os._exit(0)  # what is left of compilers and loggers has nothing to say
    answers = {}
    for name in opt.case:
        try:
            answer = answers[name] = run_case(opt, name)
            case = case_of(name, answer["num_samples"], answer["size"])
            table = table_of(case, answer["runs"], answer["failed"])
            print(f"\n{case.title}\n\n{table}\n\n{answer['machine']}\n", flush=True)
            if opt.write:
                section = section_of(case, table, [answer["machine"]], command_line())
                write_section(f"gpu {name}", section)
        except Exception as error:  # the others are measured all the same
            answers[name] = {"failed": f"{type(error).__name__}: {error}"}
            print(f"\n{name}: FAILED: {error}\n", flush=True)
    print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    run_main(run_all)
