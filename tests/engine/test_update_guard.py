"""An update that is not finite is refused, and what it changed besides weights is undone."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from engine.update_guard import UpdateGuard
from utils.errors import DivergedError, UserError

NAN, INF = float("nan"), float("inf")


def guard(**settings) -> UpdateGuard:
    guard = UpdateGuard([nn.BatchNorm1d(2)], **settings)
    guard.begin_update()
    return guard


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (-INF, 1.0), (1.0, NAN), (1.0, INF), (None, NAN)])
def test_what_is_not_finite_is_refused(loss, norm):
    watch = guard()
    if loss is not None:
        watch.add_loss(torch.tensor(loss))
    with pytest.raises(DivergedError, match="'model' is not finite: its norm is"):
        watch.check("model", torch.tensor(norm))


@pytest.mark.parametrize("loss", [0.0, 1e30, None])
def test_what_is_finite_passes(loss):
    watch = guard()
    if loss is not None:
        watch.add_loss(torch.tensor(loss))
    watch.check("model", torch.tensor(2.0))


def test_a_loss_that_is_no_scalar_is_refused():
    guard = UpdateGuard([nn.Linear(1, 1)])
    guard.begin_update()
    with pytest.raises(UserError, match=r"the shape \(3,\): it must be a scalar"):
        guard.add_loss(torch.ones(3))
    guard.add_loss(torch.ones(1))


def test_any_of_several_losses_counts_and_an_earlier_update_does_not():
    watch = guard()
    watch.add_loss(torch.tensor(NAN))
    watch.add_loss(torch.tensor(1.0))
    with pytest.raises(DivergedError):
        watch.check("model", torch.tensor(1.0))
    watch.begin_update()
    watch.check("model", torch.tensor(1.0))


def test_overflow_of_scaled_gradients_is_left_to_the_scaler_but_the_loss_is_not():
    watch = guard()
    watch.check("model", torch.tensor(INF), may_overflow=True)
    watch.add_loss(torch.tensor(INF))
    with pytest.raises(DivergedError):
        watch.check("model", torch.tensor(INF), may_overflow=True)


def test_undo_restores_buffers_and_every_generator():
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    watch = UpdateGuard([network])
    network(torch.randn(4, 2))
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    watch.begin_update()

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    first = draw()
    network(torch.full((4, 2), NAN))
    assert network[0].running_mean.isnan().all()
    assert watch.undo()
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    assert draw() == first


def test_buffer_that_was_replaced_is_undone_too():
    network = nn.Module()
    network.register_buffer("average", torch.tensor(1.0))
    watch = UpdateGuard([network])
    watch.begin_update()
    network.average = network.average * NAN
    assert watch.undo() and network.average == 1
    network.average = network.average * 2  # a good update
    watch.begin_update()
    network.average = network.average * NAN
    assert watch.undo() and network.average == 2 and dict(network.named_buffers()).keys() == {"average"}


def test_step_that_was_made_cannot_be_undone_or_skipped():
    watch = guard(policy="skip")
    watch.stepped.append("critic")
    assert not watch.undo() and not watch.may_skip()


def test_skips_are_bounded_also_over_a_resume():
    watch = guard(policy="skip", max_skips=3)
    assert watch.may_skip() and watch.may_skip()
    resumed = guard(policy="skip", max_skips=3)
    resumed.load_state_dict(watch.state_dict())
    assert resumed.may_skip() and not resumed.may_skip() and resumed.num_skipped == 3


def test_stop_skips_nothing():
    watch = guard(policy="stop")
    assert not watch.may_skip() and watch.num_skipped == 0
