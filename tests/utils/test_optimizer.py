"""Each name gives the optimizer it says, with the settings that it was given."""

import inspect
import io

import pytest
import torch
from torch import nn

from engine.checkpoints.state import set_state
from utils.errors import UserError
from utils.optimizer import OPTIMIZERS, build_optimizer, torch_optimizers


def trained_weight(build):
    """Return the weight after three steps on a parabola."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build([weight])
    for _ in range(3):
        optimizer.zero_grad()
        (weight - 0.5).square().sum().backward()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adam", lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.2, fused=True)),
        ("adamW", lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2, fused=True)),
        ("nadam", lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.2)),
        ("radam", lambda p: torch.optim.RAdam(p, lr=0.1, weight_decay=0.2)),
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2, momentum=0.8, fused=True)),
        ("nesterov", lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2, momentum=0.8, nesterov=True, fused=True)),
        ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.1, weight_decay=0.2)),
        ("adagrad", lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.2)),
    ],
)
def test_steps_as_the_optimizer_of_torch(name, expected):
    weight = trained_weight(lambda p: build_optimizer(p, name, lr=0.1, weight_decay=0.2, momentum=0.8))
    assert torch.equal(weight, trained_weight(expected))
    assert not torch.equal(weight, torch.tensor([1.0, -2.0]))


def test_every_name_steps_in_its_own_way():
    weights = {n: trained_weight(lambda p, n=n: build_optimizer(p, n, lr=0.01, weight_decay=0.2)) for n in OPTIMIZERS}
    assert len({tuple(weight.tolist()) for weight in weights.values()}) == len(OPTIMIZERS)


def test_parameter_groups_keep_their_own_settings():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": first.parameters(), "lr": 0.5}, {"params": second.parameters(), "weight_decay": 0.0}]
    optimizer = build_optimizer(groups, "adamW", lr=0.1, weight_decay=0.3)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.5, 0.3), (0.1, 0.0)]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


@pytest.mark.parametrize("name", ["adam", "adamW", "sgd", "nesterov"])
def test_step_is_fused_where_it_can_be(name):
    weight = nn.Parameter(torch.zeros(2))
    assert build_optimizer([weight], name).param_groups[0]["fused"]
    assert not build_optimizer([weight], name, fused=False).param_groups[0]["fused"]
    assert not build_optimizer([weight, nn.Parameter(torch.zeros(2, device="meta"))], name).param_groups[0]["fused"]


def test_sparse_gradients_need_a_step_that_is_not_fused():
    def step(fused):
        embedding = nn.Embedding(4, 2, sparse=True)
        optimizer = build_optimizer(embedding.parameters(), "sgd", weight_decay=0, momentum=0, fused=fused)
        embedding(torch.tensor([1])).sum().backward()
        optimizer.step()

    step(fused=False)
    with pytest.raises(RuntimeError, match="sparse"):
        step(fused=None)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"optim=adamw is unknown.*did you mean 'adamW'.*sgd"):
        build_optimizer(nn.Linear(2, 2).parameters(), "adamw")


@pytest.mark.parametrize("setting", [{"lr": 0.0}, {"lr": float("nan")}, {"weight_decay": -1.0}, {"momentum": 1.0}])
def test_setting_out_of_range_is_refused(setting):
    (option,) = setting
    with pytest.raises(UserError, match=f"{option}="):
        build_optimizer(nn.Linear(2, 2).parameters(), **setting)


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(UserError, match="needs a momentum above 0"):
        build_optimizer(nn.Linear(2, 2).parameters(), "nesterov", momentum=0.0)


# ---- the other classes of torch --------------------------------------------------------------------------------------
def steps(optimizer, weight, count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("name", sorted(set(torch_optimizers()) - {"SparseAdam"}))
def test_every_class_of_torch_steps_and_goes_on_from_its_state(name):
    settings = {"lr": 0.01, "weight_decay": 0.1}
    whole, part, other = (nn.Parameter(torch.ones(3, 4)) for _ in range(3))
    steps(build_optimizer([whole], name, **settings), whole, 3)
    first = build_optimizer([part], name, **settings)
    steps(first, part, 3)
    second = build_optimizer([other], name, **settings)
    other.data.copy_(part.data)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    set_state(second, torch.load(buffer, weights_only=True), "The state")
    steps(first, part, 2)
    steps(second, other, 2)
    assert not torch.equal(part, torch.ones(3, 4)) and torch.equal(part, other)
    assert torch.equal(whole, trained_by(getattr(torch.optim, name), settings))


def trained_by(optimizer_class, settings):
    """The weight after three steps of torch's own class."""
    weight = nn.Parameter(torch.ones(3, 4))
    names = inspect.signature(optimizer_class).parameters
    given = {**settings, "momentum": 0.9}
    steps(optimizer_class([weight], **{name: value for name, value in given.items() if name in names}), weight, 3)
    return weight


def test_arguments_of_the_class_count():
    weight = nn.Parameter(torch.ones(3))
    group = build_optimizer([weight], "adamW", optim_args={"betas": [0.8, 0.9], "lr": 5.0}).param_groups[0]
    assert tuple(group["betas"]) == (0.8, 0.9) and group["lr"] == 5.0
    for name, arguments, words in (
        ("adamW", {"betes": 1}, "AdamW takes no argument 'betes'.*did you mean 'betas'"),
        ("Adamax", {"eps": -1}, "Adamax cannot be made.*epsilon"), ("sgd", {"fused": "x", "foreach": True}, "SGD"),
        ("Adamx", {}, "unknown .*Adamax"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            build_optimizer([weight], name, optim_args=arguments)


def test_what_wants_a_closure_is_left_out():
    assert "LBFGS" not in torch_optimizers() and "Optimizer" not in torch_optimizers()
    with pytest.raises(UserError, match="without arguments"):
        build_optimizer([nn.Parameter(torch.ones(3))], "torch.optim:LBFGS", lr=1.0)
