"""Small tasks for tests of several processes: their networks take a fraction of a second, and have no batch
normalization, which would see the share of a process instead of the whole batch."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from callbacks.callback import Callback
from callbacks.csv_logger import CSVLogger
from engine.checkpoints.state import PlainState
from eval_seg_on_carvana import EvaluatorSeg
from eval_vanilla import EvaluatorVanilla
from tests.small_data import SomeBad
from trainer import TrainerBase
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla

# 145 train, 20 val: nine updates of 16 an epoch, and one of a single sample.
VANILLA = [
    *("--train_val_sample_rate", "165", "--val_split", "20", "--batch_size", "16", "--n_epoch", "5"),
    *("--gpu_devices", "cpu", "--seed", "0", "--patience", "0"),
]
# 16 train, 4 val: three updates of 5 an epoch, and one of a single sample.
SEG = [
    *("--train_val_sample_rate", "1", "--test_sample_rate", "4", "--val_split", "4", "--patch_size", "32"),
    *("--width", "4", "--batch_size", "5", "--n_epoch", "2", "--num_workers", "0", "--gpu_devices", "cpu"),
    *("--seed", "0", "--patience", "0"),
]


class StopAt(Callback):
    """Stops a run after so many updates, between two of them."""

    def __init__(self, num_updates: int):
        self.num_updates = num_updates

    def on_update_end(self, trainer, values) -> None:
        trainer.should_stop = trainer.progress.update == self.num_updates


class EvaluatorSmall(EvaluatorVanilla):
    """With a smaller network, in the precision of the class."""

    dtype = torch.float32

    @classmethod
    def build_networks(cls, opt) -> dict[str, nn.Module]:
        layers = nn.Flatten(), nn.Linear(28 * 28, 24), nn.Tanh(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 10)
        return {"model": nn.Sequential(*layers).to(cls.dtype)}

    def eval_step(self, batch: Any) -> None:
        images, labels = batch
        super().eval_step((images.to(self.dtype), labels))


class TrainerSmall(TrainerVanilla):
    """The vanilla task with a smaller network."""

    evaluator_class = EvaluatorSmall

    def compute_loss(self, batch: Any) -> torch.Tensor:
        images, labels = batch
        return super().compute_loss((images.to(self.evaluator.dtype), labels))


class EvaluatorSmall64(EvaluatorSmall):
    dtype = torch.float64


class TrainerSmall64(TrainerSmall):
    """The same in double precision, where all that differs is a fault."""

    evaluator_class = EvaluatorSmall64


class TrainerDropout(TrainerSmall):
    """The same with dropout: each process draws its own random numbers."""

    def compute_loss(self, batch: Any) -> torch.Tensor:
        images, labels = batch
        return super().compute_loss((F.dropout(images, 0.2), labels))


class EvaluatorUnreached(EvaluatorVanilla):
    @classmethod
    def build_networks(cls, opt) -> dict[str, nn.Module]:
        network = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
        network[1].unused = nn.Linear(2, 2)
        return {"model": network}


class TrainerUnreached(TrainerVanilla):
    """A task with parameters that its loss does not reach."""

    evaluator_class = EvaluatorUnreached


class Experts(nn.Module):
    """A network of which bright images reach one part, and dark ones another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(28 * 28, 8)
        self.bright = nn.Linear(8, 10)
        self.dark = nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.flatten(1)
        features = torch.tanh(self.first(images))
        is_bright = images.mean(dim=1) > 0.3
        logits = features.new_zeros(len(images), 10)
        for part, mask in ((self.bright, is_bright), (self.dark, ~is_bright)):
            if mask.any():
                logits[mask] = part(features[mask])
        return logits


class EvaluatorExperts(EvaluatorSmall64):
    @classmethod
    def build_networks(cls, opt) -> dict[str, nn.Module]:
        return {"model": Experts().double()}


class TrainerExperts(TrainerSmall64):
    """A task whose loss reaches other parameters in each update."""

    evaluator_class = EvaluatorExperts


class Count(PlainState):
    """A part that a task adds to `stateful`: each process has its own."""


