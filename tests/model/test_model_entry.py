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
