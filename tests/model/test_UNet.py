"""U-Net: its size, its shapes, and that every path through it is used."""

import pytest
import torch

from model.UNet import UNet, UpSample
from utils.errors import UserError


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def double_conv(into, out):
    return 9 * into * out + 2 * out + 9 * out * out + 2 * out  # two convolutions without bias, two normalizations


def expected_parameters(n_channels, n_classes, width, up):
    w = [width, 2 * width, 4 * width, 8 * width, 16 * width]
    count = double_conv(n_channels, w[0]) + sum(double_conv(w[k], w[k + 1]) for k in range(4))
    taps = {"transposed": 4, "bilinear": 1}[up]
    for k in range(4):
        count += taps * w[k + 1] * w[k] + w[k]  # up-sampling halves the channels
        count += double_conv(w[k] + w[k], w[k])  # the skip and what comes from below
    return count + w[0] * n_classes + n_classes


@pytest.mark.parametrize(("up", "count"), [("transposed", 31_037_698), ("bilinear", 28_948_738)])
def test_parameter_count_of_the_classic_plan(up, count):
    with torch.device("meta"):  # counts without memory
        model = UNet(n_channels=3, n_classes=2, up=up)
    assert num_parameters(model) == count == expected_parameters(3, 2, 64, up)


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
@pytest.mark.parametrize(("n_channels", "n_classes", "width"), [(1, 1, 4), (4, 7, 6)])
def test_parameter_count_follows_channels_classes_and_width(n_channels, n_classes, width, up):
    model = UNet(n_channels, n_classes, width, up)
    assert num_parameters(model) == expected_parameters(n_channels, n_classes, width, up)


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (33, 50), (64, 48)])
def test_output_has_the_size_of_the_input(size, up):
    model = UNet(n_channels=2, n_classes=5, width=4, up=up)
    assert model(torch.randn(2, 2, *size)).shape == (2, 5, *size)


@pytest.mark.parametrize("up", ["transposed", "bilinear"])
def test_every_parameter_gets_a_gradient(up):
    model = UNet(n_channels=3, n_classes=2, width=4, up=up)
    model(torch.randn(2, 3, 33, 47)).square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias before batch normalization has no effect; there is none, so nothing may be without a gradient.
    assert without == []


def test_convolution_and_interpolation_commute():
    up = UpSample(8, "bilinear")
    features, skip = torch.randn(2, 8, 5, 6), torch.randn(2, 4, 10, 12)
    convolution, interpolation = up.up
    torch.testing.assert_close(up(features, skip), convolution(interpolation(features)), atol=1e-6, rtol=1e-5)


def test_padding_is_at_the_end_where_pooling_dropped_a_row():
    up = UpSample(8, "transposed")
    features = torch.randn(2, 8, 5, 6)
    padded = up(features, torch.randn(2, 4, 11, 13))
    assert torch.equal(padded[:, :, :10, :12], up.up(features))
    assert padded[:, :, 10:].abs().sum() == 0 and padded[:, :, :, 12:].abs().sum() == 0


def test_channels_last_stays_channels_last_and_changes_nothing():
    model = UNet(width=4).eval()
    images = torch.randn(2, 3, 33, 48)
    expected = model(images)
    logits = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert logits.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_compiles_to_one_graph():
    torch.compiler.reset()
    model = UNet(width=2).eval()
    images = torch.randn(1, 3, 17, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images), model(images))


@pytest.mark.parametrize("size", [(15, 64), (64, 8)])
def test_too_small_images_are_refused(size):
    with pytest.raises(UserError, match=rf"{size[0]}x{size[1]} pixels.*at least 16x16"):
        UNet(width=2)(torch.randn(2, 3, *size))


def test_unknown_up_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'bilinear'"):
        UNet(width=2, up="bilinaer")
