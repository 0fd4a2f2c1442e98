"""A check that is read some updates later refuses the same update, and leaves the same state, as one that is read at
once. The flag that voids a step is the fused optimizers' own, which CPUs have too."""

import pytest
import torch
from torch import nn

import engine.late_guard
from engine.checkpoints.file import load_checkpoint
from engine.late_guard import LateGuard, build_guard
from engine.update_guard import UpdateGuard
from trainer_vanilla import TrainerVanilla
from utils.errors import DivergedError
from utils.optimizer import build_optimizer

NAN = float("nan")


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


@pytest.fixture
def late(monkeypatch):
    """Makes every trainer read its checks as late as it may, as if a GPU were slow."""

    def build(modules, optimizers, counters, policy, max_skips, uses_scaler, sum_losses):
        (optimizer,) = optimizers.values()
        return LateGuard(modules, optimizer, counters, lag=5)

    import parts

    monkeypatch.setattr(parts, "build_guard", build)


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
    assert isinstance(trainer.guard, LateGuard)
    assert told_late == told and "Epoch 2, update 11" in told
    assert later["progress"]["update"] == 10 and later["exact"]
    assert differences(at_once, later, ignore=("seconds", "options", "callbacks")) == []


def test_a_check_is_read_at_most_so_many_updates_later(build, late):
    seen = []

    class Counting(Sick):
        def train_step(self, micro_batches):
            seen.append(self.progress.update + 1)
            return super().train_step(micro_batches)

    stopped(build, task=Counting)
    assert seen == [*range(1, 17)]  # update 11 was bad; with five unread, the sixth after it is not begun


def test_it_is_read_before_a_log_a_validation_and_a_checkpoint(build, late):
    for flags in (("--save_every_updates", 3), ("--log_every", 3)):
        trainer = build(*flags, task=Sick)
        with pytest.raises(DivergedError, match="update 11"):
            trainer.train()
        assert trainer.progress.update == 10


def test_the_replay_file_repeats_the_update(build, late):
    _, _, trainer = stopped(build)
    (path,) = trainer.run_dir.path.glob("*_replay.pth")
    from engine.command import run

    with pytest.raises(DivergedError, match="went wrong again"):
        run(Sick, ["--replay", str(path)])


def test_a_run_that_is_well_ends_with_the_same_bits(build, train, weights, request):
    class Well(Sick):
        bad_update = 0

    expected = weights(train(task=Well))
    request.getfixturevalue("late")
    trainer = train(task=Well)
    assert isinstance(trainer.guard, LateGuard)
    assert all(torch.equal(value, expected[name]) for name, value in weights(trainer).items())


def test_without_the_flag_the_weights_would_be_spoilt(build, late, monkeypatch):
    """The fault planted: an optimizer that is not told."""

    class Untold(LateGuard):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            del self.optimizer.found_inf

    monkeypatch.setattr(engine.late_guard, "LateGuard", Untold)
    import parts

    monkeypatch.setattr(
        parts,
        "build_guard",
        lambda modules, optimizers, counters, *_, **__: Untold(modules, *optimizers.values(), counters),
    )
    _, left, _ = stopped(build)
    assert any(value.isnan().any() for value in left["networks"]["model"].values())


@pytest.mark.parametrize("optim", ["sgd", "nesterov", "adamW"])
def test_a_bad_first_update_leaves_an_optimizer_without_state(build, late, optim):
    """A fused step that is void makes momentum buffers all the same, of whatever was in the memory."""

    class First(Sick):
        bad_update = 1

    _, left, trainer = stopped(build, "--optim", optim, task=First)
    assert left["progress"]["update"] == 0 and left["optimizers"]["model"]["state"] == {}
    assert not trainer.optimizer.state


class TwoSteps(Sick):
    """The second step of update 11 is bad."""

    def train_step(self, micro_batches):
        values = super().train_step(micro_batches)
        (batch,) = micro_batches
        loss = TrainerVanilla.compute_loss(self, batch)
        self.optimizer.zero_grad()
        self.backward(loss * NAN if self.progress.update + 1 == 11 else loss)
        self.optimizer_step("model")
        return values

    def compute_loss(self, batch):
        return TrainerVanilla.compute_loss(self, batch)


def test_an_update_of_which_a_step_was_made_is_not_called_exact(build, late):
    trainer = build("--log_every", 1000, task=TwoSteps)
    with pytest.raises(DivergedError, match="neither skipped nor replayed"):
        trainer.train()
    assert not trainer.exact and not trainer.checkpointer.path("InT").exists()
    assert all(value.isfinite().all() for value in trainer.networks["model"].state_dict().values())


@pytest.mark.parametrize("value", [float("inf"), NAN])
def test_a_replay_reads_the_check(build, late, value):
    class Infinite(Sick):
        def compute_loss(self, batch):
            loss = TrainerVanilla.compute_loss(self, batch)
            return loss + value if self.progress.update + 1 == self.bad_update else loss  # its gradient is finite

    _, _, trainer = stopped(build, task=Infinite)
    (path,) = trainer.run_dir.path.glob("*_replay.pth")
    from engine.command import run

    with pytest.raises(DivergedError, match="went wrong again"):
        run(Infinite, ["--replay", str(path)])


# ---- when it is used -------------------------------------------------------------------------------------------------
class OnGPU(nn.Parameter):
    """A parameter that says of itself that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(
    ("policy", "uses_scaler", "optim", "kind"),
    [("stop", False, "adamW", LateGuard), ("skip", False, "adamW", UpdateGuard), ("stop", True, "adamW", UpdateGuard),
     ("stop", False, "radam", UpdateGuard)],
)  # fmt: skip
def test_which_guard(policy, uses_scaler, optim, kind):
    network = nn.Linear(2, 2)
    network.weight, network.bias = OnGPU(network.weight.data), OnGPU(network.bias.data)
    optimizer = build_optimizer(network.parameters(), optim)
    guard = build_guard([network], {"model": optimizer}, [], policy, 3, uses_scaler)
    assert type(guard) is kind
    assert type(build_guard([network], {"a": optimizer, "b": optimizer}, [], policy, 3, uses_scaler)) is UpdateGuard


def test_on_a_cpu_it_is_looked_at_at_once():
    network = nn.Linear(2, 2)
    optimizer = build_optimizer(network.parameters(), "adamW")
    assert type(build_guard([network], {"model": optimizer}, [], "stop", 3, False)) is UpdateGuard
