"""Tasks in which a fault is planted that makes a resume differ, such as tests.planted_faults:GlobalDraw.

Each is the vanilla task with one thing that a user may do without a thought. `innocent` has no fault, although it draws
random numbers wherever that is allowed.
"""

import os
import random
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from callbacks.callback import Callback
from callbacks.csv_logger import CSVLogger
from eval_vanilla import EvaluatorVanilla
from trainer_vanilla import TrainerVanilla


class Task(TrainerVanilla):
    """The vanilla task without the callbacks that take long to import."""

    def build_callbacks(self) -> list[Callback]:
        return [CSVLogger(self.run_dir.path / "metrics.csv")]


# ---- data sets -------------------------------------------------------------------------------------------------------
class Wrapped(Dataset):
    """A data set that changes the pictures of another."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        image, label = self.dataset[index]
        return self.change(image), label

    def change(self, image: torch.Tensor) -> torch.Tensor:
        return image


class WithWrapped(Task):
    """Trains on such a data set."""

    wrapped_by = Wrapped

    def build_loaders(self) -> tuple[Any, Any]:
        self.datasets["train"] = self.wrapped_by(self.datasets["train"])
        return super().build_loaders()


class DrawsUnseeded(Wrapped):
    is_random = False  # which is not so

    def change(self, image: torch.Tensor) -> torch.Tensor:
        return image * random.random()


class DrawsSeeded(Wrapped):
    def change(self, image: torch.Tensor) -> torch.Tensor:
        return image * random.random()


class Counts(Wrapped):
    def __init__(self, dataset: Dataset):
        super().__init__(dataset)
        self.num_calls = 0

    def change(self, image: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        return image / self.num_calls


class GlobalDraw(WithWrapped):
    wrapped_by = DrawsUnseeded


class CountedCalls(WithWrapped):
    wrapped_by = Counts


# ---- state that is not in state_dict ---------------------------------------------------------------------------------
class TrainerAttribute(Task):
    num_losses = 0

    def compute_loss(self, batch: Any) -> torch.Tensor:
        self.num_losses += 1
        return super().compute_loss(batch) / self.num_losses


class Cooling(nn.Module):
    """A network whose temperature falls at every training step."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.temperature = 2.0  # no buffer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.temperature *= 0.9
        return self.network(images) / self.temperature


class ModuleAttribute(Task):
    def build_networks(self) -> dict[str, nn.Module]:
        return {name: Cooling(network) for name, network in super().build_networks().items()}


class StopsAfterTwoEpochs(Callback):
    num_epochs = 0

    def on_epoch_end(self, trainer, row) -> None:
        self.num_epochs += 1
        trainer.should_stop = self.num_epochs == 2


class CallbackAttribute(Task):
    def build_callbacks(self) -> list[Callback]:
        return [*super().build_callbacks(), StopsAfterTwoEpochs()]


class CountingEvaluator(EvaluatorVanilla):
    num_evaluations = 0

    def results(self) -> dict[str, float]:
        self.num_evaluations += 1
        return {name: value + self.num_evaluations for name, value in super().results().items()}


class EvaluatorAttribute(Task):
    evaluator_class = CountingEvaluator


# ---- random numbers --------------------------------------------------------------------------------------------------
class LazyDraw(Task):
    """Draws its mask at the first use, which is once more after a resume."""

    mask = None

    def compute_loss(self, batch: Any) -> torch.Tensor:
        if self.mask is None:
            self.mask = torch.rand(28, 28)  # of no consequence
        return super().compute_loss(batch)


class SystemRandomness(Task):
    def compute_loss(self, batch: Any) -> torch.Tensor:
        return super().compute_loss(batch) * (1 + os.urandom(1)[0])


class Draws(Callback):
    """Draws as often as it likes, which is another number in every process."""

    def on_update_end(self, trainer, values) -> None:
        for _ in range(1 + os.urandom(1)[0]):
            random.random(), torch.rand(1)


class Innocent(WithWrapped):
    wrapped_by = DrawsSeeded

    def build_callbacks(self) -> list[Callback]:
        return [*super().build_callbacks(), Draws()]

    def compute_loss(self, batch: Any) -> torch.Tensor:
        images, labels = batch  # (N, 1, 28, 28), (N,)
        return self.criterion(self.model(F.dropout(images, 0.2)), labels)
