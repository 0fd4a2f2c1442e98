"""DCGAN: a generator of small images and its discriminator.

Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", ICLR 2016, with two steps of a factor two instead of four, since the images are small. Images are 0 to 1
outside of the networks, and -1 to 1 inside, as in the paper.
"""

from typing import Any

import torch
from torch import Tensor, nn

from engine.registry import call
from utils.errors import UserError

SPREAD = 0.02  # standard deviation of the weights at the start, section 4 of the paper


def draw_noise(count: int, latent: int, seed: int) -> Tensor:
    """Return `count` noise vectors (count, latent), a function of the seed alone; the global generators are not used.

    >>> torch.equal(draw_noise(3, 8, seed=0), draw_noise(3, 8, seed=0))
    True
    """
    return torch.randn(count, latent, generator=torch.Generator().manual_seed(seed))


def normalization(channels: int, batch_norm: bool) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if batch_norm else []


def check_numbers(latent: int, n_channels: int, width: int, size: int) -> None:
    """Raise UserError for a number below 1, and for a size that cannot be halved twice."""
    for name, number in (("latent", latent), ("n_channels", n_channels), ("width", width)):
        if number < 1:
            raise UserError(f"{name}={number} of a network of DCGAN is out of range: it must be at least 1.")
    if size < 4 or size % 4:
        raise UserError(f"DCGAN makes images whose size is a multiple of 4, not {size} x {size}.")


def start_small(module: nn.Module) -> None:
    """Initialize the weights as in the paper: convolutions around 0, the factors of batch normalization around 1."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0, SPREAD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """Makes images from noise by three transposed convolutions, from 1 x 1 to size / 4, size / 2 and size.

    Args:
        latent: numbers in a noise vector.
        n_channels: channels of an image.
        width: channels of the last hidden layer; the first one has twice as many.
        size: height and width of an image, in pixels, a multiple of 4.
        batch_norm: normalize the hidden layers over the batch, as the paper does.

    Raises:
        UserError: when a number is out of range.

    Attributes:
        latent: length of its noise vectors.
        image: shape of a generated image: (n_channels, size, size).
    """

    def __init__(
        self,
        latent: int = 64,
        n_channels: int = 1,
        width: int = 32,
        size: int = 28,
        batch_norm: bool = True,
    ):
        super().__init__()
        check_numbers(latent, n_channels, width, size)
        self.latent = latent
        self.image = (n_channels, size, size)
        up = {"kernel_size": 4, "stride": 2, "padding": 1}
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(latent, 2 * width, kernel_size=size // 4, bias=not batch_norm),
            *normalization(2 * width, batch_norm),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, **up, bias=not batch_norm),
            *normalization(width, batch_norm),
            nn.ReLU(),
            nn.ConvTranspose2d(width, n_channels, **up),
            nn.Tanh(),
        )
        self.apply(start_small)

    def forward(self, noise: Tensor) -> Tensor:
        """Return images (N, n_channels, size, size), 0 to 1, of noise (N, latent)."""
        return (self.layers(noise[:, :, None, None]) + 1) / 2


class Discriminator(nn.Module):
    """Scores how real an image looks by two convolutions with stride 2, and one over the whole feature map.

    Args:
        n_channels, width, size, batch_norm: see `Generator`; the first hidden layer has `width` channels. Neither the
            images nor the first layer are normalized.

    Raises:
        UserError: when a number is out of range.

    Attributes:
        image: shape of its images: (n_channels, size, size).
    """

    def __init__(self, n_channels: int = 1, width: int = 32, size: int = 28, batch_norm: bool = True):
        super().__init__()
        check_numbers(1, n_channels, width, size)
        self.image = (n_channels, size, size)
        down = {"kernel_size": 4, "stride": 2, "padding": 1}
        self.layers = nn.Sequential(
            nn.Conv2d(n_channels, width, **down),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, **down, bias=not batch_norm),
            *normalization(2 * width, batch_norm),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, kernel_size=size // 4),
        )
        self.apply(start_small)

    def forward(self, images: Tensor) -> Tensor:
        """Return a logit (N,) for each of the images (N, n_channels, size, size), 0 to 1: above 0 is real."""
        return self.layers(2 * images - 1).mean(dim=(1, 2, 3))  # of (N, 1, 1, 1); no view, which FSDP warns of


def build_dcgan(
    n_channels: int = 1,
    width: int = 32,
    latent: int = 64,
    batch_norm: bool = True,
    generator: dict[str, Any] | None = None,
    discriminator: dict[str, Any] | None = None,
) -> dict[str, nn.Module]:
    """Return a generator and its discriminator by name.

    Args:
        n_channels, width, latent, batch_norm: see `Generator`.
        generator, discriminator: arguments of one network, which take precedence.

    Raises:
        UserError: when the discriminator does not take the images of the generator.
    """
    shared = {"n_channels": n_channels, "width": width, "batch_norm": batch_norm}
    networks = {
        "generator": call(Generator, {**shared, "latent": latent}, generator or {}, "--model_args generator"),
        "discriminator": call(Discriminator, shared, discriminator or {}, "--model_args discriminator"),
    }
    made, seen = networks["generator"].image, networks["discriminator"].image
    if made != seen or made[0] != n_channels:
        shapes = [" x ".join(map(str, shape)) for shape in (made, seen)]
        raise UserError(
            f"--model_args: the generator makes images of {shapes[0]}, the discriminator takes {shapes[1]}, and "
            f"--n_channels is {n_channels}: leave n_channels and size out, or give both networks those of the data."
        )
    return networks
