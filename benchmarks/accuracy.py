"""How good is a task with its defaults, and how much does that depend on the seed?

    python -m benchmarks.accuracy vanilla --seeds 5
    python -m benchmarks.accuracy vanilla --seeds 3 -- --data_type FashionMNIST --data_dir ./Dataset

Trains with seeds 0, 1, ..., tests each best checkpoint, and prints a row of a Markdown table: mean, standard deviation
and range over the seeds, with the command, the hardware, the versions and the date.
"""

import argparse
import contextlib
import datetime
import platform
import statistics
import sys
import tempfile

import torch

from benchmarks.processor import processor
from engine.options.parser import OptionParser, number, one_of, run_main
from engine.runs.provenance import command_line
from eval_seg_on_carvana import EvaluatorSeg
from eval_vanilla import EvaluatorVanilla
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla

TASKS = {"vanilla": (TrainerVanilla, EvaluatorVanilla, "accuracy"), "carvana": (TrainerSeg, EvaluatorSeg, "dice")}


def score(task: str, seed: int, flags: list[str], directory: str) -> tuple[float, int]:
    """Train with one seed and return the metric of the best checkpoint on the test part, and the number of samples."""
    trainer_class, evaluator_class, metric = TASKS[task]
    trainer = trainer_class(trainer_class.parse_options([*flags, "--seed", str(seed), "--output_dir", directory]))
    trainer.train()
    best = str(trainer.checkpointer.path("best"))
    argv = ["--model_path", best, "--save_path", f"{directory}/test", "--no-viz"]
    evaluator = evaluator_class.run_test(evaluator_class.parse_options(argv))
    return evaluator.results()[metric], evaluator.num_samples


def main() -> None:
    parser = OptionParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=one_of(tuple(TASKS)), help=" or ".join(TASKS))
    parser.add_argument("--seeds", type=number(int, low=2), default=5, help="number of seeds (default: 5)")
    parser.epilog = "Options after -- go to the trainer."
    argv = sys.argv[1:]
    end = argv.index("--") if "--" in argv else len(argv)
    opt, flags = parser.parse_args(argv[:end]), argv[end + 1 :]
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(sys.stderr):
        scores = [score(opt.task, seed, flags, directory) for seed in range(opt.seeds)]
    values = [value for value, _ in scores]
    print(
        f"| {opt.task}, test {TASKS[opt.task][2]}, n = {scores[0][1]:,} | {statistics.mean(values):.4f} "
        f"| sd {statistics.stdev(values):.4f}, {min(values):.4f} to {max(values):.4f}, {opt.seeds} seeds "
        f"| `{command_line()}` |\n"
        f"{processor()}; Python {platform.python_version()}, torch {torch.__version__}; {datetime.date.today()}"
    )


if __name__ == "__main__":
    run_main(main)