class WithBank(nn.Module):
    """A network whose output depends on a mean of its inputs so far, which each process has of its own samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(28 * 28, 10)
        self.register_buffer("bank", torch.zeros(28 * 28))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = images.flatten(1)
        if self.training:
            self.bank = 0.9 * self.bank + 0.1 * images.mean(dim=0)
        return self.layer(images - self.bank)


class EvaluatorBank(EvaluatorVanilla):
    @classmethod
    def build_networks(cls, opt) -> dict[str, nn.Module]:
        return {"model": WithBank()}


class TrainerBank(TrainerVanilla):
    """A task with a state in each process: a buffer of the network, and a part of its own."""

    evaluator_class = EvaluatorBank

    def __init__(self, opt):
        self.count = Count(seen=0.0)
        super().__init__(opt)

    def stateful(self) -> dict[str, Any]:
        return {**super().stateful(), "count": self.count}

    def compute_loss(self, batch: Any) -> torch.Tensor:
        self.count["seen"] += float(batch[0].mean())
        return super().compute_loss(batch) * (1 + self.count["seen"])


def normalize_alone(module: nn.Module) -> nn.Module:
    """Put a normalization of each sample by itself in the place of batch normalization."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        else:
            normalize_alone(child)
    return module


class EvaluatorSegAlone(EvaluatorSeg):
    @classmethod
    def build_networks(cls, opt) -> dict[str, nn.Module]:
        return {name: normalize_alone(network) for name, network in super().build_networks(opt).items()}


class TrainerSegAlone(TrainerSeg):
    """The segmentation with a U-Net that has no batch normalization."""

    evaluator_class = EvaluatorSegAlone


class Loss64(nn.Module):
    """Cross-entropy in the precision of the logits."""

    def forward(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, masks)


class EvaluatorSeg64(EvaluatorSegAlone):
    @classmethod
    def build_networks(cls, opt) -> dict[str, nn.Module]:
        return {name: network.double() for name, network in super().build_networks(opt).items()}

    @classmethod
    def build_criterion(cls, opt) -> nn.Module:
        return Loss64()

    def eval_step(self, batch: Any) -> None:
        images, masks = batch
        super().eval_step((images.double(), masks))


class TrainerSeg64(TrainerSeg):
    """The same in double precision."""

    evaluator_class = EvaluatorSeg64

    def compute_loss(self, batch: Any) -> torch.Tensor:
        images, masks = batch
        return super().compute_loss((images.double(), masks))


# ---- runs ------------------------------------------------------------------------------------------------------------
def build(
    task: type[TrainerBase], flags: Sequence[Any], output_dir: Path, callbacks: Sequence[Callback] = ()
) -> TrainerBase:
    """Return a trainer; what watches it is a CSVLogger, and `callbacks`."""

    def build_callbacks(self) -> list[Callback]:
        return [CSVLogger(self.run_dir.path / "metrics.csv"), *callbacks]

    trainer_class = type(task.__name__, (task,), {"build_callbacks": build_callbacks})
    flags = list(map(str, flags))
    if "--resume" not in flags:
        flags = ["--output_dir", str(output_dir), *(SEG if issubclass(task, TrainerSeg) else VANILLA), *flags]
    return trainer_class(trainer_class.parse_options(flags))


def train(task: type[TrainerBase], flags: Sequence[Any], output_dir: Path, callbacks: Sequence[Callback] = ()) -> Any:
    """Build a trainer, train, and return it."""
    trainer = build(task, flags, output_dir, callbacks)
    trainer.train()
    return trainer


def weights_of(trainer: TrainerBase) -> dict[str, torch.Tensor]:
    """The weights of the only network, whole; to be called by all processes."""
    (network,) = trainer.networks.values()
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        for name, value in network.state_dict().items()
    }


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv; none if no epoch was finished."""
    if not (run_dir / "metrics.csv").exists():
        return []
    with open(run_dir / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


# ---- tasks on data that can go wrong ---------------------------------------------------------------------------------
class EvaluatorNumbered(EvaluatorVanilla):
    """Classifies the samples of tests/small_data.py, which come as dictionaries."""

    @classmethod
    def build_networks(cls, opt) -> dict[str, nn.Module]:
        return {"model": nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 10))}

    def eval_step(self, batch: Any) -> None:
        super().eval_step((batch["values"], batch["label"]))

    def draw(self, batch: Any) -> None:
        return None


class TrainerNumbered(TrainerVanilla):
    """Learns from 23 samples, of which those in `bad` cannot be loaded; the loss of `nan_at` is not a number."""

    evaluator_class = EvaluatorNumbered
    bad: Sequence[int] = ()
    bad_in_val: Sequence[int] = ()
    nan_at: int | None = None  # an index

    def build_loaders(self) -> tuple[Any, Any]:
        self.datasets |= {"train": SomeBad(23, self.bad), "val": SomeBad(7, self.bad_in_val)}
        return super().build_loaders()

    def compute_loss(self, batch: Any) -> torch.Tensor:
        loss = self.criterion(self.model(batch["values"]), batch["label"])
        return loss * float("nan") if self.nan_at in batch["index"].tolist() else loss


def numbered(name: str = "Numbered", **attributes: Any) -> type[TrainerNumbered]:
    return type(name, (TrainerNumbered,), attributes)
