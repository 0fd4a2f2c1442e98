"""The mean over epochs is that of torch's AveragedModel, its statistics are those of update_bn, bit for bit."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from engine.checkpoints.file import load_checkpoint, weights_of
from eval_vanilla import EvaluatorVanilla
from extras.mean_over_epochs import measure_statistics
from tests.extras.test_averaging import Recorder, WithNorm, averages_of
from trainer import TrainerBase
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError


def test_a_mean_over_epochs_is_that_of_torch_with_statistics_of_its_own(train):
    class AtTheEnds(Recorder):
        def on_update_end(self, trainer, values):
            if trainer.progress.sample == trainer.train_loader.num_samples and trainer.progress.epoch + 1 >= 2:
                self.add(trainer)

    recorder = AtTheEnds()
    trainer = train("--swa_start", 2, "--n_epoch", 3, "--optim", "sgd", task=WithNorm, callbacks=[recorder])
    (expected,) = recorder.models
    expected.module[1].p = trainer.model[1].p = 0.0  # they draw differently
    with trainer.averaging.applied():
        trainer.progress.epoch -= 1
        trainer.model.train()
        measure_statistics(trainer.networks, trainer.averaging.forward_epoch, None)
        ours = copy.deepcopy(trainer.model.state_dict())
    updates = trainer.train_loader.updates(trainer.progress.epoch)
    update_bn([batch for update in updates for batch in update.micro_batches], expected)
    assert trainer.averaging.num_averaged == 2
    assert [name for name, value in expected.module.state_dict().items() if not torch.equal(value, ours[name])] == []
    assert not torch.equal(ours["2.running_mean"], trainer.model.state_dict()["2.running_mean"])


def test_statistics_that_are_frozen_are_not_measured(train):
    flags = ("--swa_start", 1, "--freeze", "2.*")
    trainer = train(*flags, task=WithNorm)
    assert not averages_of(trainer)["2.running_mean"].any() and trainer.in_eval_mode == {"model": ["2"]}


def test_other_buffers_are_as_before_the_pass_that_measures():
    class Bank(nn.BatchNorm1d):
        def forward(self, inputs):
            self.bank = torch.cat([self.bank, inputs.detach()])
            self.seen += 1
            return super().forward(inputs)

    network = nn.Sequential(nn.BatchNorm1d(2), Bank(2))
    network[1].eval()
    network[1].register_buffer("bank", torch.zeros(0, 2))
    network[1].register_buffer("seen", torch.tensor(0))
    measure_statistics({"model": network}, lambda: network(torch.rand(4, 2)), None)
    assert network[0].num_batches_tracked == 1 and len(network[1].bank) == 0 and network[1].seen == 0


def test_before_the_mean_begins_the_weights_are_measured(train):
    trainer = train("--swa_start", 2, "--n_epoch", 2)
    first = load_checkpoint(trainer.checkpointer.path("last-8"))
    assert first["averaging"]["num_averaged"] == 0 and weights_of(first) == first["networks"]
    assert load_checkpoint(trainer.checkpointer.path("last"))["averaging"]["num_averaged"] == 1


def test_statistics_need_a_task_that_says_how_a_batch_goes_through(build):
    class WithStep(TrainerBase):
        evaluator_class, defaults = EvaluatorVanilla, TrainerVanilla.defaults

        def build_networks(self):
            return {"model": nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10))}

        def train_step(self, update):
            return {}

    build(task=WithStep)
    with pytest.raises(UserError, match="compute_loss"):
        build("--swa_start", 1, task=WithStep)
