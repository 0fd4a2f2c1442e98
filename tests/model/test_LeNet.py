"""The small convolutional network."""

import pytest
import torch

from model.LeNet import LeNet
from utils.errors import UserError


def test_it_has_the_size_that_is_told():
    assert sum(parameter.numel() for parameter in LeNet().parameters()) == 61_706


@pytest.mark.parametrize(("n_channels", "size"), [(1, 28), (3, 32), (1, 12)])
def test_logits(n_channels, size):
    assert LeNet(n_channels, 5, size)(torch.rand(2, n_channels, size, size)).shape == (2, 5)


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match="28 x 28 pixels, not 20 x 28"):
        LeNet()(torch.rand(1, 1, 20, 28))
