"""The multilayer perceptron has the layers and the size that its docstring says."""

import torch
from torch import nn

from model.vanilla_model import VanillaModel


def test_parameter_count():
    count = sum(parameter.numel() for parameter in VanillaModel().parameters())
    assert count == (784 * 512 + 512) + (512 * 512 + 512) + (512 * 10 + 10)
    assert count == 669_706


def test_prints_flatten_and_then_the_layers():
    lines = [line.strip() for line in str(VanillaModel()).splitlines()]
    kinds = [line.split(": ")[1].split("(")[0] for line in lines if ": " in line]
    assert kinds == ["Flatten", "Sequential", "Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_is_the_plain_sequence_of_its_layers():
    torch.manual_seed(0)
    model = VanillaModel()
    images = torch.randn(3, 1, 28, 28)
    first, second, third = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    hidden = torch.relu(second(torch.relu(first(images.reshape(3, 784)))))
    assert torch.equal(model(images), third(hidden))


def test_takes_other_channels_classes_and_sizes():
    model = VanillaModel(n_channels=3, n_classes=7, size=32)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
