"""Learning rates at the exact updates where they must change."""

import io
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers

from utils.errors import UserError
from utils.scheduler import SCHEDULERS, Plan, build_scheduler, lr_factor, resume_schedule

AWKWARD = [1, 7, 94, 938]  # updates per epoch


def build_optimizer(*rates):
    rates = rates or (0.1,)
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def run(scheduler, num_updates):
    """Return the learning rates of the first group that the updates are made with."""
    rates = []
    for _ in range(num_updates):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def rates_of(name, num_epochs, updates_per_epoch, **options):
    options = {"num_epochs": num_epochs, "updates_per_epoch": updates_per_epoch, **options}
    return run(build_scheduler(build_optimizer(), name, **options), num_epochs * updates_per_epoch)


def test_constant_is_constant():
    assert rates_of("constant", 3, 7) == [0.1] * 21


@pytest.mark.parametrize("updates_per_epoch", AWKWARD)
def test_step_decays_at_exactly_the_given_epochs_the_last_included(updates_per_epoch):
    rates = rates_of("step", 5, updates_per_epoch, lr_decay_epochs=[1, 3, 4], lr_decay_rate=0.5)
    assert rates == [0.1 * 0.5 ** (0, 1, 1, 2, 3)[update // updates_per_epoch] for update in range(len(rates))]


@pytest.mark.parametrize("updates_per_epoch", AWKWARD)
def test_step_decays_after_every_so_many_epochs(updates_per_epoch):
    rates = rates_of("step", 7, updates_per_epoch, lr_decay_every=2)
    assert rates == [0.1 * 0.1 ** (update // updates_per_epoch // 2) for update in range(len(rates))]


def test_step_takes_fractions_of_an_epoch():
    rates = rates_of("step", 2, 10, lr_decay_epochs=[0.3, 1.7], lr_decay_rate=0.5)
    assert rates == [0.1] * 3 + [0.05] * 14 + [0.025] * 3
    assert rates_of("step", 2, 10, lr_decay_every=0.7, lr_decay_rate=0.5) == [0.1] * 7 + [0.05] * 7 + [0.025] * 6


def test_step_counts_epochs_from_the_start_of_the_run():
    plain = rates_of("step", 4, 7, lr_decay_epochs=[2])
    warmed_up = rates_of("step", 4, 7, lr_decay_epochs=[2], warmup_epoch=1)
    assert warmed_up[7:] == plain[7:] and warmed_up[13] == 0.1 and warmed_up[14] == 0.1 * 0.1


@pytest.mark.parametrize("options", [{}, {"lr_decay_epochs": [1], "lr_decay_every": 1}, {"lr_decay_epochs": []}])
def test_step_needs_exactly_one_kind_of_decay(options):
    with pytest.raises(UserError, match="give either"):
        rates_of("step", 2, 3, **options)


@pytest.mark.parametrize("epochs", [[0, 1], [-1], [0.1]])  # a tenth of three updates is none
def test_step_refuses_decays_before_the_start(epochs):
    with pytest.raises(UserError, match="above 0"):
        rates_of("step", 2, 3, lr_decay_epochs=epochs)


def test_step_refuses_more_decays_than_updates():
    with pytest.raises(UserError, match="at least 0"):
        rates_of("step", 2, 3, lr_decay_every=1e-9)


@pytest.mark.parametrize("updates_per_epoch", AWKWARD)
def test_cosine_has_the_shape_of_torch(updates_per_epoch):
    num_updates = 3 * updates_per_epoch
    optimizer = build_optimizer()
    expected = run(torch_schedulers.CosineAnnealingLR(optimizer, T_max=num_updates - 1, eta_min=0.003), num_updates)
    assert rates_of("cosine", 3, updates_per_epoch, lr_min=0.003) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("updates_per_epoch", AWKWARD)
def test_linear_has_the_shape_of_torch(updates_per_epoch):
    num_updates = 3 * updates_per_epoch
    scheduler = torch_schedulers.LinearLR(build_optimizer(), 1.0, end_factor=0.03, total_iters=num_updates - 1)
    expected = run(scheduler, num_updates)
    assert rates_of("linear", 3, updates_per_epoch, lr_min=0.003) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("updates_per_epoch", AWKWARD)
def test_exponential_decays_by_the_rate_in_every_epoch(updates_per_epoch):
    rates = rates_of("exponential", 4, updates_per_epoch, lr_decay_rate=0.3)
    assert rates[::updates_per_epoch] == [0.1 * 0.3**epoch for epoch in range(4)]
    ratios = {round(later / earlier, 9) for earlier, later in pairwise(rates)}
    assert ratios == {round(0.3 ** (1 / updates_per_epoch), 9)}


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("updates_per_epoch", AWKWARD)
@pytest.mark.parametrize("warmup_epoch", [0, 0.5, 1])
def test_cosine_and_linear_end_at_lr_min_in_the_last_update(name, updates_per_epoch, warmup_epoch):
    rates = rates_of(name, 3, updates_per_epoch, warmup_epoch=warmup_epoch, lr_min=0.003)
    assert rates[-1] == pytest.approx(0.003, rel=1e-12)
    assert all(rate > 0.003 * (1 + 1e-9) for rate in rates[round(warmup_epoch * updates_per_epoch) : -1])
    assert rates_of(name, 3, updates_per_epoch, warmup_epoch=warmup_epoch)[-1] == 0.0


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("updates_per_epoch", [7, 94, 938])
def test_warmup_rises_in_a_line_and_reaches_lr_exactly(name, updates_per_epoch):
    options = {"lr_decay_every": 3} if name == "step" else {}
    rates = rates_of(name, 3, updates_per_epoch, warmup_epoch=1.5, warmup_multiplier=50, **options)
    warmup_updates = round(1.5 * updates_per_epoch)
    assert rates[0] == pytest.approx(0.1 / 50, rel=1e-12)
    assert rates[warmup_updates] == 0.1
    line = [0.002 + (0.1 - 0.002) * update / warmup_updates for update in range(warmup_updates)]
    assert rates[:warmup_updates] == pytest.approx(line, rel=1e-12)
    assert max(rates) == 0.1


def test_warmup_may_be_longer_than_the_run():
    rates = rates_of("cosine", 1, 10, warmup_epoch=2)
    assert rates == sorted(rates) and rates[-1] < 0.1 / 2


@pytest.mark.parametrize("name", SCHEDULERS)
def test_run_of_one_update_makes_it_at_the_full_rate(name):
    options = {"lr_decay_every": 1} if name == "step" else {}
    assert rates_of(name, 1, 1, **options) == [0.1]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_rate_after_the_warmup_is_below_lr_min_or_above_lr(name):
    options = {"lr_decay_every": 1} if name == "step" else {}
    scheduler = build_scheduler(build_optimizer(), name, num_epochs=5, updates_per_epoch=9, lr_min=0.02, **options)
    rates = run(scheduler, 45 + 20)  # twenty more than planned
    assert min(rates) >= 0.02 * (1 - 1e-12) and max(rates) == 0.1
    if name != "constant":
        assert rates[44:] == pytest.approx([0.02] * 21, rel=1e-12)


def test_lr_min_is_that_of_the_first_group_and_the_others_keep_their_ratio():
    optimizer = build_optimizer(0.1, 0.5)
    scheduler = build_scheduler(optimizer, "cosine", num_epochs=2, updates_per_epoch=5, lr_min=0.05)
    run(scheduler, 9)
    assert scheduler.get_last_lr() == pytest.approx([0.05, 0.25])


def test_resumed_run_has_the_same_rates_and_its_state_is_plain():
    options = {"num_epochs": 3, "updates_per_epoch": 7, "warmup_epoch": 0.5, "lr_min": 0.001}
    whole = run(build_scheduler(build_optimizer(), "cosine", **options), 21)

    scheduler = build_scheduler(build_optimizer(), "cosine", **options)
    run(scheduler, 10)
    buffer = io.BytesIO()
    torch.save([scheduler.state_dict(), scheduler.optimizer.state_dict()], buffer)
    buffer.seek(0)
    scheduler_state, optimizer_state = torch.load(buffer, weights_only=True)
    resumed = build_scheduler(build_optimizer(), "cosine", **options)
    resumed.optimizer.load_state_dict(optimizer_state)
    resumed.load_state_dict(scheduler_state)
    assert run(resumed, 11) == whole[10:]


def test_state_holds_no_options_so_that_new_ones_are_followed():
    old = build_scheduler(build_optimizer(), "cosine", num_epochs=3, updates_per_epoch=7)
    run(old, 14)
    assert old.state_dict()["lr_lambdas"] == [None]
    longer = build_scheduler(build_optimizer(), "cosine", num_epochs=6, updates_per_epoch=7)
    expected = run(build_scheduler(build_optimizer(), "cosine", num_epochs=6, updates_per_epoch=7), 42)
    resume_schedule(longer, old.state_dict())
    assert run(longer, 28) == expected[14:]


def test_lr_factor_can_be_plotted_from_a_plan_alone():
    plan = Plan("cosine", num_updates=101, warmup_updates=20, warmup_multiplier=10)
    curve = [lr_factor(update, plan) for update in range(101)]
    assert (curve[0], curve[10], curve[20], curve[60]) == pytest.approx((0.1, 0.55, 1.0, 0.5))
    assert curve[100] == 0 and curve[40] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize("lr_min", [-0.1, 0.2])
def test_a_lowest_rate_out_of_range_is_refused(lr_min):
    with pytest.raises(UserError, match=f"lr_min={lr_min:g} is out of range"):
        build_scheduler(build_optimizer(), "exponential", num_epochs=2, updates_per_epoch=3, lr_min=lr_min)


@pytest.mark.parametrize("options", [{"lr_decay_epochs": [1]}, {"lr_decay_every": 2}])
def test_decays_without_the_step_schedule_are_an_error_and_not_ignored(options):
    with pytest.raises(UserError, match="lr_scheduler=step, not to cosine"):
        rates_of("cosine", 2, 5, **options)
