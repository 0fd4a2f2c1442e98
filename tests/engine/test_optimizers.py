"""Optimizers and schedules by the options: torch's and ours, with errors in one line."""

import inspect
import io
import math
from argparse import Namespace

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import ConstantLR

from engine.checkpoints.restore import set_state
from engine.checkpoints.state import plain
from engine.optimizers import (
    checked_optimizers,
    checked_schedulers,
    make_optimizers,
    make_schedulers,
    needs_closure,
)
from engine.registry import OF_TORCH, names
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

DEFAULTS = {
    "optim": "adamW", "lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "optim_args": {}, "freeze": None,
    "train_only": None, "param_lr": None, "no_decay": None, "lr_scheduler": "cosine", "scheduler_args": {},
    "scheduler_step": "update", "n_epoch": 2, "max_updates": None, "warmup_epoch": 0.0, "warmup_multiplier": 100.0,
    "lr_decay_epochs": None, "lr_decay_every": None, "lr_decay_rate": 0.1, "lr_min": 0.0,
}  # fmt: skip


# ---- optimizers of torch ---------------------------------------------------------------------------------------------
class Weight(nn.Module):
    """A network of one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4))


def optimizer_of(network, optim, **options):
    opt = Namespace(**{**DEFAULTS, "optim": optim, **options})
    return make_optimizers(opt, {"model": network})["model"]


def make_steps(optimizer, weight, count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


def trained_by(optimizer_class):
    """Return the weight after three steps of torch's own class."""
    weight = nn.Parameter(torch.ones(3, 4))
    offered = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9}
    known = inspect.signature(optimizer_class).parameters
    optimizer = optimizer_class([weight], **{name: value for name, value in offered.items() if name in known})
    make_steps(optimizer, weight, 3)
    return weight


def trained_weight(build):
    """Return the weight after three steps on a parabola."""
    network = Weight()
    optimizer = build(network)
    for _ in range(3):
        optimizer.zero_grad()
        (network.weight - 0.5).square().sum().backward()
        optimizer.step()
    return network.weight.detach()


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
def test_a_name_steps_as_the_optimizer_of_torch(name, expected):
    weight = trained_weight(lambda n: optimizer_of(n, name, lr=0.1, weight_decay=0.2, momentum=0.8))
    assert torch.equal(weight, trained_weight(lambda network: expected(network.parameters())))
    assert not torch.equal(weight, torch.ones(3, 4))


def test_every_name_steps_in_its_own_way():
    weights = [trained_weight(lambda n, name=name: optimizer_of(n, name)) for name in names("optimizer")]
    assert len({weight[0, 0].item() for weight in weights}) == len(weights) == 9


@pytest.mark.parametrize("name", ["adam", "adamW", "sgd", "nesterov"])
def test_step_is_fused_where_it_can_be(name):
    assert optimizer_of(Weight(), name).param_groups[0]["fused"]
    assert not optimizer_of(Weight(), name, optim_args={"fused": False}).param_groups[0]["fused"]
    network = Weight()
    network.other = nn.Parameter(torch.zeros(2, device="meta"))
    assert not optimizer_of(network, name).param_groups[0]["fused"]


def test_sparse_gradients_need_a_step_that_is_not_fused():
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = optimizer_of(embedding, "sgd", weight_decay=0.0, momentum=0.0)
    embedding(torch.tensor([1])).sum().backward()
    before = embedding.weight.detach().clone()
    optimizer.step()
    assert not optimizer.param_groups[0]["fused"] and not torch.equal(embedding.weight, before)


@pytest.mark.parametrize(("name", "arguments"), [("sgd", {}), ("nesterov", {}), ("sgd", {"dampening": 0.5})])
def test_updates_may_reach_other_parameters_each(name, arguments):
    def stepped(build) -> torch.Tensor:
        network = nn.Linear(3, 4)
        with torch.no_grad():
            network.weight.fill_(0.3)
            network.bias.fill_(0.7)
        optimizer = build(network)
        for reached in (network.weight, network.bias, network.bias, network.weight):
            optimizer.zero_grad()
            (reached - 0.1).square().sum().backward()
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    settings = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.8}
    plain = stepped(lambda n: torch.optim.SGD(n.parameters(), **settings, **arguments, nesterov=name == "nesterov"))
    assert torch.allclose(stepped(lambda n: optimizer_of(n, name, optim_args=arguments, **settings)), plain, atol=1e-7)


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(UserError, match="Nesterov momentum requires a momentum"):
        optimizer_of(Weight(), "nesterov", momentum=0.0)


