"""What an optimizer or a schedule does wrong in its first steps is known before a run begins."""

import pytest
import torch
from torch import optim
from torch.optim import lr_scheduler

from engine.trial_steps import fault_of_optimizer, fault_of_schedule
from utils.errors import UserError
from utils.optimizer import build_optimizer
from utils.scheduler import build_scheduler

CPU = torch.device("cpu")


class Refuses(optim.SGD):
    def step(self, closure=None):
        raise UserError("no step today")


class Odd(optim.SGD):
    """Works on weights of its own kind only."""

    def __init__(self, params, lr, power: int = 1):
        super().__init__(params, lr)
        self.power = power

    def step(self, closure=None):
        if self.param_groups[0]["params"][0].shape == (3, 2):
            raise RuntimeError("not such weights")


class Picky(optim.SGD):
    def __init__(self, params, lr, power: int = 1):
        super().__init__(params, lr)
        self.power = power

    def step(self, closure=None):
        if self.power > 1:
            raise ValueError("too strong")


def weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(4, 4))]


def test_faults_of_optimizers_are_told():
    assert fault_of_optimizer(optim.AdamW, CPU) == "" == fault_of_optimizer(optim.SparseAdam, CPU, is_sparse=True)
    assert "dense gradients" in fault_of_optimizer(optim.SparseAdam, CPU)
    assert fault_of_optimizer(Refuses, CPU) == "no step today"


@pytest.mark.parametrize(
    ("optim", "arguments", "words"),
    [
        ("SparseAdam", {}, "optim=SparseAdam cannot make a step"),
        ("ASGD", {"t0": "x"}, "x"), ("sgd", {"dampening": "x"}, "dampening"), ("adamW", {"amsgrad": "no"}, "amsgrad"),
        (f"{__name__}:Picky", {"power": 2}, "too strong"),
    ],
)  # fmt: skip
def test_an_optimizer_that_could_not_make_a_step_is_refused(optim, arguments, words):
    with pytest.raises(UserError, match=words) as error:
        build_optimizer(weights(), optim, optim_args=arguments)
    assert "\n" not in str(error.value)


def test_an_optimizer_of_ones_own_is_refused_for_its_arguments_only():
    assert build_optimizer(weights(), f"{__name__}:Odd", optim_args={"power": 2}).power == 2
    assert build_optimizer(weights(), f"{__name__}:Picky").power == 1


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("StepLR", {"step_size": 0}, "ZeroDivisionError"), ("StepLR", {"step_size": 1.5}, "a whole number"),
        ("StepLR", {"step_size": 3, "gamma": -1}, "a learning rate of -0.1"),
        ("OneCycleLR", {"max_lr": 1.0, "total_steps": 2}, "2"), ("CosineAnnealingLR", {"T_max": 0}, "ZeroDivision"),
        ("CosineAnnealingLR", {"eta_min": "x"}, "eta_min"), ("MultiStepLR", {"milestones": "x"}, "milestones"),
    ],
)  # fmt: skip
def test_a_schedule_that_could_not_be_stepped_is_refused(name, arguments, words):
    optimizer = optim.SGD(weights(), lr=0.1)
    with pytest.raises(UserError, match=words) as error:
        build_scheduler(optimizer, name, num_epochs=2, updates_per_epoch=6, scheduler_args=arguments)
    assert "\n" not in str(error.value)


def test_a_schedule_that_is_too_short_for_a_long_run_is_refused():
    make = lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=5000)  # noqa: E731
    assert fault_of_schedule(make, [{"lr": 0.1, "momentum": 0.9}], 5000) == ""
    assert "ends after 5000 steps, and the run makes 6000" in fault_of_schedule(
        make, [{"lr": 0.1, "momentum": 0.9}], 6000
    )


def test_the_trial_of_a_schedule_leaves_the_optimizer_alone():
    optimizer = optim.SGD(weights(), lr=0.1)
    scheduler = build_scheduler(
        optimizer, "StepLR", num_epochs=2, updates_per_epoch=6, scheduler_args={"step_size": 1, "gamma": 0.5}
    )
    assert optimizer.param_groups[0]["lr"] == 0.1 and scheduler.last_epoch == 0
    assert not optimizer.state and optimizer.param_groups[0]["params"][0].grad is None
