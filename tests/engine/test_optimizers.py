"""Networks, optimizers and schedulers that do not belong together are told, in one line."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR

from engine.optimizers import checked_optimizers, checked_schedulers
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError


@pytest.fixture
def networks():
    return {"generator": nn.Linear(2, 2), "critic": nn.Linear(2, 1), "judge": nn.Linear(1, 1).requires_grad_(False)}


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=0.1)


def test_those_that_match_come_back(networks):
    optimizers = {name: sgd(networks[name]) for name in ("generator", "critic")}
    assert checked_optimizers(optimizers, networks) == optimizers
    assert checked_schedulers({"critic": ConstantLR(optimizers["critic"])}, optimizers).keys() == {"critic"}
    both = {"critic": torch.optim.SGD([*networks["critic"].parameters(), *networks["generator"].parameters()], lr=1.0)}
    assert checked_optimizers(both, networks) == both  # one may step two networks


def test_an_optimizer_of_no_network_is_named_with_the_nearest(networks):
    with pytest.raises(UserError, match=r"'generater'.*did you mean 'generator'.*generator, critic, judge"):
        checked_optimizers({"generater": sgd(networks["generator"]), "critic": sgd(networks["critic"])}, networks)


def test_a_network_that_nobody_steps_is_named(networks):
    with pytest.raises(UserError, match=r"steps the network 'critic'.*requires_grad_\(False\)"):
        checked_optimizers({"generator": sgd(networks["generator"])}, networks)


def test_a_scheduler_of_another_optimizer_is_named(networks):
    optimizers = {name: sgd(networks[name]) for name in ("generator", "critic")}
    with pytest.raises(UserError, match="'critic', whose optimizer is 'generator'"):
        checked_schedulers({"critic": ConstantLR(optimizers["generator"])}, optimizers)
    with pytest.raises(UserError, match=r"'critik', whose optimizer is 'critic'.*did you mean 'critic'"):
        checked_schedulers({"critik": ConstantLR(optimizers["critic"])}, optimizers)
    with pytest.raises(UserError, match="none of build_optimizers"):
        checked_schedulers({"critic": ConstantLR(sgd(networks["critic"]))}, optimizers)


def test_a_trainer_is_refused_when_it_is_built(build):
    class Misspelt(TrainerVanilla):
        def build_optimizers(self):
            return {"modle": sgd(self.networks["model"])}

    with pytest.raises(UserError, match=r"'modle'.*did you mean 'model'"):
        build(task=Misspelt)


def test_the_only_network_may_have_any_name(train):
    class Named(TrainerVanilla):
        def build_networks(self):
            return {"mlp": super().build_networks()["model"]}

    assert train("--n_epoch", 1, task=Named).progress.update == 8
