"""Classifiers of torchvision and timm, fitted to our images."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from engine.registry import find
from extras.library_models import fit_channels
from model.vanilla_model import VanillaModel
from utils.errors import UserError


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_classifier_of_torchvision_takes_our_channels_and_classes(name, n_channels):
    network = find("model", f"torchvision:{name}")(n_channels, n_classes=7)
    logits = network(torch.rand(2, n_channels, 64, 64))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert next(network.parameters()).grad.abs().sum() > 0


def test_the_first_convolution_keeps_all_but_its_channels():
    stem = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False)
    network = nn.Sequential(nn.ModuleDict({"stem": stem}), nn.Conv2d(5, 2, 1))
    last = network[1]
    fit_channels(network, 2)
    stem = network[0]["stem"]
    assert (stem.in_channels, stem.out_channels, stem.stride, stem.bias) == (2, 5, (2, 2), None) and network[1] is last
    fit_channels(network, 2)
    assert network[0]["stem"] is stem


@pytest.mark.parametrize(
    ("text", "word"),
    [("torchvision:resnet19", "'resnet18'"), ("torchvision:", "no classifier ''"),
     ("torchvision:raft_large", "no classifier"), ("other:resnet18", "no module 'other'")],
)  # fmt: skip
def test_an_unknown_name_is_refused(text, word):
    with pytest.raises(UserError, match=word):
        find("model", text)


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs the package timm.*pip install timm"):
        find("model", "timm:resnet18")


def test_timm_gets_our_channels_and_classes_and_no_weights(monkeypatch):
    asked = {}

    def create_model(name, **settings):
        asked.update(settings, name=name)
        return VanillaModel(settings["in_chans"], settings["num_classes"])

    stand_in = SimpleNamespace(list_models=lambda: ["mlp"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    network = find("model", "timm:mlp")(1, 4)
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 4)
    assert asked == {"name": "mlp", "in_chans": 1, "num_classes": 4}  # create_model() loads no weights by default
    with pytest.raises(UserError, match="timm has no classifier 'hf-hub:evil/model'"):
        find("model", "timm:hf-hub:evil/model")
