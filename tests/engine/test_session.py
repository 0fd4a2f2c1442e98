"""The first batch is the trial of the task's own code, data and options: one line, the traceback in the log."""

import pytest
import torch
from torch import nn

from eval_vanilla import EvaluatorVanilla
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


class WithWrongCode(TrainerVanilla):
    def compute_loss(self, batch):
        return {"lss": super().compute_loss(batch)}["loss"]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (WithWrongNetwork, ["RuntimeError", "--model_type", "test_session.py:"]),
        (WithWrongLoss, ["--loss_type", "test_session.py:"]),
        (WithWrongCode, ["KeyError: 'loss'", "test_session.py:"]),
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
    with pytest.raises(UserError, match="Failed in the first update"):
        again.train()
    assert list(finished.run_dir.path.glob("*_ckpt.pth*"))


def test_average_takes_in_an_update_without_values(train):
    class Silent(TrainerVanilla):
        def train_step(self, update):
            super().train_step(update)
            return {}

    assert train("--ema", 0.9, "--n_epoch", 1, task=Silent).averaging.num_averaged == 8
