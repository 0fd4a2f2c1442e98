"""The first batch is the trial of the task's own code, data and options: one line, the traceback in the log."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from callbacks.callback import Callback
from engine.session import Session, build_trainer
from eval_vanilla import EvaluatorVanilla
from extras import failures
from tests.small_tasks import rows_of
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError


class WrongShape(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 10)

    def forward(self, images):
        return self.layer(images.flatten(1))


class WithWrongNetwork(TrainerVanilla):
    def build_networks(self):
        return {"model": WrongShape()}


class WithWrongLoss(TrainerVanilla):
    def compute_loss(self, batch):
        images, labels = batch
        return self.criterion(self.model(images), labels.float().unsqueeze(1))


class WithoutLoss(TrainerVanilla):
    def compute_loss(self, batch):
        return {"cross_entropy": super().compute_loss(batch)}


class WithLossCutOff(TrainerVanilla):
    def compute_loss(self, batch):
        return super().compute_loss(batch).detach()


class WithNumberFromStep(TrainerVanilla):
    def train_step(self, update):
        return float(super().train_step(update)["loss"])


class WithAssertion(TrainerVanilla):
    def compute_loss(self, batch):
        assert len(batch) == 3


class WithMissingFile(TrainerVanilla):
    def compute_loss(self, batch):
        Path("/no/such/file").read_text()


class Ragged(TensorDataset):
    def __getitem__(self, index):
        return torch.zeros(index + 1), 0


class WithRaggedSamples(TrainerVanilla):
    def build_datasets(self):
        return dict.fromkeys(("train", "val", "test"), Ragged(torch.zeros(64)))


class WithWrongCode(TrainerVanilla):
    def compute_loss(self, batch):
        return {"lss": super().compute_loss(batch)}["loss"]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (WithWrongNetwork, ["RuntimeError", "--model_type", "test_session.py:"]),
        (WithWrongLoss, ["--loss_type", "test_session.py:"]),
        (WithWrongCode, ["KeyError: 'loss'", "test_session.py:"]),
        (WithoutLoss, ["keys cross_entropy", "(compute_loss, ", "test_session.py:"]),
        (WithLossCutOff, ["does not require grad", "(compute_loss, ", "test_session.py:"]),
        (WithNumberFromStep, ["'float' object", "(train_step, ", "test_session.py:"]),
        (WithAssertion, ["AssertionError", "test_session.py:"]),
        (WithMissingFile, ["FileNotFoundError", "'/no/such/file'", "test_session.py:"]),
        (WithRaggedSamples, ["A sample is unlike the others", "of the train part"]),
    ],
)
def test_first_update_that_fails_ends_in_one_line_and_leaves_its_log_alone(build, task, words):
    trainer = build(task=task)
    with pytest.raises(UserError) as caught:
        trainer.train()
    line, hint = str(caught.value).splitlines()
    assert caught.value.status == 2 and all(word in line for word in words), line
    assert not trainer.run_dir.path.exists()
    (log,) = trainer.run_dir.path.parent.glob("*_failed_log.txt")
    assert str(log) in hint and "Traceback (most recent call last)" in log.read_text()


def test_first_validation_that_fails_is_explained_too_and_its_run_stays(build):
    class WrongEvaluator(EvaluatorVanilla):
        def eval_step(self, batch):
            raise ValueError("no such metric")

    class Trainer(TrainerVanilla):
        evaluator_class = WrongEvaluator

    trainer = build(task=Trainer)
    with pytest.raises(UserError, match=r"ValueError: no such metric \(.*test_session.py:"):
        trainer.train()
    assert "Traceback" in trainer.run_dir.log_path.read_text()
    assert trainer.checkpointer.path("InT").exists()  # the epoch is not lost


class Fails(Callback):
    def on_epoch_end(self, trainer, row):
        if trainer.progress.epoch == 1:
            raise KeyError("mine")


class Counts(Callback):
    count = 0

    def on_epoch_end(self, trainer, row):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_callback_that_fails_is_named_and_the_epoch_before_it_is_not_lost(build, train, weights):
    trainer = build(callbacks=[Counts(), Fails()])
    with pytest.raises(UserError, match=r"Failed in Fails.on_epoch_end: KeyError: 'mine' \(.*test_session.py:"):
        trainer.train()
    counts = Counts()
    resumed = train("--resume", trainer.run_dir.path, callbacks=[counts])
    whole = train(callbacks=[Counts()])
    rows, expected = rows_of(resumed.run_dir.path), rows_of(whole.run_dir.path)
    for row in (*rows, *expected):
        for name in [name for name in row if name.startswith(("time/", "samples_per_second"))]:
            del row[name]
    assert counts.count == 2 and rows == expected
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())


@pytest.mark.parametrize(
    ("hook", "returned", "words"),
    [
        ("build_networks", None, ["AttributeError", "(build_networks, ", "test_session.py:"]),
        ("build_optimizers", KeyError("mine"), ["KeyError: 'mine'", "test_session.py:"]),
        ("build_callbacks", None, ["(build_callbacks, ", "test_session.py:"]),
        ("build_callbacks", KeyboardInterrupt(), None),
    ],
)
def test_error_before_the_first_update_leaves_no_run_directory(tmp_path, hook, returned, words):
    def build(self):
        if isinstance(returned, BaseException):
            raise returned
        return returned

    build.__code__ = build.__code__.replace(co_name=hook)
    task = type("Own", (TrainerVanilla,), {hook: build})
    opt = task.parse_options(["--output_dir", str(tmp_path), "--train_val_sample_rate", "600", "--gpu_devices", "cpu"])
    with pytest.raises(UserError if words else KeyboardInterrupt) as caught:
        build_trainer(task, opt)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    if words:
        line, hint = str(caught.value).splitlines()
        log = tmp_path / "Vanilla_failed_log.txt"
        assert all(word in line for word in words), line
        assert str(log) in hint and "Traceback" in log.read_text()


def test_step_that_returns_nothing_is_made_all_the_same(train, weights):
    class Silent(TrainerVanilla):
        def train_step(self, update):
            super().train_step(update)

    silent, plain = train("--n_epoch", 1, task=Silent), train("--n_epoch", 1)
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(silent).items())
    assert silent.guard.num_skipped == 0


def test_error_of_a_later_update_is_raised_as_it_is_and_leaves_a_checkpoint_before_it(build, train, weights):
    class Fails(TrainerVanilla):
        def compute_loss(self, batch):
            if self.progress.update == 4:
                raise ValueError("later")
            return super().compute_loss(batch)

    trainer = build(task=Fails)
    with pytest.raises(ValueError, match="later"):
        trainer.train()
    resumed = weights(train("--resume", trainer.run_dir.path))
    whole = weights(train())
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


class WithNorm(TrainerVanilla):
    def build_networks(self):
        (network,) = super().build_networks().values()
        return {"model": nn.Sequential(network, nn.BatchNorm1d(10))}


def test_sample_that_is_left_over_alone_cannot_be_normalized_and_that_is_said_in_one_line(build, train):
    trainer = build("--train_val_sample_rate", 100, "--batch_size", 28, task=WithNorm)  # 85 samples: 3 * 28 + 1
    with pytest.raises(UserError, match="a batch of one sample, which cannot be normalized: give another --batch_size"):
        trainer.train()
    assert trainer.progress.update == 3 and trainer.checkpointer.path("InT").exists()
    micro = ("--micro_batch_size", 27)  # pieces of 27 and 1 are made 26 and 2
    assert train("--train_val_sample_rate", 66, "--batch_size", 28, *micro, task=WithNorm).progress.update == 4


def test_memory_that_runs_out_ends_with_the_command_that_goes_on(build):
    class Large(TrainerVanilla):
        def compute_loss(self, batch):
            if self.progress.update == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return super().compute_loss(batch)

    trainer = build("--micro_batch_size", 32, task=Large)
    with pytest.raises(UserError) as caught:
        trainer.train()
    message = str(caught.value)
    assert f"--resume {trainer.run_dir.path} --micro_batch_size 16" in message and "32 samples at once" in message
    assert trainer.checkpointer.path("InT").exists()


def test_memory_that_runs_out_in_a_validation_asks_for_smaller_batches_there(build):
    class Large(EvaluatorVanilla):
        def eval_step(self, batch):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    trainer = build("--eval_batch_size", 32, task=type("Task", (TrainerVanilla,), {"evaluator_class": Large}))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.validate()
    message = str(failures.out_of_memory(trainer, caught.value))
    assert "with 32 samples at once. To go on: --eval_batch_size 16." in message


def test_resumed_run_whose_first_update_fails_keeps_its_directory(build, train):
    class Interrupted(TrainerVanilla):
        def train_epoch(self):
            raise KeyboardInterrupt

    trainer = build(task=Interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    first = trainer.checkpointer.path("InT")
    copy = first.read_bytes()
    finished = train("--resume", trainer.run_dir.path)
    first.write_bytes(copy)  # a position before the first update, in a run that has results
    again = build("--resume", first, task=WithWrongLoss)
    with pytest.raises(UserError, match="The loss got targets"):
        again.train()
    assert list(finished.run_dir.path.glob("*_ckpt.pth*"))


def test_average_takes_in_an_update_without_values(train):
    class Silent(TrainerVanilla):
        def train_step(self, update):
            super().train_step(update)
            return {}

    assert train("--ema", 0.9, "--n_epoch", 1, task=Silent).averaging.num_averaged == 8


def test_a_run_that_ignores_ctrl_c_says_what_stops_it(build):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for a job in the background
    try:
        with Session(trainer := build()):
            pass
    finally:
        signal.signal(signal.SIGINT, before)
    with Session(other := build()):
        pass
    logs = [next(one.run_dir.path.glob("*_log.txt")).read_text() for one in (trainer, other)]
    assert [log.count(f"in the background: kill {os.getpid()} stops the run") for log in logs] == [1, 0]
