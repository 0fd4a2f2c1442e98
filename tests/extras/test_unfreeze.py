"""Parameters that are trained from an epoch on: as by hand in plain torch, and exact on resume."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from callbacks.callback import Callback
from engine.checkpoints.file import load_checkpoint
from eval_vanilla import EvaluatorVanilla
from tests import small_tasks
from tests.processes import in_processes
from tests.small_tasks import VANILLA, TrainerSmall
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

FLAGS = ["--data_type", "FashionMNISTSample", *VANILLA, "--n_epoch", 3, "--batch_size", 15, "--label_smoothing", 0]
UNFREEZE = ["--unfreeze", "1.*=2", "2.*=3"]


class EvaluatorNorm(EvaluatorVanilla):
    @classmethod
    def build_networks(cls, opt):
        layers = nn.Flatten(), nn.Linear(28 * 28, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 10)
        return {"model": nn.Sequential(*layers)}


class TrainerNorm(TrainerVanilla):
    evaluator_class = EvaluatorNorm


class Stop(Callback):
    """Interrupts after an update."""

    def __init__(self, update):
        self.update = update

    def on_update_end(self, trainer, values):
        if trainer.progress.update == self.update:
            raise KeyboardInterrupt


@pytest.mark.parametrize("optim", ["adamW", "sgd"])
def test_a_part_is_trained_from_its_epoch_on_as_by_hand(build, train, optim):
    flags = [*FLAGS, "--optim", optim, "--warmup_epoch", 1, "--lr", 0.01]
    trained = train(*flags, *UNFREEZE, task=TrainerNorm).networks["model"].state_dict()

    other = build(*flags, task=TrainerNorm)  # of the same seed; only its network, data and rates are used
    network, rates = other.networks["model"], other.schedulers["model"].lr_lambdas[0]
    begin = {"1": 2, "2": 3}
    if optim == "adamW":
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.01, fused=True)
    else:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    update = 0
    for epoch in range(3):
        network.train()
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(epoch + 1 >= begin.get(name[0], 1))
        network[2].train(epoch + 1 >= 3)
        for batches in other.train_loader.updates(epoch):
            (images, labels) = batches.micro_batches[0]
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * rates(update)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            update += 1
    for name, value in network.state_dict().items():
        is_close = torch.equal if optim == "adamW" else torch.allclose  # that of SGD is fused here
        assert is_close(trained[name], value), name


@pytest.mark.parametrize("update", [4, 10, 13, 20, 24])  # ten updates in an epoch
def test_a_resume_before_and_after_the_epoch_ends_alike(build, train, differences, update):
    flags = [*FLAGS, *UNFREEZE, "--ema", 0.9, "--param_lr", "1.*=0.1x", "--no_decay", "bias"]
    whole = train(*flags, task=TrainerNorm)
    broken = build(*flags, task=TrainerNorm, callbacks=[Stop(update)])
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = train("--resume", broken.run_dir.path, task=TrainerNorm)
    states = [load_checkpoint(trainer.checkpointer.path("last")) for trainer in (whole, resumed)]
    assert differences(*states, ("options", "callbacks", "seconds")) == []


def test_the_log_says_what_is_frozen_and_the_frozen_does_not_change(build, train):
    trainer = train(*FLAGS, "--n_epoch", 2, "--freeze", "4.bias", "--unfreeze", "[12].*=2", task=TrainerNorm)
    text = next(trainer.run_dir.path.glob("*_log.txt")).read_text()
    assert "Epoch 1: --unfreeze: 6,296 parameters in 4 tensors of 'model' are frozen; in eval mode: 2" in text
    assert "Epoch 2: all parameters of 'model' that --unfreeze names are trained" in text
    start = build(*FLAGS, task=TrainerNorm).networks["model"]
    assert torch.equal(trainer.networks["model"][4].bias, start[4].bias)
    assert trainer.optimizer.state[trainer.networks["model"][1].weight]["step"] == 10  # of 20 updates


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--unfreeze", "9.*=2"], "matches no parameter"), (["--unfreeze", "1.*=4"], "is after the last epoch"),
     (["--unfreeze", "*=2"], "nothing in 'model' would be trained before epoch 2"),
     (["--freeze", "1.*", "--unfreeze", "1.*=2"], "only parameters that are frozen for the whole run")],
)  # fmt: skip
def test_what_would_have_no_meaning_is_refused(build, flags, message):
    with pytest.raises(UserError, match=message):
        build(*FLAGS, *flags, task=TrainerSmall)


@pytest.mark.parametrize("text", ["1.*", "1.*=1", "1.*=x", "=2", "1.*=2.5"])
def test_an_epoch_is_a_whole_number_from_two_on(text, capsys):
    with pytest.raises(SystemExit):
        TrainerVanilla.parse_options(["--unfreeze", text])
    assert "--unfreeze" in capsys.readouterr().err


def unfrozen(directory, mode, *more):
    """Train in one process of several, and return the weights."""
    flags = ["--optim", "sgd", "--lr", 0.1, "--n_epoch", 2, "--unfreeze", "1.*=2", "3.bias=2"]
    flags += ["--parallel", mode, *more]
    return small_tasks.weights_of(small_tasks.train(small_tasks.TrainerSmall64, flags, directory))


def test_several_processes_train_as_one_does(tmp_path):
    (alone,) = in_processes(1, unfrozen, tmp_path, "none")
    for micro in ((), ("--micro_batch_size", 3)):
        for weights in in_processes(2, unfrozen, tmp_path, "ddp", *micro):
            assert small_tasks.largest_difference(weights, alone) < 1e-12
    with pytest.raises(AssertionError, match="--unfreeze does not go with --parallel fsdp"):
        in_processes(2, unfrozen, tmp_path, "fsdp")


def whole_and_resumed(directory):
    """Return what a run in several processes ends with, and what it does when it was stopped in the first epoch."""
    flags = ["--n_epoch", 2, "--unfreeze", "layer.bias=2", "--val_every", 0, "--parallel", "ddp"]
    whole = small_tasks.train(small_tasks.TrainerBank, flags, directory / "whole")
    broken = small_tasks.train(small_tasks.TrainerBank, flags, directory / "broken", [small_tasks.StopAt(4)])
    more = ["--resume", broken.run_dir.path, "--parallel", "ddp"]
    return [small_tasks.weights_of(one) for one in (whole, small_tasks.train(small_tasks.TrainerBank, more, directory))]


def test_each_of_several_processes_keeps_its_own_buffers(tmp_path):
    first, second = in_processes(2, whole_and_resumed, tmp_path)
    for whole, resumed in (first, second):
        assert small_tasks.largest_difference(whole, resumed) == 0
    assert not torch.equal(first[0]["bank"], second[0]["bank"])


class EvaluatorOwnFreeze(EvaluatorNorm):
    @classmethod
    def build_networks(cls, opt):
        networks = super().build_networks(opt)
        networks["model"][2].requires_grad_(False)
        return networks


class TrainerOwnFreeze(TrainerNorm):
    evaluator_class = EvaluatorOwnFreeze


def test_normalization_that_the_network_has_frozen_itself_goes_on(build):
    trainer = build(*FLAGS, "--unfreeze", "1.*=2", task=TrainerOwnFreeze)
    trainer.set_train_mode()
    assert trainer.networks["model"][2].training
    assert "in eval mode" not in trainer.run_dir.log_path.read_text(encoding="utf-8")