@pytest.mark.parametrize("name", sorted(set(OF_TORCH["optimizer"][1]) - {"SparseAdam"}))
def test_every_class_of_torch_steps_and_goes_on_from_its_state(name):
    whole, part, other = (Weight() for _ in range(3))
    make_steps(optimizer_of(whole, name), whole.weight, 3)
    first = optimizer_of(part, name)
    make_steps(first, part.weight, 3)
    second = optimizer_of(other, name)
    other.weight.data.copy_(part.weight.data)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    set_state(second, torch.load(buffer, weights_only=True), "The state")
    make_steps(first, part.weight, 2)
    make_steps(second, other.weight, 2)
    assert not torch.equal(part.weight, torch.ones(3, 4)) and torch.equal(part.weight, other.weight)
    assert torch.equal(whole.weight, trained_by(getattr(torch.optim, name)))


def test_the_list_of_torchs_optimizers_is_complete():
    classes = {name: value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    optimizers = {name for name, value in classes.items() if issubclass(value, torch.optim.Optimizer)} - {"Optimizer"}
    known = {*OF_TORCH["optimizer"][1], "Muon"}  # a name of the template, as it takes a part of the parameters
    assert {name for name in optimizers if not needs_closure(classes[name])} == known


def test_arguments_of_the_class_win():
    group = optimizer_of(Weight(), "adamW", optim_args={"betas": [0.8, 0.9], "lr": 5.0}).param_groups[0]
    assert tuple(group["betas"]) == (0.8, 0.9) and group["lr"] == 5.0


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("adamW", {"betes": 1}, "AdamW takes no argument 'betes'.*did you mean 'betas'"),
        ("adamW", {"amsgrad": "no"}, "amsgrad of AdamW is of type bool"),
        ("Adamax", {"eps": -1}, "Adamax cannot be made.*epsilon"), ("Adamx", {}, "--optim: 'Adamx' is not.*Adamax"),
        ("torch.optim:LBFGS", {}, "needs no arguments"),
    ],
)  # fmt: skip
def test_optimizers_that_cannot_be_made_are_named(name, arguments, words):
    with pytest.raises(UserError, match=words):
        optimizer_of(Weight(), name, optim_args=arguments)


# ---- schedulers of torch ---------------------------------------------------------------------------------------------
ARGUMENTS = {
    "StepLR": {"step_size": 3}, "MultiStepLR": {"milestones": [2, 5]}, "ExponentialLR": {"gamma": 0.9},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "cycle_momentum": False}, "OneCycleLR": {"max_lr": 0.2},
    "CosineAnnealingWarmRestarts": {"T_0": 4}, "CosineAnnealingLR": {"eta_min": 0.001},
}  # fmt: skip


def plain_optimizer():
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


def scheduler_of(name, updates_per_epoch=6, **options):
    opt = Namespace(**{**DEFAULTS, "lr_scheduler": name, "scheduler_args": ARGUMENTS.get(name, {}), **options})
    return make_schedulers(opt, {"model": plain_optimizer()}, updates_per_epoch)["model"]


def rates_of(scheduler, num_updates):
    """Return the learning rates that the updates are made with."""
    rates = []
    for _ in range(num_updates):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("name", [name for name in OF_TORCH["scheduler"][1] if name != "ReduceLROnPlateau"])
def test_every_scheduler_of_torch_gives_its_rates_and_goes_on_from_its_state(name):
    length = {"OneCycleLR": {"total_steps": 12}, "CosineAnnealingLR": {"T_max": 12}}.get(name, {})
    theirs = getattr(lr_scheduler, name)(plain_optimizer(), **ARGUMENTS.get(name, {}), **length)
    expected = rates_of(theirs, 12)
    assert rates_of(scheduler_of(name), 12) == expected and len(set(expected)) > 1

    first, second = scheduler_of(name), scheduler_of(name)
    rates = rates_of(first, 5)
    buffer = io.BytesIO()
    torch.save((first.state_dict(), first.optimizer.state_dict()), buffer)
    buffer.seek(0)
    state, of_optimizer = torch.load(buffer, weights_only=True)
    second.optimizer.load_state_dict(of_optimizer)
    set_state(second, state, "The state")
    assert rates + rates_of(second, 7) == expected


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("StepLR", {"warmup_epoch": 1}, "--warmup_epoch is for"), ("StepLR", {"lr_min": 0.01}, "--lr_min is for"),
        ("StepLR", {"scheduler_args": {}}, "needs the argument step_size"),
        ("StepLR", {"scheduler_args": {"step": 3}}, "takes no argument 'step'"),
        ("OneCycleLR", {"scheduler_args": {"max_lr": 1, "pct_start": 3}}, "OneCycleLR cannot be made.*pct_start"),
        ("cosine", {"scheduler_args": {"gamma": 3}}, "not for --lr_scheduler cosine"),
        ("StepLr_", {}, "did you mean 'StepLR'"),
        ("torch.optim.lr_scheduler:ReduceLROnPlateau", {"val_every": 0}, "follows the validation"),
    ],
)  # fmt: skip
def test_schedulers_that_cannot_be_made_are_named(name, options, words):
    with pytest.raises(UserError, match=words):
        scheduler_of(name, **options)


