"""Every model that can be named is built, with the options that it takes."""

from argparse import Namespace

import pytest
import torch

from model.model_entry import MODEL_TYPES, NETWORK_OPTIONS, build_judge, build_networks, model_types
from utils.errors import UserError


def options(**given) -> Namespace:
    usual = {"n_channels": 3, "n_classes": 2, "width": 4, "up": "bilinear", "deep_supervision": False}
    return Namespace(**{**usual, **given})


def test_names_fit_the_task():
    of_tasks = [name for task in ("classification", "segmentation", "generation") for name in model_types(task)]
    assert sorted(of_tasks) == sorted(MODEL_TYPES) == sorted(model_types(None))


@pytest.mark.parametrize("model_type", [*model_types("classification"), "torchvision:resnet18"])
def test_classifier(model_type):
    (network,) = build_networks(Namespace(model_type=model_type, n_channels=1, n_classes=10)).values()
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("model_type", model_types("segmentation"))
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
        ({"width": 8}, "no network 'width'; there are generator, discriminator"), ({"generator": 8}, "has a mapping"),
        ({"generater": {"width": 8}}, "did you mean 'generator'"),
        ({"generator": {"widht": 8}}, "--model_args generator: Generator takes no argument 'widht'"),
        ({"discriminator": {"latent": 8}}, "Discriminator takes no argument 'latent'"),
        ({"generator": {"width": 0}}, "width=0"), ({"generator": {"latent": "x"}}, "a whole number"),
        ({"discriminator": {"batch_norm": "no"}}, "true or false"), ({"generator": {"size": 30}}, "multiple of 4"),
        ({"generator": {"size": 0}}, "multiple of 4"),
        ({"generator": {"size": 32}}, "makes images of 1 x 32 x 32, the discriminator takes 1 x 28 x 28"),
        ({"generator": {"n_channels": 3}}, "leave n_channels and size out"),
        ({"generator": {"n_channels": 3}, "discriminator": {"n_channels": 3}}, "those of the data are 1 x"),
    ],
)  # fmt: skip
def test_arguments_that_a_gan_cannot_do_with_are_named(arguments, words):
    with pytest.raises(UserError) as error:
        gan(model_args=arguments)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_gan_makes_images_of_the_size_of_the_data():
    both = {name: {"size": 32} for name in ("generator", "discriminator")}
    assert gan(model_args=both)["generator"](torch.zeros(2, 8)).shape == (2, 1, 32, 32)  # data of somebody's own
    with pytest.raises(UserError, match="those of the data are 1 x 28 x 28"):
        gan(model_args=both, data_type="FashionMNISTSample")


@pytest.mark.parametrize(
    ("model_type", "arguments", "words"),
    [
        ("Vanilla", {"size": 32}, "cannot take images of 28 x 28 pixels"), ("Vanilla", {"size": 0}, "cannot take"),
        ("Vanilla", {"n_classes": 3}, "n_classes '3' contradicts --n_classes 10"), ("Vanilla", {"n_classes": 12}, "12"),
        ("Vanilla", {"n_channels": 3}, "contradicts --n_channels 1"), ("LeNet", {"size": 4}, "cannot"),
        ("LeNet", {"size": 32}, "LeNet was built for images of 32 x 32"), ("Vanilla", {"size": "x"}, "a whole number"),
        ("torchvision:resnet18", {"num_classes": 3}, "num_classes '3' contradicts --n_classes 10"),
        (f"{__name__}:Small", {"width": 0}, "0.weight has no elements"),
    ],
)  # fmt: skip
def test_arguments_that_the_images_or_classes_do_not_go_with_are_refused(model_type, arguments, words, recwarn):
    given = {"n_channels": 1, "n_classes": 10, "data_type": "FashionMNISTSample", "model_args": arguments}
    with pytest.raises(UserError) as error:
        build_networks(Namespace(model_type=model_type, **given))
    assert words in str(error.value) and "\n" not in str(error.value) and not recwarn.list


def test_a_width_of_nothing_is_refused():
    with pytest.raises(UserError, match="cannot take images of 64 x 64 pixels"):
        build_networks(options(model_type="UNet", data_type="Carvana", model_args={"width": 0}))


class Small(torch.nn.Sequential):
    def __init__(self, n_channels: int, n_classes: int, width: int = 2):
        super().__init__(torch.nn.Conv2d(n_channels, width, 28), torch.nn.Flatten(), torch.nn.Linear(width, n_classes))


class OnNoImages(torch.nn.Module):
    """Takes something else than images, so a trial on images says nothing of it."""

    def __init__(self, n_classes: int, width: int = 3):
        super().__init__()
        self.layer = torch.nn.Linear(width, n_classes)

    def forward(self, batch: dict) -> torch.Tensor:
        return self.layer(batch["values"])


def test_a_network_of_ones_own_that_takes_no_images_is_let_through():
    given = {"n_channels": 1, "n_classes": 10, "data_type": "FashionMNISTSample", "model_args": {"width": 5}}
    network = build_networks(Namespace(model_type=f"{__name__}:OnNoImages", **given))["model"]
    assert network.layer.in_features == 5


def test_where_only_the_data_knows_the_size_it_is_taken_as_it_is():
    given = {"n_channels": 1, "n_classes": 10, "data_type": "mine:data", "model_args": {"size": 32}}
    assert build_networks(Namespace(model_type="Vanilla", **given))["model"](torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("judge_type", ["LeNet", "Vanilla"])
def test_a_judge_does_not_learn(judge_type):
    judge = build_judge(Namespace(judge_type=judge_type, n_channels=1, n_classes=3))
    assert judge(torch.zeros(2, 1, 28, 28)).shape == (2, 3)
    assert not any(parameter.requires_grad for parameter in judge.parameters())


def test_options_decide_the_weights():
    def shapes(**given):
        (network,) = build_networks(options(model_type="UNetpp", **given)).values()
        return {name: value.shape for name, value in network.state_dict().items()}

    usual = shapes()
    others = {"n_channels": 1, "n_classes": 3, "width": 8, "up": "transposed", "deep_supervision": True}
    apart = {"model_type", "model_args", "latent", "batch_norm", "judge_type"}  # the last ones are those of a GAN
    assert {*others, *apart} == set(NETWORK_OPTIONS)  # those that an evaluation may not change
    assert all(shapes(**{name: value}) != usual for name, value in others.items())


def test_deep_supervision_gives_an_output_at_every_depth_in_training():
    (network,) = build_networks(options(model_type="UNetpp", deep_supervision=True)).values()
    assert [output.shape for output in network(torch.zeros(1, 3, 32, 32))] == [(1, 2, 32, 32)] * 4


def test_deep_supervision_is_refused_where_there_is_none():
    with pytest.raises(UserError, match="--model_type UNetpp"):
        build_networks(options(model_type="UNet", deep_supervision=True))
