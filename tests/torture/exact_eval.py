"""The evaluation of several processes sees each sample exactly once, and its meters say what those of one process say.

python -m tests.torture.exact_eval
"""

import math
from argparse import Namespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from data.loader import EvalLoader
from engine.devices.job import place
from engine.devices.process_group import Distributed
from eval import EvaluatorBase
from extras.several_processes import SeveralProcesses
from extras.sharding import ShardedProcesses
from tests.processes import in_processes
from tests.small_data import Numbered, NumberedInMemory, NumberedRandom
from tests.torture import harness
from tests.torture.harness import Row
from utils.meter import AvgMeter, Meter
from utils.metrics import Accuracy, ConfusionMatrix
from utils.precision import Precision

WHAT = "evaluation with 1 to 17 samples and 1, 2, 3 processes: each sample exactly once, the meters of one process"
PAGE = "distributed"
COUNT, QUICK = 17, 3
BATCH_SIZE = 3
LOADINGS = ("memory", "one by one", "two loading processes")
NOTE = (
    "DDP and FSDP, where processes without a sample keep in step; batches of 3, in memory, loaded one by one with "
    "random numbers, and by two processes; sums, counts, matrices, the order of rows, and two metrics of torchmetrics"
)


class Seen(Meter):
    """The numbers of the samples in the order in which they came, and what the network said of each."""

    def __init__(self) -> None:
        super().__init__()
        self.declare_rows("indices", (), torch.int64)
        self.declare_rows("values", (8,), torch.float32)

    def update(self, batch: Any) -> None:
        self.indices.append(batch["index"])
        self.values.append(batch["values"])

    def compute(self) -> float:
        return float(torch.cat(self.indices).numel())


class EvaluatorNumbered(EvaluatorBase):
    """Classifies numbered samples."""

    def build_meters(self) -> dict[str, Any]:
        return {
            "seen": Seen(),
            "loss": AvgMeter(),
            "accuracy": Accuracy(),
            "confusion": ConfusionMatrix(3),
            "torchmetrics": MulticlassAccuracy(3, average="micro"),
            "auroc": MulticlassAUROC(3, average="macro"),  # keeps all rows
        }

    def eval_step(self, batch: Any) -> None:
        logits = self.model(batch["values"])  # (N, 3)
        assert not self.model.training and not logits.requires_grad
        self.meters["seen"].update(batch)
        self.meters["loss"].update(F.cross_entropy(logits, batch["label"]), n=len(logits))
        for name in ("accuracy", "confusion", "torchmetrics"):
            self.meters[name].update(logits, batch["label"])
        self.meters["auroc"].update(logits.softmax(dim=1), batch["label"])


def loader_of(num_samples: int, loading: str, share: tuple[int, int]) -> Any:
    if loading == "memory":
        return EvalLoader(NumberedInMemory(num_samples), BATCH_SIZE, share=share)
    dataset = NumberedRandom(num_samples) if loading == "one by one" else Numbered(num_samples)
    return EvalLoader(dataset, BATCH_SIZE, num_workers=2 if "two" in loading else 0, share=share)


def evaluate_all(modes: tuple[str, ...], counts: tuple[int, ...], loadings: tuple[str, ...]) -> dict[tuple, dict]:
    """Evaluate in every way; return what the meters say, for each mode, loading and number of samples."""
    found = {}
    for mode in modes:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))
        several = ShardedProcesses if mode == "fsdp" else SeveralProcesses
        distributed = several.join() if place().size > 1 else Distributed()
        distributed.wrap(network, torch.device("cpu"))
        parts = ({"model": network}, nn.Identity(), torch.device("cpu"), Precision("no", torch.device("cpu")))
        evaluator = EvaluatorNumbered(Namespace(), *parts, distributed)
        for loading in loadings:
            for num_samples in counts:
                results = evaluator.evaluate(loader_of(num_samples, loading, distributed.share))
                seen = evaluator.meters["seen"]
                found[mode, loading, num_samples] = {
                    "indices": torch.cat(seen.indices).tolist(), "values": torch.cat(seen.values),
                    "matrix": evaluator.meters["confusion"].compute().tolist(), "results": results,
                    "num_samples": evaluator.num_samples, "correct": torch.cat(evaluator.meters["accuracy"].correct),
                }  # fmt: skip
    return found


def faults_of(one: dict, several: list[dict], num_samples: int) -> list[str]:
    """Return the differences between an evaluation by several processes and by one."""
    faults = []
    for rank, found in enumerate(several):
        if found["indices"] != list(range(num_samples)):
            faults.append(f"process {rank} counts the samples {found['indices']}")
        if found["num_samples"] != num_samples:
            faults.append(f"process {rank} says that these are {found['num_samples']}")
        for name in ("values", "correct"):
            if not torch.equal(found[name], one[name]):
                faults.append(f"the {name} differ in process {rank}")
        if found["matrix"] != one["matrix"]:
            faults.append(f"the matrix differs in process {rank}")
        if found["results"] != several[0]["results"]:
            faults.append(f"process {rank} has another result than process 0")
    for name, value in one["results"].items():
        # Of batches that are cut elsewhere the mean loss is rounded otherwise, in float32. All else is counted.
        tolerance = 1e-6 if name == "loss" else 0
        if not math.isclose(several[0]["results"][name], value, rel_tol=tolerance, abs_tol=0):
            faults.append(f"{name} is {several[0]['results'][name]}, not {value}")
    return faults


def run(count: int = COUNT, seed: int = 0, sizes: tuple[int, ...] = (1, 2, 3), loadings=LOADINGS) -> Row:
    """Evaluate 1 to `count` samples in all ways; a try is one number of samples with one number of processes."""
    row, counts = Row(note=NOTE), tuple(range(1, count + 1))
    (alone,) = in_processes(1, evaluate_all, ("none",), counts, loadings, timeout=600)
    for size in sizes:
        modes = ("ddp", "fsdp")
        found = in_processes(size, evaluate_all, modes, counts, loadings, timeout=600)
        for number in counts:
            faults = []
            for mode in modes:
                for loading in loadings:
                    of_processes = [of_process[mode, loading, number] for of_process in found]
                    said = faults_of(alone["none", loading, number], of_processes, number)
                    faults += [f"{mode}, {loading}: {fault}" for fault in said]
            row.add(f"{number} samples, {size} processes", faults)
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