def resumed(old, new):
    """Restore the state of one scheduler and its optimizer in another, as a resume does."""
    set_state(new.optimizer, plain(old.optimizer.state_dict(), ""), "The optimizer")
    set_state(new, plain(old.state_dict(), ""), "The state")
    return new


def cosine_rates(num_steps, lowest=0.0):
    """The closed form of the annealing."""
    return [lowest + (0.1 - lowest) * (1 + math.cos(math.pi * step / num_steps)) / 2 for step in range(num_steps)]


@pytest.mark.parametrize("by", ["update", "epoch"])
@pytest.mark.parametrize("done", [5, 12])
@pytest.mark.parametrize("name", ["CosineAnnealingLR", "OneCycleLR", "cosine", "linear"])
def test_a_resumed_run_that_is_longer_goes_on_with_the_rates_of_the_longer_run(name, done, by):
    longer = {"n_epoch": 4, "scheduler_step": by}
    expected = rates_of(scheduler_of(name, **longer), 24)
    if name == "CosineAnnealingLR" and by == "update":
        assert expected == pytest.approx(cosine_rates(24, lowest=0.001))
    old = scheduler_of(name, n_epoch=2, scheduler_step=by)
    rates_of(old, done)
    assert rates_of(resumed(old, scheduler_of(name, **longer)), 24 - done) == pytest.approx(expected[done:], rel=1e-12)


def warmed_up(optimizer, length):
    """Return a warm-up of a quarter of the run, then annealing."""
    quarter = length // 4
    rise = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=quarter)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, length - quarter)
    return lr_scheduler.SequentialLR(optimizer, [rise, fall], [quarter])


def chained(optimizer, length):
    fall = lr_scheduler.PolynomialLR(optimizer, length)
    return lr_scheduler.ChainedScheduler([fall, lr_scheduler.ExponentialLR(optimizer, 0.9)], optimizer)


OF_LENGTH = [warmed_up, chained, lambda optimizer, length: lr_scheduler.LinearLR(optimizer, 1, 0.0, length)]


@pytest.mark.parametrize("make", OF_LENGTH)
@pytest.mark.parametrize("done", [2, 5, 12])
def test_schedulers_of_a_longer_run_that_a_task_makes_go_on_as_a_new_one(make, done):
    expected = rates_of(make(plain_optimizer(), 24), 24)
    for length in (12, 24):  # a shorter run, and one of the same length
        old = make(plain_optimizer(), length)
        rates_of(old, done)
        rates = rates_of(resumed(old, make(plain_optimizer(), 24)), 24 - done)
        assert rates == pytest.approx(expected[done:], rel=1e-12)


@pytest.mark.parametrize("options", [
    {"warmup_epoch": 0.5}, {"lr_scheduler": "step", "lr_decay_epochs": [0.5, 2.5]},
    {"lr_scheduler": "step", "lr_decay_every": 1.5},
])  # fmt: skip
def test_once_per_epoch_there_are_no_fractions_of_epochs(options):
    name = options.pop("lr_scheduler", "cosine")
    with pytest.raises(UserError, match=f"--{next(iter(options))} .*a whole number of epochs"):
        scheduler_of(name, scheduler_step="epoch", **options)
    scheduler_of(name, **options)


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "OneCycleLR", "cosine", "StepLR"])
def test_a_resumed_run_of_the_same_length_has_the_same_bits(name):
    expected = rates_of(scheduler_of(name), 12)
    old = scheduler_of(name)
    assert rates_of(old, 7) + rates_of(resumed(old, scheduler_of(name)), 5) == expected


@pytest.mark.parametrize(("by", "num_updates"), [("update", 3), ("epoch", 18)])
def test_a_schedule_that_ends_before_the_run_is_refused_before_it_begins(by, num_updates):
    arguments = {"max_lr": 1, "total_steps": 3}
    scheduler = scheduler_of("OneCycleLR", n_epoch=4, scheduler_step=by, scheduler_args=arguments)
    pair = {"model": scheduler}, {"model": scheduler.optimizer}
    assert checked_schedulers(*pair, num_updates) == pair[0]
    with pytest.raises(UserError, match=f"OneCycleLR ends after {num_updates} updates, and the run makes 24"):
        checked_schedulers(*pair, 24)


