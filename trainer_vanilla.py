"""Train a FashionMNIST classifier: python trainer_vanilla.py"""

from options import answer_early

if __name__ == "__main__":
    answer_early(__file__)  # --help and a wrong option, before torch is imported

from typing import Any

import torch

from eval_vanilla import EvaluatorVanilla
from trainer import TrainerBase


class TrainerVanilla(TrainerBase):
    """Train a multilayer perceptron on FashionMNIST."""

    evaluator_class = EvaluatorVanilla
    defaults = {
        "proj_name": "Vanilla",
        "output_dir": "./Results/Vanilla/",
        "model_type": "Vanilla",
        "data_type": "FashionMNISTSample",
        "n_epoch": 12,
        "batch_size": 32,
        "lr": 1e-3,
        "monitor": "accuracy",
    }

    def compute_loss(self, batch: Any) -> torch.Tensor:
        images, labels = batch  # (N, 1, 28, 28), (N,)
        return self.criterion(self.model(images), labels)


if __name__ == "__main__":
    TrainerVanilla.main()
