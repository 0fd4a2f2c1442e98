"""The residual network for small images."""

import pytest
import torch

from model.ResNet import Block, ResNet18


def test_it_has_the_size_that_is_told():
    assert sum(parameter.numel() for parameter in ResNet18().parameters()) == 11_172_810


@pytest.mark.parametrize(("n_channels", "n_classes", "size"), [(1, 10, 28), (3, 4, 8), (1, 2, 33)])
def test_logits_of_images_of_any_size(n_channels, n_classes, size):
    network = ResNet18(n_channels, n_classes).eval()
    with torch.no_grad():
        assert network(torch.rand(2, n_channels, size, size)).shape == (2, n_classes)


def test_a_block_adds_to_what_came_in():
    torch.manual_seed(0)
    block, features = Block(4, 4).eval(), torch.rand(1, 4, 6, 6)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(block(features), features)  # the added part is 0, and what came in is not below 0
    assert Block(4, 8, stride=2)(features.repeat(2, 1, 1, 1)).shape == (2, 8, 3, 3)
