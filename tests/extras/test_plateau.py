"""ReduceLROnPlateau follows --monitor, as in plain torch, and goes on exactly after a resume."""

import csv

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import TensorDataset

from engine.checkpoints.file import load_checkpoint
from extras.functional import fit
from tests.extras.test_unfreeze import Stop
from tests.small_tasks import VANILLA, TrainerSmall
from utils.errors import UserError

ARGUMENTS = '{"factor": 0.5, "patience": 0, "threshold": 0.05}'
FLAGS = ["--data_type", "FashionMNISTSample", *VANILLA, "--n_epoch", 6, "--lr", 0.02, "--optim", "sgd",
         "--lr_scheduler", "ReduceLROnPlateau", "--scheduler_args", ARGUMENTS, "--monitor", "accuracy"]  # fmt: skip


def rows_of(trainer) -> list[dict[str, str]]:
    with open(trainer.run_dir.path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_rates_are_those_of_plain_torch_and_a_resume_goes_on_with_them(build, train, differences):
    whole = train(*FLAGS)
    rows = rows_of(whole)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
    scheduler = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0, threshold=0.05)
    for row in rows:
        assert float(row["lr"]) == pytest.approx(optimizer.param_groups[0]["lr"])
        scheduler.step(float(row["val/accuracy"]))
    rate = optimizer.param_groups[0]["lr"]
    assert whole.optimizer.param_groups[0]["lr"] == rate < 0.02

    for update in (20, 35):  # at the end of an epoch, and inside of one; ten updates in each
        broken = build(*FLAGS, callbacks=[Stop(update)])
        with pytest.raises(KeyboardInterrupt):
            broken.train()
        resumed = train("--resume", broken.run_dir.path)
        states = [load_checkpoint(trainer.checkpointer.path("last")) for trainer in (whole, resumed)]
        assert differences(*states, ("options", "callbacks", "seconds")) == []
        assert [row["lr"] for row in rows_of(resumed)] == [row["lr"] for row in rows]


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--val_every", 0], "--val_every is 0"), (["--scheduler_step", "epoch"], "no --scheduler_step epoch"),
     (["--warmup_epoch", 1], "--warmup_epoch is for"), (["--scheduler_args", '{"mode": "min"}'], "best is the max"),
     (["--scheduler_args", '{"patence": 3}'], "takes no argument 'patence' .did you mean 'patience'")],
)  # fmt: skip
def test_what_contradicts_it_is_one_line(build, flags, message):
    with pytest.raises(UserError, match=message):
        build(*FLAGS, *flags, task=TrainerSmall)


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)

    def forward(self, inputs, targets):
        return (self.layer(inputs) - targets).square().mean()


def test_fit_steps_one_by_the_loss_of_its_val_dataset(tmp_path):
    data = TensorDataset(torch.ones(8, 2), torch.ones(8, 1))
    model = Loss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)  # nothing gets better by more than the threshold
    scheduler = ReduceLROnPlateau(optimizer, patience=0)
    settings = {"num_epochs": 3, "output_dir": tmp_path, "gpu_devices": "cpu"}
    fit(model, optimizer, scheduler, data, 4, val_dataset=data, **settings)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-8)
    with pytest.raises(UserError, match="follows the loss on a val_dataset"):
        fit(model, optimizer, scheduler, data, 4, **settings)
