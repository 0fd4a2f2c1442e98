"""The trainer as a function, without a task or a command line: python -m examples.library

A module that returns its own loss is trained, stopped by a crash, and resumed.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from data.FashionMNIST import build_fashion_mnist_sample
from extras.functional import find_lr, fit, param_groups

OUTPUT_DIR = "Results/library"


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.body(images))  # (N, 1, 28, 28) -> (N, 10)
        return cross_entropy(logits, labels)


def make_parts(lr: float = 1e-3):
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.AdamW(param_groups(model, {"head.*": "0.5x"}, lr=lr, no_decay=["bias"]), lr=lr)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)


def crash(trainer, values) -> None:
    if trainer.progress.update == 200:
        raise RuntimeError("a simulated power cut")


def main() -> None:
    data = build_fashion_mnist_sample(train_val_sample_rate=0.5)
    model, optimizer, _ = make_parts()
    curve = find_lr(model, optimizer, data["train"], batch_size=32, num_runs=2, seed=0, output_dir=OUTPUT_DIR)

    training = {"batch_size": 16, "accumulate": 2, "num_epochs": 4, "schedule_per_update": False, "snapshot_every": 0.5}
    training |= {"val_dataset": data["val"], "clip": 1.0, "seed": 0, "output_dir": OUTPUT_DIR}
    try:
        fit(*make_parts(curve.suggestion), data["train"], on_update_end=crash, **training)
    except RuntimeError as error:
        print(f"Stopped by {error}.")
    run = fit(*make_parts(curve.suggestion), data["train"], resume="auto", **training)
    print(f"{run.progress.update} updates, val/loss {run.score['results']['loss']:.4f}, in {run.run_dir.path}")


if __name__ == "__main__":
    main()
