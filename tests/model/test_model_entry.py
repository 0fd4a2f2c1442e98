"""Every model that can be named is built, with the options that it takes."""

from argparse import Namespace

import pytest
import torch

from engine.registry import names
from model.model_entry import NETWORK_OPTIONS, build_networks
from utils.errors import UserError


def options(**given) -> Namespace:
    usual = {"n_channels": 3, "n_classes": 2, "width": 4, "up": "bilinear", "deep_supervision": False}
    return Namespace(**{**usual, **given})


@pytest.mark.parametrize("model_type", [*names("model", "classification"), "torchvision:resnet18"])
def test_classifier(model_type):
    (network,) = build_networks(Namespace(model_type=model_type, n_channels=1, n_classes=10)).values()
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("model_type", names("model", "classification"))
@pytest.mark.parametrize("image_size", [16, 64])
def test_a_classifier_fits_the_size_of_the_images(model_type, image_size):
    opt = Namespace(model_type=model_type, n_channels=3, n_classes=4, image_size=image_size)
    assert build_networks(opt)["model"](torch.zeros(2, 3, image_size, image_size)).shape == (2, 4)


@pytest.mark.parametrize("model_type", names("model", "segmentation"))
@pytest.mark.parametrize("up", ["bilinear", "transposed"])
@pytest.mark.parametrize("n_classes", [1, 2])
def test_segmentation_network(model_type, up, n_classes):
    networks = build_networks(options(model_type=model_type, up=up, n_classes=n_classes))
    assert list(networks) == ["model"]
    assert networks["model"].eval()(torch.zeros(1, 3, 32, 32)).shape == (1, n_classes, 32, 32)


def gan(**given) -> dict[str, torch.nn.Module]:
    usual = {"model_type": "DCGAN", "n_channels": 1, "width": 4, "latent": 8, "batch_norm": True, "n_classes": 10}
    return build_networks(Namespace(**{**usual, **given}))


def test_options_decide_the_weights_of_a_gan():
    def shapes(**given):
        return {f"{n}.{k}": v.shape for n, net in gan(**given).items() for k, v in net.state_dict().items()}

    assert list(gan()) == ["generator", "discriminator"]
    others = {"n_channels": 3, "width": 8, "latent": 9, "batch_norm": False}
    assert all(shapes(**{name: value}) != shapes() for name, value in others.items())
    assert {"model_type", "judge_type", "n_classes", *others} < set(NETWORK_OPTIONS)


def test_each_network_of_a_gan_has_arguments_of_its_own():
    networks = gan(model_args={"generator": {"width": 16, "latent": 5}, "discriminator": {"batch_norm": False}})
    assert networks["generator"].layers[0].weight.shape[:2] == (5, 32) and networks["generator"].latent == 5
    of_discriminator = [type(layer) for layer in networks["discriminator"].layers]
    assert torch.nn.BatchNorm2d not in of_discriminator and networks["discriminator"].layers[0].out_channels == 4
    assert networks["generator"](torch.zeros(2, 5)).shape == (2, 1, 28, 28)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"widht": 8}, "build_dcgan takes no argument 'widht'"), ({"generator": 8}, "cannot be made"),
        ({"generater": {"width": 8}}, "did you mean 'generator'"),
        ({"generator": {"widht": 8}}, "--model_args generator: Generator takes no argument 'widht'"),
        ({"discriminator": {"latent": 8}}, "Discriminator takes no argument 'latent'"),
        ({"generator": {"width": 0}}, "width=0"), ({"generator": {"latent": "x"}}, "of type int"),
        ({"discriminator": {"batch_norm": "no"}}, "of type bool"), ({"generator": {"size": 30}}, "multiple of 4"),
        ({"generator": {"size": 0}}, "multiple of 4"),
        ({"generator": {"size": 32}}, "makes images of 1 x 32 x 32, the discriminator takes 1 x 28 x 28"),
        ({"generator": {"n_channels": 3}}, "leave n_channels and size out"),
        ({"generator": {"n_channels": 3}, "discriminator": {"n_channels": 3}}, "--n_channels is 1"),
    ],
)  # fmt: skip
def test_arguments_that_a_gan_cannot_do_with_are_named(arguments, words):
    with pytest.raises(UserError) as error:
        gan(model_args=arguments)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_gan_makes_images_of_another_size():
    both = {name: {"size": 32} for name in ("generator", "discriminator")}
    assert gan(model_args=both)["generator"](torch.zeros(2, 8)).shape == (2, 1, 32, 32)


@pytest.mark.parametrize(
    ("model_type", "arguments", "words"),
    [
        ("Vanilla", {"n_classes": 3}, "n_classes '3' contradicts --n_classes 10"), ("Vanilla", {"n_classes": 12}, "12"),
        ("Vanilla", {"n_channels": 3}, "contradicts --n_channels 1"), ("Vanilla", {"size": "x"}, "of type int"),
        ("Vanilla", {"size": 0}, "layers.0.weight has no elements"),
        ("torchvision:resnet18", {"num_classes": 3}, "num_classes '3' contradicts --n_classes 10"),
        ("torchvision:resnet18", {"no_such": 3}, "torchvision:resnet18 cannot be made"),
        (f"{__name__}:Small", {"width": 0}, "0.weight has no elements"),
        ("os:getcwd", {}, "makes no nn.Module"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_network_are_refused(model_type, arguments, words, recwarn):
    given = {"n_channels": 1, "n_classes": 10, "model_args": arguments}
    with pytest.raises(UserError) as error:
        build_networks(Namespace(model_type=model_type, **given))
    assert words in str(error.value) and "\n" not in str(error.value) and not recwarn.list


def test_a_user_defined_network_gets_the_options_that_it_names():
    chosen = {"model_type": f"{__name__}:Small", "n_channels": 1}
    network = build_networks(options(**chosen, width=9, deep_supervision=True, up="transposed"))["model"]
    assert network[0].out_channels == 9 and network[2].out_features == 2 and network.rest == (True, "transposed", "own")
    assert build_networks(options(**chosen, width=None))["model"][0].out_channels == 2


class Small(torch.nn.Sequential):
    def __init__(
        self, n_channels: int, n_classes: int, width: int = 2, deep_supervision=None, up=None, model_type: str = "own"
    ):
        super().__init__(torch.nn.Conv2d(n_channels, width, 28), torch.nn.Flatten(), torch.nn.Linear(width, n_classes))
        self.rest = deep_supervision, up, model_type


def test_options_decide_the_weights():
    def shapes(**given):
        (network,) = build_networks(options(model_type="UNetpp", **given)).values()
        return {name: value.shape for name, value in network.state_dict().items()}

    usual = shapes()
    others = {"n_channels": 1, "n_classes": 3, "width": 8, "up": "transposed", "deep_supervision": True}
    apart = {"model_type", "model_args", "latent", "batch_norm", "judge_type"}  # the last ones are those of a GAN
    apart |= {"input_mean", "input_std", "image_size"}  # of the input
    assert {*others, *apart} == set(NETWORK_OPTIONS)  # those that an evaluation may not change
    assert all(shapes(**{name: value}) != usual for name, value in others.items())


def test_deep_supervision_gives_an_output_at_every_depth_in_training():
    (network,) = build_networks(options(model_type="UNetpp", deep_supervision=True)).values()
    assert [output.shape for output in network(torch.zeros(1, 3, 32, 32))] == [(1, 2, 32, 32)] * 4
