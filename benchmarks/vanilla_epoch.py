"""How long does an epoch of the vanilla task take, against a loop by hand and against other frameworks?

    python -m benchmarks.vanilla_epoch --data_dir ./Dataset
    python -m benchmarks.vanilla_epoch --case batch64 --variants plainloop best

Every variant trains the same network on the same samples, with the same loss, optimizer and batch size.
"""

import argparse
import tempfile
from functools import partial

from benchmarks.fashion import prepare_data
from benchmarks.harness import MEMORY, Benchmark, Case, Column, Mark, main
from engine.options.parser import OptionParser, file_path, number

SAMPLES = {64: 60_000, 4: 4_819}  # for training and validation together, by batch size
QUICK_SAMPLES = 1_200
ABOUT = """
One epoch of the multilayer perceptron on FashionMNIST, batch size {batch_size}: {num_train} samples in {num_updates}
updates, AdamW (learning rate 1e-3, weight decay 0.01), label smoothing 0.1, float32. All train on the same samples.

- **plainloop** is `trainer_vanilla.py` as you run it: log, TensorBoard, `metrics.csv`, a validation on {num_val}
  samples and checkpoints, and its learning-rate schedule.
- **best** is the fastest loop that we can write by hand: the data as bytes in memory, one `index_select` per batch,
  fused AdamW, nothing else. No log, no validation, no checkpoint. **best, float32** keeps the images as float32, in
  four times the memory.
- **tutorial** is PyTorch's quickstart: one sample at a time through PIL and `ToTensor`, a `DataLoader` with 0 or 4
  processes, and its test loop.
- **lightning** and **accelerate** have the same data in memory (`TensorDataset`, `DataLoader`), a TensorBoard log, a
  validation and a checkpoint each epoch; Lightning a CSV log, too.

"Updates" are the seconds from the first batch to the last update: what `best` does, and in the others with their log.
"Epoch" is everything, with validation and checkpoint for those that have them. The first epoch is not measured.
"""


def run(opt: argparse.Namespace, loop: str, batch_size: int, gpu: bool, **settings) -> dict[str, float]:
    """Make one run of a loop."""
    import torch

    from benchmarks import fashion, loops

    total = QUICK_SAMPLES if opt.quick else SAMPLES[batch_size]
    sizes = {"train_val_sample_rate": 1.0 if total == 60_000 else total, "val_split": 0.15}
    epochs, learned = (4, 1.3) if opt.quick else (opt.epochs, 0.9)
    with tempfile.TemporaryDirectory() as scratch:
        data_dir = prepare_data(opt.data_dir, scratch)
        device = torch.device("cuda", 0) if gpu else torch.device("cpu")
        job = loops.Job(fashion.load_parts(data_dir, sizes), batch_size, epochs, device, learned)
        if loop != "plainloop":
            return getattr(loops, loop)(job, **settings)
        flags = [f"--{name}={value}" for name, value in sizes.items()]
        flags += ["--data_type=FashionMNIST", f"--data_dir={data_dir}", "--seed=0"]
        flags += [f"--gpu_devices={0 if gpu else 'cpu'}", *(f"--{flag}" for flag in opt.flags)]
        return loops.plainloop(job, flags)


def build_case(batch_size: int, at_most: float, gpu: bool = False) -> Case:
    """The table of one batch size, on the CPU or on a GPU."""
    one = partial(partial, run, batch_size=batch_size, gpu=gpu)
    num_train = SAMPLES[batch_size] - round(0.15 * SAMPLES[batch_size])
    sizes = {"num_train": f"{num_train:,}", "num_val": f"{SAMPLES[batch_size] - num_train:,}"}
    return Case(
        f"batch{batch_size}{'_gpu' if gpu else ''}",
        f"An epoch of the vanilla task, batch size {batch_size}{', on a GPU' if gpu else ''}",
        ABOUT.format(batch_size=batch_size, num_updates=f"{-(-num_train // batch_size):,}", **sizes),
        {
            "plainloop": one(loop="plainloop"),
            "best": one(loop="best"),
            "best, float32": one(loop="best", keep_floats=True),
            "tutorial": one(loop="tutorial"),
            "tutorial, 4 workers": one(loop="tutorial", num_workers=4),
            "lightning": one(loop="lightning"),
            "accelerate": one(loop="accelerate"),
        },
        [
            Mark("plainloop / best, epoch", "plainloop", "best", at_most=at_most),
            Mark("plainloop / best, updates", "plainloop", "best", "train", at_most=at_most),
            Mark("plainloop / best, float32, updates", "plainloop", "best, float32", "train"),
            Mark("plainloop / best, peak memory", "plainloop", "best", "memory", at_most=1.2),
            Mark("tutorial / plainloop, epoch", "tutorial", "plainloop"),
            Mark("tutorial, 4 workers / plainloop, epoch", "tutorial, 4 workers", "plainloop"),
            Mark("lightning / plainloop, epoch", "lightning", "plainloop", at_least=3),
            Mark("accelerate / plainloop, epoch", "accelerate", "plainloop", at_least=2),
        ],
        [Column("seconds", "epoch, s"), Column("train", "updates, s"), MEMORY, Column("loss", "loss")],
        needs_gpu=gpu,
    )


def add_options(parser: OptionParser) -> None:
    add = parser.add_argument
    add("--data_dir", type=file_path, default="./Dataset", metavar="DIR",
        help="where FashionMNIST is; without it, the sample stands in (default: ./Dataset)")
    add("--epochs", type=number(int, low=2, high=1000), default=3, metavar="N",
        help="epochs of each run; the first is not measured (default: 3)")
    add("--flags", nargs="*", default=[], metavar="NAME=VALUE", help="further options of the trainer, without their --")


BENCHMARK = Benchmark(
    "vanilla_epoch",
    __doc__,
    [build_case(64, 1.05), build_case(4, 1.15), build_case(64, 1.05, gpu=True)],
    add_options,
)

if __name__ == "__main__":
    main(BENCHMARK)
