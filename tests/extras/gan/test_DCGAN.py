"""The two networks of the GAN."""

import pytest
import torch
from torch import nn

from extras.gan.DCGAN import Discriminator, Generator
from utils.errors import UserError


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(("size", "n_channels"), [(28, 1), (32, 3)])
def test_images_are_0_to_1_and_judged_one_by_one(size, n_channels, batch_norm):
    generator = Generator(8, n_channels, width=4, size=size, batch_norm=batch_norm)
    images = generator(100 * torch.randn(5, 8))
    assert images.shape == (5, n_channels, size, size) and images.min() >= 0 and images.max() <= 1
    assert Discriminator(n_channels, width=4, size=size, batch_norm=batch_norm)(images).shape == (5,)


def test_weights_begin_small_as_in_the_paper():
    for network in (Generator(width=64), Discriminator(width=64)):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
            if isinstance(module, nn.BatchNorm2d):
                assert float(module.weight.detach().mean()) == pytest.approx(1, abs=0.02)


def test_a_size_that_cannot_be_halved_twice_is_refused():
    with pytest.raises(UserError, match="multiple of 4, not 30 x 30"):
        Generator(size=30)
