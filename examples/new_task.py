"""A task from nothing, in one file: data, network, loss, metric, evaluator and trainer.

    python -m examples.new_task --n_epoch 5
    python -m examples.new_task evaluate --model_path Results/Waves/TIMESTAMP/wave_net_best_ckpt.pth

A regression: the network predicts the frequency of a noisy wave of 64 values.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from engine.registry import register_data, register_model
from eval import EvaluatorBase
from trainer import TrainerBase
from utils.meter import AvgMeter

LENGTH = 64  # values of a wave


@register_data("waves")
def make_waves(split_seed: int, num_samples: int = 2000) -> dict[str, TensorDataset]:
    """Return three parts: waves (N, 64) with their frequencies (N,), from 1 to 8 periods."""
    generator = torch.Generator().manual_seed(split_seed)
    frequencies = 1 + 7 * torch.rand(num_samples, generator=generator)
    phases = torch.rand(num_samples, 1, generator=generator)
    time = torch.linspace(0, 1, LENGTH)
    waves = torch.sin(2 * torch.pi * (frequencies[:, None] * time + phases))
    waves += 0.1 * torch.randn(num_samples, LENGTH, generator=generator)
    first, second = int(0.7 * num_samples), int(0.85 * num_samples)
    cuts = {"train": slice(first), "val": slice(first, second), "test": slice(second, None)}
    return {part: TensorDataset(waves[cut], frequencies[cut]) for part, cut in cuts.items()}


@register_model("wave_net")
class WaveNet(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(LENGTH, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 1)

    def forward(self, waves: Tensor) -> Tensor:
        return self.head(self.layers(waves)).squeeze(1)  # (N, 64) -> (N,)


class EvaluatorWaves(EvaluatorBase):
    """Evaluate a network that predicts the frequency of a wave."""

    @classmethod
    def build_criterion(cls, opt) -> nn.Module:
        return nn.MSELoss()

    def build_meters(self) -> dict[str, Any]:
        return {"loss": AvgMeter(), "mae": AvgMeter()}

    def eval_step(self, batch: Any) -> None:
        waves, frequencies = batch  # (N, 64), (N,)
        predictions = self.model(waves)  # (N,)
        self.record(predictions, frequencies)  # a row for each sample in predictions.csv
        self.meters["loss"].update(self.criterion(predictions, frequencies), n=len(waves))
        self.meters["mae"].update((predictions - frequencies).abs().mean(), n=len(waves))

    def predict_step(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"values": self.model(inputs)[:, None]}  # (N, 64) -> (N, 1)

    def read_samples(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        for number, line in enumerate(path.read_text().splitlines(), start=1):  # 64 numbers a line
            yield f"line {number}", torch.tensor([float(value) for value in line.split(",")])


class TrainerWaves(TrainerBase):
    """Train a network to predict the frequency of a wave."""

    evaluator_class = EvaluatorWaves
    defaults = {
        "proj_name": "Waves", "output_dir": "./Results/Waves/", "data_type": "waves", "model_type": "wave_net",
        "n_epoch": 20, "batch_size": 50, "lr": 3e-3, "monitor": "mae", "monitor_mode": "min",
    }  # fmt: skip

    def compute_loss(self, batch: Any) -> Tensor:
        waves, frequencies = batch  # (N, 64), (N,)
        return self.criterion(self.model(waves), frequencies)


if __name__ == "__main__":
    if sys.argv[1:2] == ["evaluate"]:
        EvaluatorWaves.main(sys.argv[2:])
    else:
        TrainerWaves.main()
