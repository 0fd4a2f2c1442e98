"""A task derived from another one, with a metric, a loss, an option and a callback of its own.

    python -m examples.own_task --gamma 2 --n_epoch 2
    python -m examples.own_task evaluate --model_path Results/Own/TIMESTAMP/Vanilla_best_ckpt.pth
"""

import sys
from argparse import Namespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from callbacks.callback import Callback
from engine.options.parser import OptionParser, number
from eval_vanilla import EvaluatorVanilla
from extras.precision_recall import PrecisionRecallF1
from trainer_vanilla import TrainerVanilla


class FocalLoss(nn.Module):
    """Cross-entropy that weighs a sample less if the network is confident in its class (Lin et al. 2017)."""

    def __init__(self, gamma: float):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")  # (N, C), (N,) -> (N,)
        return ((1 - torch.exp(-cross_entropy)) ** self.gamma * cross_entropy).mean()


class EvaluatorOwn(EvaluatorVanilla):
    """Evaluate a FashionMNIST classifier, with its F1 score."""

    @classmethod
    def add_options(cls, parser: OptionParser) -> None:
        super().add_options(parser)
        parser.add_argument_group("own").add_argument(
            "--gamma",
            type=number(float, low=0),
            default=2.0,
            metavar="X",
            help="0 weighs all samples alike; larger values weigh easy ones less",
        )

    @classmethod
    def build_criterion(cls, opt: Namespace) -> nn.Module:
        return FocalLoss(opt.gamma)

    def build_meters(self) -> dict[str, Any]:
        return {**super().build_meters(), "macro": PrecisionRecallF1(self.opt.n_classes)}

    def eval_step(self, batch: Any) -> None:
        super().eval_step(batch)
        images, labels = batch  # (N, 1, 28, 28), (N,)
        self.meters["macro"].update(self.model(images), labels)


class WorstEpoch(Callback):
    """Remembers the epoch with the highest training loss. Its state is part of the checkpoints."""

    def __init__(self):
        self.worst = (0, float("-inf"))

    def on_epoch_end(self, trainer, row) -> None:
        if row["train/loss"] > self.worst[1]:
            self.worst = (row["epoch"], row["train/loss"])

    def on_train_end(self, trainer) -> None:
        trainer.logger.info(f"The worst epoch was {self.worst[0]}.")

    def state_dict(self) -> dict[str, Any]:
        return {"worst": list(self.worst)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.worst = tuple(state["worst"])


class TrainerOwn(TrainerVanilla):
    """Train a FashionMNIST classifier with the focal loss (Lin et al. 2017)."""

    evaluator_class = EvaluatorOwn
    defaults = {**TrainerVanilla.defaults, "proj_name": "Own", "output_dir": "./Results/Own/", "monitor": "macro/f1"}

    def build_callbacks(self) -> list[Callback]:
        return [*super().build_callbacks(), WorstEpoch()]


if __name__ == "__main__":
    if sys.argv[1:2] == ["evaluate"]:
        EvaluatorOwn.main(sys.argv[2:])
    else:
        TrainerOwn.main()
