"""How fast does our evaluator go through 10,000 images, against one image at a time?

    python -m benchmarks.evaluation --data_dir ./Dataset
"""

import argparse
import tempfile
import time
from functools import partial

from benchmarks.fashion import prepare_data
from benchmarks.harness import MEMORY, Benchmark, Case, Column, Mark, main
from engine.options.parser import OptionParser, file_path, number

ABOUT = """
The test part of FashionMNIST, 10,000 images in memory, through the multilayer perceptron: loss and accuracy.
**evaluator** is `eval_vanilla.py`'s, with its confusion matrix, in batches of `--eval_batch_size`; **one at a time**
is the loop that asks the data set for one image, the network for one answer, and counts. The network is not trained,
which changes nothing here. Reading the files is not measured, and neither is a first pass over 1,000 images.
"""


def setup(opt: argparse.Namespace, scratch: str):
    """The options of the trainer, the test part and a network."""
    import torch

    from data.data_entry import build_datasets, with_found
    from trainer_vanilla import TrainerVanilla

    flags = ["--data_type=FashionMNIST", f"--data_dir={prepare_data(opt.data_dir, scratch)}", "--seed=0"]
    flags += ["--gpu_devices=cpu", f"--test_sample_rate={500 if opt.quick else 1}"]
    of_trainer = TrainerVanilla.parse_options(flags)
    datasets = build_datasets(of_trainer)
    of_trainer = with_found(of_trainer, datasets)  # the data says how many classes there are
    torch.manual_seed(0)
    networks = TrainerVanilla.evaluator_class.build_networks(of_trainer)
    return of_trainer, datasets["test"], networks


def evaluator(opt: argparse.Namespace) -> dict[str, float]:
    """Our evaluator."""
    import torch

    from data.loader import EvalLoader
    from eval_vanilla import EvaluatorVanilla
    from utils.precision import Precision

    with tempfile.TemporaryDirectory() as scratch:
        of_trainer, dataset, networks = setup(opt, scratch)
    criterion = EvaluatorVanilla.build_criterion(of_trainer)
    watched = EvaluatorVanilla(of_trainer, networks, criterion, torch.device("cpu"), Precision())
    load = partial(EvalLoader, dataset, opt.eval_batch_size)
    watched.evaluate(load(max_batches=max(1, 1000 // opt.eval_batch_size)))
    started = time.perf_counter()
    results = watched.evaluate(load())
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "per_second": len(dataset) / seconds, "accuracy": results["accuracy"]}


def one_at_a_time(opt: argparse.Namespace) -> dict[str, float]:
    """The loop over single images."""
    import torch
    from torch.nn.functional import cross_entropy

    with tempfile.TemporaryDirectory() as scratch:
        of_trainer, dataset, networks = setup(opt, scratch)
    model = networks["model"].eval()

    def evaluate(num_images: int) -> float:
        correct, total_loss = 0, 0.0
        with torch.no_grad():
            for index in range(num_images):
                image, label = dataset[index]
                logits = model(image[None])
                loss = cross_entropy(logits, label[None], label_smoothing=of_trainer.label_smoothing)
                total_loss += loss.item()
                correct += logits.argmax(dim=1).item() == label.item()
        return correct / num_images

    evaluate(min(1000, len(dataset)))
    started = time.perf_counter()
    accuracy = evaluate(len(dataset))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "per_second": len(dataset) / seconds, "accuracy": accuracy}


def add_options(parser: OptionParser) -> None:
    add = parser.add_argument
    add("--data_dir", type=file_path, default="./Dataset", metavar="DIR",
        help="where FashionMNIST is; without it, the sample stands in (default: ./Dataset)")
    add("--eval_batch_size", type=number(int, low=1), default=64, metavar="N",
        help="of the evaluator (default: 64, as in eval_vanilla.py)")


CASE = Case(
    "images",
    "Evaluating 10,000 images",
    ABOUT,
    {"evaluator": evaluator, "one at a time": one_at_a_time},
    [Mark("one at a time / evaluator", "one at a time", "evaluator", at_least=20)],
    [Column("seconds", "seconds"), Column("per_second", "images/s", "{:,.0f}"), MEMORY],
)
BENCHMARK = Benchmark("evaluation", __doc__, [CASE], add_options)

if __name__ == "__main__":
    main(BENCHMARK)
