"""A run that ends before its last epoch, by --max_updates or --stop_below; and a run without validation."""

import os
import signal

import pytest

from callbacks.callback import Callback
from engine.checkpoints.file import load_checkpoint
from extras.gan.trainer_gan import TrainerGAN
from utils.errors import UserError


def rates(trainer) -> list[float]:
    return [float(row["lr"]) for row in rows(trainer)]


def rows(trainer) -> list[dict]:
    return trainer.callbacks.callbacks[0].read()


# ---- --max_updates ---------------------------------------------------------------------------------------------------
def test_a_run_ends_after_so_many_updates_validated_and_saved(train):
    trainer = train("--max_updates", 11, "--n_epoch", 5)  # eight updates an epoch
    assert trainer.progress.state_dict() == {"epoch": 2, "update": 11, "sample": 0, "is_exact": True}
    last = rows(trainer)[-1]
    assert (last["epoch"], last["update"]) == ("2", "11") and float(last["val/accuracy"]) > 0
    assert load_checkpoint(trainer.checkpointer.path("last"))["progress"]["update"] == 11
    assert (trainer.run_dir.path / "finished.json").exists()


@pytest.mark.parametrize("max_updates", [8, 16])
def test_the_end_may_be_that_of_an_epoch(train, max_updates):
    trainer = train("--max_updates", max_updates, "--n_epoch", 5)
    position = {"epoch": max_updates // 8, "update": max_updates, "sample": 0}
    assert trainer.progress.state_dict() == {**position, "is_exact": True}


def test_more_updates_than_there_are_change_nothing(train, weights, differences):
    plain, limited = train(), train("--max_updates", 1000)
    assert differences(weights(plain), weights(limited)) == []
    assert limited.progress.update == 16


@pytest.mark.parametrize(("flags", "last"), [(("--lr_scheduler", "cosine"), 0.0), (("--lr_scheduler", "linear"), 0.0)])
def test_the_schedule_ends_where_the_run_does(train, flags, last):
    trainer = train("--max_updates", 11, "--n_epoch", 5, *flags)
    assert rates(trainer)[-1] == last
    assert rates(train("--n_epoch", 5, "--limit_batches", 3, *flags))[1] > 0  # not so without it


def test_a_resumed_run_ends_at_the_same_update_with_the_same_bits(train, weights, differences):
    flags = ("--max_updates", 11, "--n_epoch", 5, "--save_every_updates", 3, "--keep", 9)
    whole = train(*flags)
    path = whole.run_dir.path / "Vanilla_last-9_ckpt.pth"
    expected = weights(whole)
    resumed = train("--resume", path)
    assert resumed.progress.update == 11
    assert differences(weights(resumed), expected) == []


class Interrupts(Callback):
    """Sends Ctrl-C after an update."""

    def __init__(self, update: int):
        self.update = update

    def on_update_end(self, trainer, values) -> None:
        if trainer.progress.update == self.update:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to oneself")
def test_a_run_that_is_interrupted_at_its_last_update_is_yet_to_be_validated(build, train, weights, differences):
    flags = ("--max_updates", 11, "--n_epoch", 5, "--swa_start", 2)
    whole = train(*flags)
    broken = build(*flags, callbacks=[Interrupts(11)])
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert broken.progress.state_dict()["sample"] == 3 * 64
    resumed = train("--resume", broken.run_dir.path)
    assert resumed.progress.state_dict() == {"epoch": 2, "update": 11, "sample": 0, "is_exact": True}
    assert resumed.score == whole.score and resumed.averaging.num_averaged == 1
    assert differences(weights(resumed), weights(whole)) == []
    assert load_checkpoint(resumed.checkpointer.path("last"))["progress"]["epoch"] == 2


def test_a_lower_limit_than_what_is_done_ends_the_epoch_that_was_begun(train):
    trainer = train("--save_every_updates", 3, "--keep", 9)
    resumed = train("--resume", trainer.run_dir.path / "Vanilla_last-6_ckpt.pth", "--max_updates", 2)
    assert resumed.progress.state_dict() == {"epoch": 1, "update": 6, "sample": 0, "is_exact": True}
    assert rows(resumed)[-1]["val/accuracy"]


def test_a_run_goes_on_with_a_higher_limit_from_the_next_epoch(train):
    trainer = train("--max_updates", 11, "--n_epoch", 5)
    resumed = train("--resume", trainer.run_dir.path, "--max_updates", 14)
    assert resumed.progress.state_dict() == {"epoch": 3, "update": 14, "sample": 0, "is_exact": True}


def test_a_schedule_by_epochs_has_as_many_steps_as_there_are_epochs(train):
    flags = ("--lr_scheduler", "linear", "--scheduler_step", "epoch", "--n_epoch", 9)
    found = rates(train("--max_updates", 20, *flags))  # two epochs, and half of one
    assert found[0] == 1e-3 and found[-1] == pytest.approx(0, abs=1e-9) and len(found) == 3


def test_an_average_that_would_begin_after_the_end_is_refused(build):
    flags = ("--max_updates", 11, "--n_epoch", 5)
    with pytest.raises(UserError, match="--swa_start 3 is after the last epoch: --max_updates 11 ends in epoch 2"):
        build(*flags, "--swa_start", 3)
    build(*flags, "--swa_start", 2)


# ---- --stop_below ----------------------------------------------------------------------------------------------------
def test_a_run_stops_when_its_loss_is_low_and_stays_stopped(train):
    trainer = train("--n_epoch", 6, "--stop_below", 1.9)
    losses = [float(row["train/loss"]) for row in rows(trainer)]
    assert losses[-1] < 1.9 <= min(losses[:-1]) and len(losses) < 6
    resumed = train("--resume", trainer.run_dir.path)
    assert resumed.progress.epoch == len(losses)
    further = train("--resume", trainer.run_dir.path, "--stop_below", 0)
    assert further.progress.epoch == 6


@pytest.mark.extras
def test_a_task_without_that_loss_is_told(train):
    flags = ("--train_val_sample_rate", 60, "--batch_size", 16, "--limit_batches", 1, "--n_epoch", 1)
    with pytest.raises(UserError, match="--stop_below needs train/loss, which this task does not have: there is"):
        train(*flags, "--stop_below", 1, task=TrainerGAN)


# ---- --val_every 0 ---------------------------------------------------------------------------------------------------
def test_nothing_is_validated_on_request(train, weights, differences):
    trainer = train("--val_every", 0)
    assert not any(name.startswith(("val/", "time/val")) for row in rows(trainer) for name in row)
    assert not trainer.checkpointer.path("best").exists() and not trainer.score
    assert differences(weights(trainer), weights(train())) == []


def test_a_sweep_needs_a_validation(command, tmp_path):
    done = command(
        "sweep.py", "trainer_vanilla.py", "--grid", "lr=1e-3,1e-2", "--output_dir", tmp_path, "--", "--val_every", "0"
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--val_every 0" in done.stderr
    assert not list(tmp_path.iterdir())