@pytest.mark.parametrize("name", ["cosine", "StepLR"])
def test_once_per_epoch_the_rate_stays_for_an_epoch_and_goes_on_from_inside_of_one(name):
    def build():
        arguments = {"scheduler_args": {"step_size": 1, "gamma": 0.5}} if name == "StepLR" else {}
        return scheduler_of(name, updates_per_epoch=4, n_epoch=3, scheduler_step="epoch", **arguments)

    rates = rates_of(build(), 12)
    assert rates[0:4] == [0.1] * 4 and rates[4:8] == [0.05] * 4 and rates[8:] == [rates[8]] * 4 and rates[8] < 0.05
    first, second = build(), build()
    part = rates_of(first, 6)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    set_state(second, first.state_dict(), "The state")
    assert part + rates_of(second, 6) == rates
    with pytest.raises(UserError, match="it lacks last_epoch"):
        broken = {name: value for name, value in first.state_dict()["scheduler"].items() if name != "last_epoch"}
        second.load_state_dict({"num_updates": 0, "scheduler": broken})


# ---- networks, optimizers and schedulers belong together by name -----------------------------------------------------


@pytest.fixture
def networks():
    return {"generator": nn.Linear(2, 2), "critic": nn.Linear(2, 1), "judge": nn.Linear(1, 1).requires_grad_(False)}


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=0.1)


def test_those_that_match_come_back(networks):
    optimizers = {name: sgd(networks[name]) for name in ("generator", "critic")}
    assert checked_optimizers(optimizers, networks, nn.Identity()) == optimizers
    assert checked_schedulers({"critic": ConstantLR(optimizers["critic"])}, optimizers, 8).keys() == {"critic"}
    both = {"critic": torch.optim.SGD([*networks["critic"].parameters(), *networks["generator"].parameters()], lr=1.0)}
    assert checked_optimizers(both, networks, nn.Identity()) == both  # one may step two networks


def test_an_optimizer_of_no_network_is_named_with_the_nearest(networks):
    with pytest.raises(UserError, match=r"'generater'.*did you mean 'generator'.*generator, critic, judge"):
        optimizers = {"generater": sgd(networks["generator"]), "critic": sgd(networks["critic"])}
        checked_optimizers(optimizers, networks, nn.Identity())


def test_a_network_that_nobody_steps_is_named(networks):
    with pytest.raises(UserError, match=r"steps the network 'critic'.*requires_grad_\(False\)"):
        checked_optimizers({"generator": sgd(networks["generator"])}, networks, nn.Identity())


def test_parameters_of_the_loss_are_stepped_or_refused():
    network, loss = nn.Linear(1, 1), nn.PReLU()
    alone, both = ({"model": torch.optim.SGD(list(parameters), lr=0.1)} for parameters in (
        network.parameters(), [*network.parameters(), *loss.parameters()],
    ))  # fmt: skip
    with pytest.raises(UserError, match="PReLU has parameters that no optimizer steps: weight"):
        checked_optimizers(alone, {"model": network}, loss)
    assert checked_optimizers(both, {"model": network}, loss) == both
    with pytest.raises(UserError, match="several processes do not add up"):
        checked_optimizers(both, {"model": network}, loss, num_processes=2)
    assert checked_optimizers(alone, {"model": network}, loss.requires_grad_(False), num_processes=2) == alone


def test_a_scheduler_of_another_optimizer_is_named(networks):
    optimizers = {name: sgd(networks[name]) for name in ("generator", "critic")}
    with pytest.raises(UserError, match=r"'critic'.*has the name of its optimizer, one of generator, critic"):
        checked_schedulers({"critic": ConstantLR(optimizers["generator"])}, optimizers, 8)
    with pytest.raises(UserError, match=r"'critik'.*did you mean 'critic'"):
        checked_schedulers({"critik": ConstantLR(optimizers["critic"])}, optimizers, 8)
    with pytest.raises(UserError, match="returns 'critic'"):
        checked_schedulers({"critic": ConstantLR(sgd(networks["critic"]))}, optimizers, 8)


def test_a_trainer_is_refused_when_it_is_built(build):
    class Misspelt(TrainerVanilla):
        def build_optimizers(self):
            return {"modle": sgd(self.networks["model"])}

    with pytest.raises(UserError, match=r"'modle'.*did you mean 'model'"):
        build(task=Misspelt)


def test_the_only_network_may_have_any_name(train):
    class Named(TrainerVanilla):
        def build_networks(self):
            return {"mlp": super().build_networks()["model"]}

    assert train("--n_epoch", 1, task=Named).progress.update == 8
