"""What is frozen stays as it is to the last bit, running statistics included, and the rest is trained."""

import pytest
import torch
from torch import nn

from engine.devices.wrap import checkpoint_activations
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError
from utils.freezing import Freezing


class WithNorm(TrainerVanilla):
    """Vanilla between batch normalization: "0" of the image's pixels, "3" of the logits."""

    def build_networks(self):
        (network,) = super().build_networks().values()
        return {"model": nn.Sequential(nn.BatchNorm2d(1), network, nn.Dropout(0.1), nn.BatchNorm1d(10))}


def small() -> nn.Sequential:
    body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))
    return nn.Sequential(body, nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False))


def test_normalization_stays_in_eval_mode_when_it_or_what_is_around_it_is_frozen():
    network = small()
    freezing = Freezing({"model": network}, freeze=["0.*", "1.weight"])
    freezing.set_train_mode({"model": network})
    assert freezing.still == {"model": ["0.1"]}
    assert [m.training for m in (network[0][0], network[0][1], network[1], network[3])] == [True, False, True, True]
    freezing = Freezing({"model": network}, freeze=["1.bias"])
    assert freezing.still == {"model": ["0.1", "1"]}


def test_it_is_found_again_in_networks_that_were_wrapped_or_exchanged():
    network = checkpoint_activations(small())
    freezing = Freezing({"model": network}, freeze=["0.*"])
    network.eval()
    freezing.set_train_mode({"model": nn.SyncBatchNorm.convert_sync_batchnorm(network)})
    kinds = [(type(m).__name__, m.training) for m in network.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert kinds == [("SyncBatchNorm", False), ("SyncBatchNorm", True), ("SyncBatchNorm", True)]
    assert "in eval mode stay 0.1" in freezing.note({"model": network})


def test_train_only_freezes_the_rest_and_freeze_takes_of_it():
    network = small()
    Freezing({"model": network}, train_only=["2.*", "1.*"], freeze=["1.bias"])
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained == ["1.weight", "2.weight", "2.bias"]


def test_without_patterns_nothing_is_touched_not_even_what_a_task_has_frozen():
    network = small()
    network[0].requires_grad_(False)
    freezing = Freezing({"model": network})
    freezing.set_train_mode({"model": network})
    assert all(module.training for module in network.modules()) and freezing.note({"model": network}) == ""


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"freeze": ["*"]}, r"--freeze \*: nothing is left"),
     ({"freeze": ["2.*"], "train_only": ["2.*"]}, "and --train_only"),
     ({"train_only": ["a:*"]}, "in the network 'b'"), ({"train_only": ["nothing"]}, "matches no parameter")],
)  # fmt: skip
def test_when_nothing_is_left_to_be_trained_that_is_an_error(settings, told):
    names = ("a", "b") if "'b'" in told else ("model",)
    with pytest.raises(UserError, match=told):
        Freezing({name: small() for name in names}, **settings)


def test_a_run_leaves_what_is_frozen_as_it_was_and_out_of_the_optimizer(train, build, weights):
    flags = ("--freeze", "0.*", "1.layers.0.*", "--optim", "sgd", "--weight_decay", 0.1)
    before, trainer = weights(build(*flags, task=WithNorm)), train(*flags, task=WithNorm)
    after = weights(trainer)
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert same == [*(f"0.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
                    "1.layers.0.weight", "1.layers.0.bias"]  # fmt: skip
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == 6


def test_if_it_were_trained_its_statistics_would_move(train, build, weights):
    before, after = weights(build(task=WithNorm)), weights(train(task=WithNorm))
    assert not torch.equal(before["0.running_mean"], after["0.running_mean"])
