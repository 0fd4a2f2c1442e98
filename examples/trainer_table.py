"""Train on a table: python -m examples.trainer_table --data_dir patients.csv --target risk --group patient"""

from typing import Any

from torch import Tensor

from examples.eval_table import EvaluatorTable
from trainer import TrainerBase


class TrainerTable(TrainerBase):
    """Train a network to predict a column of a table: a class or a number."""

    evaluator_class = EvaluatorTable
    defaults = {
        "proj_name": "Table",
        "output_dir": "./Results/Table/",
        "n_epoch": 50,
        "batch_size": 32,
        "eval_batch_size": 1000,
        "lr": 3e-3,
        "monitor": "loss",
    }

    def compute_loss(self, batch: Any) -> Tensor:
        inputs, targets = batch  # (N, F); (N,) classes, or (N, 1) numbers
        return self.criterion(self.model(inputs), targets)


if __name__ == "__main__":
    TrainerTable.main()
