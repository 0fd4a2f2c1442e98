"""A non-finite update never reaches the weights, and what it changed besides them is undone, whether its check is read
at once or some updates later. The flag that voids a step is the fused optimizers' own, which CPUs have too."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import trainer as trainer_module
from engine.checkpoints.file import load_checkpoint
from engine.nan_guard import NanGuard, can_be_voided
from engine.progress import Progress
from extras.late_nan_guard import DeferredNanGuard
from trainer import TrainerBase
from trainer_vanilla import TrainerVanilla
from utils.errors import DivergedError, UserError

NAN, INF = float("nan"), float("inf")


def guard(**settings) -> NanGuard:
    guard = NanGuard([nn.BatchNorm1d(2)], Progress(), **settings)
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
    guard = NanGuard([nn.Linear(1, 1)], Progress())
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
    watch = NanGuard([network], Progress())
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
    watch = NanGuard([network], Progress())
    watch.begin_update()
    network.average = network.average * NAN
    assert watch.undo() and network.average == 1
    network.average = network.average * 2  # a good update
    watch.begin_update()
    network.average = network.average * NAN
    assert watch.undo() and network.average == 2 and dict(network.named_buffers()).keys() == {"average"}


@pytest.mark.parametrize(
    ("buffer", "change"),
    [(torch.zeros(2), lambda bank: bank.resize_(3).fill_(1)), (torch.eye(2).to_sparse(), lambda bank: bank.mul_(2)),
     (torch.zeros(2, dtype=torch.int64), lambda bank: bank.add_(1))],
)  # fmt: skip
def test_buffers_of_any_kind_are_put_back(buffer, change):
    network = nn.Module()
    network.register_buffer("bank", buffer.clone())
    watch = NanGuard([network], Progress())
    watch.begin_update()
    change(network.bank)
    watch.undo()
    assert torch.equal(network.bank.to_dense(), buffer.to_dense())


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


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, DivergedError])
def test_failed_step_is_undone_before_a_step_of_the_optimizer_and_only_then(error):
    network = nn.BatchNorm1d(2)
    watch = NanGuard([network], progress := Progress())
    for stepped in ([], ["model"]):

        def step(update, stepped=stepped):
            network(torch.randn(4, 2))
            watch.stepped += stepped
            raise error("broken")

        with pytest.raises(error, match="broken"), progress.transaction():
            watch.attempt(step, "update 1")
        assert network.num_batches_tracked == 0 and progress.is_exact == (not stepped)


def test_step_that_has_written_to_a_weight_is_not_exact_when_it_fails():
    network = nn.Linear(2, 2)
    watch = NanGuard([network], progress := Progress())

    def step(update):
        with torch.no_grad():
            network.weight += 1.0  # as a method does that looks uphill
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError), progress.transaction():
        watch.attempt(step, "update 1")
    assert not progress.is_exact


def test_generators_are_put_back_also_when_they_rested_before():
    watch = NanGuard([nn.Linear(1, 1)], Progress(sample=64), policy="skip")
    for _ in range(3):
        watch.begin_update()
    state = (random.getstate(), np.random.get_state()[1].tolist())
    random.random(), np.random.rand(700)
    watch.undo()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state


# ---- a check that is read later --------------------------------------------------------------------------------------
class Sick(TrainerVanilla):
    """Vanilla with batch normalization and dropout, whose loss is NaN in one update of the run."""

    bad_update = 11
    is_late = True

    def build_networks(self):
        (network,) = super().build_networks().values()
        return {"model": nn.Sequential(network, nn.BatchNorm1d(10), nn.Dropout(0.2))}

    def compute_loss(self, batch):
        loss = super().compute_loss(batch)
        return loss * NAN if self.progress.update + 1 == self.bad_update else loss


def late_guard(kind, trainer, **settings):
    """Return the guard of a GPU, of a class."""
    modules = (*trainer.networks.values(), trainer.criterion)
    counters = (trainer.progress, *trainer.schedulers.values(), trainer.epoch_log)
    return kind(modules, trainer.progress, trainer.optimizer, counters, describe=trainer.describe_failure, **settings)


@pytest.fixture
def late(monkeypatch):
    """Makes every trainer read its checks as late as it may, as if a GPU were slow."""

    monkeypatch.setattr(TrainerBase, "build_guard", lambda trainer: late_guard(DeferredNanGuard, trainer, lag=5))


def stopped(build, *flags, task=Sick):
    """Train until it diverges; return what was said, and the checkpoint that was left."""
    trainer = build(*flags, "--log_every", 1000, task=task)
    with pytest.raises(DivergedError) as caught:
        trainer.train()
    return str(caught.value).splitlines()[0], load_checkpoint(trainer.checkpointer.path("InT")), trainer


def test_the_same_update_is_refused_with_the_same_state(build, differences, request):
    told, at_once, _ = stopped(build)
    request.getfixturevalue("late")
    told_late, later, trainer = stopped(build)
    assert isinstance(trainer.guard, DeferredNanGuard)
    assert told_late == told and "Epoch 2, update 11" in told
    assert later["progress"]["update"] == 10 and later["progress"]["is_exact"]
    assert differences(at_once, later, ignore=("seconds", "options", "callbacks")) == []


def test_a_check_is_read_at_most_so_many_updates_later(build, late):
    seen = []

    class Counting(Sick):
        def train_step(self, update):
            seen.append(self.progress.update + 1)
            return super().train_step(update)

    stopped(build, task=Counting)
    assert seen == [*range(1, 17)]  # update 11 was bad; with five unread, the sixth after it is not begun


def test_it_is_read_before_a_log_a_validation_and_a_checkpoint(build, late):
    for flags in (("--save_every_steps", 3), ("--log_every", 3)):
        trainer = build(*flags, task=Sick)
        with pytest.raises(DivergedError, match="update 11"):
            trainer.train()
        assert trainer.progress.update == 10


def test_a_run_that_is_well_ends_with_the_same_bits(build, train, weights, request):
    class Well(Sick):
        bad_update = 0

    expected = weights(train(task=Well))
    request.getfixturevalue("late")
    trainer = train(task=Well)
    assert isinstance(trainer.guard, DeferredNanGuard)
    assert all(torch.equal(value, expected[name]) for name, value in weights(trainer).items())


def test_without_the_flag_the_weights_would_be_spoilt(build, late, monkeypatch):
    """The fault planted: an optimizer without the flag."""

    class Unflagged(DeferredNanGuard):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            del self.optimizer.found_inf

    monkeypatch.setattr(TrainerBase, "build_guard", lambda trainer: late_guard(Unflagged, trainer))
    _, left, _ = stopped(build)
    assert any(value.isnan().any() for value in left["networks"]["model"].values())


@pytest.mark.parametrize("optim", ["sgd", "nesterov", "adamW"])
def test_a_bad_first_update_leaves_an_optimizer_as_it_began(build, late, optim):
    """A fused step that is void makes states all the same, of whatever was in the memory. SGD begins with zeros."""

    class First(Sick):
        bad_update = 1

    _, left, trainer = stopped(build, "--optim", optim, task=First)
    assert left["progress"]["update"] == 0
    for state in (left["optimizers"]["model"]["state"], trainer.optimizer.state):
        names = {name for entry in state.values() for name in entry}
        assert names == (set() if optim == "adamW" else {"momentum_buffer"})
        assert not any(entry["momentum_buffer"].any() for entry in state.values())


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)])
def test_going_back_restores_all_that_a_schedule_changes(rate):
    network = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=9)
    watch = DeferredNanGuard([network], Progress(), optimizer, [schedule])
    (group,) = optimizer.param_groups
    before = {name: float(group[name]) if name == "lr" else group[name] for name in group if name != "params"}
    for _ in range(4):
        watch.begin_update()
        network(torch.ones(1, 1)).sum().backward()
        watch.check("model", torch.tensor(NAN))
        optimizer.step()
        schedule.step()
    assert group["betas"] != before["betas"]
    with pytest.raises(DivergedError):
        watch.check_earlier(wait=True)
    assert {name: group[name] for name in before} == before


class TwoSteps(Sick):
    """The second step of update 11 is bad."""

    def train_step(self, update):
        values = super().train_step(update)
        (batch,) = update.micro_batches
        loss = TrainerVanilla.compute_loss(self, batch)
        self.optimizer.zero_grad()
        self.backward(loss * NAN if self.progress.update + 1 == 11 else loss)
        self.optimizer_step("model")
        return values

    def compute_loss(self, batch):
        return TrainerVanilla.compute_loss(self, batch)


def test_an_update_of_which_a_step_was_made_is_not_called_exact(build, late):
    trainer = build("--log_every", 1000, task=TwoSteps)
    with pytest.raises(DivergedError, match="cannot be undone"):
        trainer.train()
    assert not trainer.progress.is_exact and not trainer.checkpointer.path("InT").exists()
    assert all(value.isfinite().all() for value in trainer.networks["model"].state_dict().values())


# ---- when it is used -------------------------------------------------------------------------------------------------
class OnGPU(nn.Parameter):
    """A parameter that says of itself that it is on a GPU."""

    is_cuda = True


def on_gpu() -> nn.Module:
    network = nn.Linear(2, 2)
    network.weight, network.bias = OnGPU(network.weight.data), OnGPU(network.bias.data)
    return network


def test_a_step_can_be_voided_if_it_is_fused_and_the_only_one_on_a_gpu():
    fused = torch.optim.AdamW(on_gpu().parameters(), fused=True)
    assert can_be_voided([fused]) and not can_be_voided([fused, fused])
    assert not can_be_voided([torch.optim.AdamW(on_gpu().parameters())])
    assert not can_be_voided([torch.optim.AdamW(nn.Linear(2, 2).parameters(), fused=True)])


@pytest.mark.parametrize(
    ("flags", "waits"),
    [((), False), (("--nan_policy", "skip"), True), (("--ema", 0.9), True), (("--swa_start", 1), False)],
)
def test_the_loop_waits_for_a_gpu_only_if_it_must(build, monkeypatch, flags, waits):
    monkeypatch.setattr(trainer_module, "can_be_voided", lambda optimizers: True)
    assert isinstance(build(*flags).guard, DeferredNanGuard) != waits


def test_buffers_that_grow_or_are_expanded_are_put_back():
    """A memory bank changes its size in each update, and into an expanded buffer nothing can be copied."""
    network = nn.Linear(1, 1)
    network.register_buffer("bank", torch.zeros(0, 2))
    network.register_buffer("mask", torch.zeros(1).expand(3))
    guard = NanGuard([network], Progress())
    for size in (1, 2):
        guard.begin_update()
        network.bank = torch.cat([network.bank, torch.ones(1, 2)])
        assert len(network.bank) == size
    network.mask = torch.ones(3)
    guard.begin_update()
    network.bank = torch.cat([network.bank, torch.ones(1, 2)])
    guard.undo()
    assert network.bank.shape == (2, 2) and network.mask.tolist() == [1, 1, 1]
    network.mask = torch.zeros(1).expand(3)
    guard.begin_update()
    network.mask = torch.ones(3)
    guard.undo()
    assert network.mask.tolist() == [0, 0, 0]
