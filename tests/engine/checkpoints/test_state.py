"""A state comes back as it was, one that does not fit is refused whole, and a digest sees every bit."""

import copy
import hashlib
import math
import struct

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from engine.checkpoints.state import check_plain, digest, digests, get_state, leaves, set_state
from utils.errors import UserError

NAN, INF = float("nan"), float("inf")


class Part:
    """Anything with a state."""

    def __init__(self, **state):
        self.state = state

    def state_dict(self) -> dict:
        return self.state

    def load_state_dict(self, state: dict) -> None:
        self.state = state


def network(size: int = 2) -> nn.Module:
    torch.manual_seed(size)
    return nn.Sequential(nn.Linear(size, 2), nn.BatchNorm1d(2))


def trained(make=torch.optim.Adam, parameters=None, **settings) -> torch.optim.Optimizer:
    """An optimizer after a step on matrices of 2 x 3 and a vector of 2."""
    parameters = parameters or [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2))]
    optimizer = make(parameters, lr=0.1, **settings)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


# ---- give and take ---------------------------------------------------------------------------------------------------
def test_state_of_a_dictionary_of_objects_comes_back():
    networks, others = ({"generator": nn.Linear(2, 2), "critic": nn.Linear(2, 1)} for _ in range(2))
    set_state(others, get_state(networks), "The networks")
    assert torch.equal(networks["critic"].weight, others["critic"].weight)


@pytest.mark.parametrize(
    ("part", "state", "message"),
    [
        ({"model": nn.Linear(2, 2)}, {"generator": {}}, "The networks: it has generator, but this run has model"),
        ({"model": nn.Linear(2, 2)}, {}, "it has none, but this run has model"),
        ({"model": nn.Linear(2, 2)}, 3, "it has none, but this run has model"),
        ({"model": nn.Linear(2, 2)}, {"model": nn.Linear(3, 2).state_dict()}, r"weight is \(2, 3\), here \(2, 2\)"),
        (nn.Linear(2, 2), nn.Linear(2, 2, bias=False).state_dict(), "does not fit .*it lacks bias"),
        (nn.Linear(2, 2, bias=False), nn.Linear(2, 2).state_dict(), "does not fit .*it has bias"),
        (nn.Linear(2, 2), {"weight": 3, "bias": torch.ones(2)}, "weight is of type int"),
        (nn.Linear(2, 2), [1], "its state is of type list"),
        (torch.optim.SGD(nn.Linear(2, 2).parameters()), {"param_groups": [], "state": {}}, "does not fit"),
        (torch.optim.SGD(nn.Linear(2, 2).parameters()), {"param_groups": [3], "state": {}}, "no list of parameter"),
        (torch.optim.SGD(nn.Linear(2, 2).parameters()), {}, "no list of parameter groups"),
        (Part(), {"best": [0.5, NAN]}, r"\['best'\]\[1\] is NaN"),
    ],
)  # fmt: skip
def test_state_that_does_not_fit_is_refused_in_one_line(part, state, message):
    with pytest.raises(UserError, match=f"The networks.*{message.removeprefix('The networks')}") as caught:
        set_state(part, state, "The networks")
    assert "\n" not in str(caught.value)


def test_error_while_loading_is_an_error_for_people():
    class Broken(Part):
        def load_state_dict(self, state):
            raise KeyError("best")

    with pytest.raises(UserError, match="The stopper does not fit this run's options: 'best'"):
        set_state(Broken(), {}, "The stopper")


# ---- refused before anything is changed ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("0.weight", NAN, "the parameter 0.weight holds infinite values or NaN"),
        ("0.bias", -INF, "the parameter 0.bias holds"),
        ("1.running_var", NAN, "the buffer 1.running_var holds NaN"),
    ],
)
def test_network_with_numbers_that_cannot_be_is_refused_whole(name, value, message):
    networks, others = {"a": network(), "b": network()}, {"a": network(3), "b": network()}
    state = copy.deepcopy(get_state(networks))
    state["b"][name].view(-1)[1] = value
    state["a"]["0.bias"] += 1
    before = digest(get_state(networks))
    with pytest.raises(UserError, match=f"The networks, 'b', .*{message}"):
        set_state(networks, state, "The networks")
    assert digest(get_state(networks)) == before  # the first, which was sound, is not changed either
    with pytest.raises(UserError, match="'a'"):
        set_state(others, state, "The networks")


def test_infinite_buffer_is_a_mask():
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.tensor([0.0, -INF]))
    set_state(module, module.state_dict(), "The network")


def test_shared_and_frozen_parameters_are_parameters():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    module[1].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    state["1.weight"][0, 0] = INF
    with pytest.raises(UserError, match=r"parameter 1\.weight"):
        set_state(module, state, "The network")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["state"][0].update(exp_avg=torch.ones(3, 2)), r"\['exp_avg'\] of parameter 0 is \(3, 2"),
        (lambda state: state["state"][1].update(exp_avg=torch.zeros(3)), r"\['exp_avg'\] of parameter 1 is \(3,\)"),
        (lambda state: state["state"][0]["exp_avg_sq"].fill_(INF), r"\['exp_avg_sq'\] of parameter 0 holds"),
        (lambda state: state["state"][1]["step"].fill_(NAN), r"\['step'\] of parameter 1 holds"),
        (lambda state: state["state"].update({2: {}}), "state of parameter 2"),
        (lambda state: state["param_groups"][0].update(lr=NAN), r"\['lr'\] of group 0 is nan"),
        (lambda state: state["param_groups"][0].update(lr=-0.1), "learning rate of group 0 is -0.1"),
        (lambda state: state["param_groups"][0].update(lr=torch.tensor(-0.1)), "learning rate of group 0"),
        (lambda state: state["param_groups"][0].update(lr="fast"), "learning rate of group 0 is 'fast'"),
        (lambda state: state["param_groups"][0].update(betas=(0.9, INF)), r"\['betas'\]\[1\] of group 0 is inf"),
        (lambda state: state["param_groups"][0].update(params=[0, "x"]), "no list of parameter groups"),
        (lambda state: state["param_groups"][0].update(lr=torch.tensor([0.1, 0.2])), r"\['lr'\] is of type Tensor"),
        (lambda state: state["param_groups"][0].update(betas=(0.9,)), r"\['betas'\] has 1 entries, not 2 of group 0"),
        (lambda state: state["param_groups"][0].update(betas=(0.9, "x")), r"\['betas'\]\[1\] is of type str"),
        (lambda state: state["param_groups"][0].update(betas=0.9), r"\['betas'\] is of type float, not tuple"),
        (lambda state: state["param_groups"][0].update(eps=None), r"\['eps'\] is of type NoneType, not float"),
        (lambda state: state["param_groups"][0].pop("weight_decay"), "it lacks weight_decay of group 0"),
        (lambda state: state["param_groups"][0].update(surplus=1), "it has surplus of group 0"),
        (lambda state: state["param_groups"].append({"params": []}), "it has 2 parameter groups, here 1"),
        (lambda state: state["state"].update({0: 5}), "the state of parameter 0 is of type int"),
        (lambda state: state["state"][0].update(exp_avg="x"), r"\['exp_avg'\] of parameter 0 is of type str"),
    ],
)
def test_optimizer_that_would_spoil_the_weights_is_refused(change, message):
    optimizer = trained()
    state, before = copy.deepcopy(optimizer.state_dict()), digest(optimizer.state_dict())
    set_state(optimizer, copy.deepcopy(state), "The optimizer")
    change(state)
    with pytest.raises(UserError, match=f"The optimizer does not fit this run's options: .*{message}"):
        set_state(optimizer, state, "The optimizer")
    assert digest(optimizer.state_dict()) == before


@pytest.mark.parametrize(
    "make",
    [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop,
     torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.Adamax, torch.optim.ASGD, torch.optim.Rprop,
     torch.optim.Adafactor],
)  # fmt: skip
def test_states_of_all_optimizers_come_back(make):
    first, second = trained(make), trained(make)
    first.step()
    set_state({"model": second}, copy.deepcopy({"model": first.state_dict()}), "The optimizers")
    assert digest(first.state_dict()) == digest(second.state_dict())


SCHEDULERS = {
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda update: 1.0),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=5),
    "multi-step": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [1, 3]),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 5),
    "restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
    "chain": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.ConstantLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, 5)], [2]
    ),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("num_steps", [0, 3])
def test_states_of_all_schedulers_come_back(make, num_steps):
    first, second = make(trained()), make(trained())
    for number in range(num_steps):
        first.optimizer.step() if hasattr(first, "optimizer") else None
        first.step(*([number] if isinstance(first, lr_scheduler.ReduceLROnPlateau) else []))
    set_state({"model": second}, copy.deepcopy({"model": first.state_dict()}), "The schedulers")
    assert digest(first.state_dict()) == digest(second.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"get_lr": 5}, "it has get_lr"),
        ({"step": None}, "it has step"),
        ({"base_lrs": [NAN]}, r"\['base_lrs'\]\[0\] is nan"),
        ({"base_lrs": [0.1, 0.1]}, r"\['base_lrs'\] has 2 entries, not 1"),
        ({"base_lrs": ["x"]}, r"\['base_lrs'\]\[0\] is of type str, not float"),
        ({"last_epoch": "x"}, r"\['last_epoch'\] is of type str, not int"),
        ({"last_epoch": None}, r"\['last_epoch'\] is of type NoneType, not int"),
        ({"last_epoch": INF}, r"\['last_epoch'\] is inf"),
        ({"lr_lambdas": []}, r"\['lr_lambdas'\] has 0 entries"),
    ],
)
def test_scheduler_that_would_fail_later_is_refused_at_once(change, message):
    scheduler = SCHEDULERS["lambda"](trained())
    state = scheduler.state_dict()
    with pytest.raises(UserError, match=f"The scheduler does not fit this run's options: {message}"):
        set_state(scheduler, state | change, "The scheduler")
    with pytest.raises(UserError, match="it lacks last_epoch"):
        set_state(scheduler, {name: value for name, value in state.items() if name != "last_epoch"}, "The scheduler")
    assert digest(scheduler.state_dict()) == digest(state)


@pytest.mark.parametrize("may_hold_nan", [True, False])
@pytest.mark.parametrize(
    ("own", "state", "message"),
    [
        ({"best": 0.5}, {"best": "high"}, r"\['best'\] is of type str, not float"),
        ({"best": "high"}, {"best": 0.5}, r"\['best'\] is of type float, not str"),
        ({"best": [0.5]}, {"best": None}, r"\['best'\] is of type NoneType, not list"),
        ({"a": {"b": torch.ones(1)}}, {"a": {"b": 1.0}}, r"\['a'\]\['b'\] is of type float, not Tensor"),
        ({"a": {}}, {"a": 3}, r"\['a'\] is of type int, not dict"),
        ({"best": 0}, {"best": 0.5}, None),
        ({"best": None}, {"best": 0.5}, None),
        ({"best": 0.5}, {"best": None}, None),
        ({"rows": []}, {"rows": [1, "x"]}, None),
        ({"rows": (1, 2)}, {"rows": ["x"]}, None),
        ({"a": {}}, {"a": {"b": 3}, "c": 4}, None),
    ],
)
def test_types_of_other_objects_stay(own, state, message, may_hold_nan):
    part = Part(**own)
    if message is None:
        set_state(part, state, "The part", may_hold_nan)
        assert part.state == state
        return
    with pytest.raises(UserError, match=f"The part does not fit this run's options: {message}"):
        set_state(part, state, "The part", may_hold_nan)
    assert part.state == own


def test_several_groups_are_numbered_through():
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    optimizer = trained(parameters=parameters)
    groups = torch.optim.Adam([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.2}])
    groups.step()
    set_state(groups, copy.deepcopy(groups.state_dict()), "The optimizer")
    with pytest.raises(UserError, match="does not fit"):
        set_state(groups, optimizer.state_dict(), "The optimizer")


def test_nan_and_infinity_of_other_objects():
    stopper = Part()
    set_state(stopper, {"best": -INF}, "The stopper")  # before there is a score
    assert stopper.state == {"best": -INF}
    with pytest.raises(UserError, match="NaN"):
        set_state(stopper, {"best": NAN}, "The stopper")
    assert stopper.state == {"best": -INF}
    set_state(stopper, {"best": NAN}, "The callbacks", may_hold_nan=True)
    assert math.isnan(stopper.state["best"])


# ---- plain -----------------------------------------------------------------------------------------------------------
def test_what_a_checkpoint_cannot_hold_is_named():
    check_plain({"a": [1, 2.0, None, True, "x", (torch.ones(1), nn.Parameter(torch.ones(1)))]}, "it")
    with pytest.raises(TypeError, match=r"it\['a'\]\[1\]\['b'\] is of type set"):
        check_plain({"a": [1, {"b": {2}}]}, "it")


def test_leaves_are_named_by_their_place():
    assert dict(leaves({"a": (1, [2]), 3: {}, "b": None})) == {"['a'][0]": 1, "['a'][1][0]": 2, "['b']": None}


# ---- digests ---------------------------------------------------------------------------------------------------------
QUIET, OTHER = (struct.unpack(">d", bytes.fromhex(f"7ff800000000000{last}"))[0] for last in "12")
DIFFERENT = [
    None, False, True, 0, 1, -1, 2**70, 0.0, -0.0, 1.0, INF, QUIET, OTHER, "", "1", "None", "a", (), [], {}, [[]], [()],
    [1], (1,), {1: 1}, {"1": 1}, {"a": 1}, {"a": 2}, {"b": 1}, {"a": None}, {"a": {}}, ["a", "b"], ["b", "a"], ["ab"],
    ["a", "b", ""], ["a", ["b"]], [["a"], "b"], {"a": "b", "c": "d"}, {"a": "d", "c": "b"}, "str 1:a", ["str 1:a"],
    torch.tensor(1), torch.tensor(1.0), torch.tensor([1.0]), torch.tensor([[1.0]]), torch.tensor([1.0, 0.0]),
    torch.tensor([0.0]), torch.tensor([-0.0]), torch.tensor([True]), torch.tensor([1], dtype=torch.uint8),
    torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0], dtype=torch.float16), torch.zeros(0),
    torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(6), torch.tensor([NAN]),
    torch.tensor([1 + 2j]), torch.tensor([1 - 2j]),
    torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32),
]  # fmt: skip


def test_different_values_have_different_digests():
    found = [digest(value) for value in DIFFERENT]
    assert len(set(found)) == len(DIFFERENT) and {len(text) for text in found} == {len(hashlib.sha256().hexdigest())}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({0: "x", 1: "y"}, {1: "y", 0: "x"}),
        (torch.arange(6).reshape(2, 3), torch.arange(6).reshape(2, 3).t().contiguous().t()),
        (torch.zeros(2, 3), torch.zeros(1).expand(2, 3)),
        (torch.arange(3), torch.arange(9)[3:6] - 3),
        (torch.arange(3), torch.arange(6)[::2] // 2),
        (torch.tensor([1 - 2j]), torch.tensor([1 + 2j]).conj()),
        (torch.ones(2), nn.Parameter(torch.ones(2))),
        (network().state_dict(), dict(network().state_dict())),
        ([NAN], [NAN]),
    ],
)
def test_what_is_the_same_has_the_same_digest(a, b):
    assert digest(a) == digest(b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.complex64, torch.uint16])
def test_every_bit_of_a_tensor_counts(dtype):
    bits = torch.zeros(8, dtype=torch.uint8)
    before = digest(bits.view(dtype))
    bits[5] = 1
    assert digest(bits.view(dtype)) != before


def test_digest_is_the_same_in_every_process_and_version():
    expected = "6acee2a376f1dc6df23c7ba3b4800e8d586bacea98186d8a32ede1db5b93a531"
    assert digest({"a": [1, 2.5, None], "b": torch.arange(3)}) == expected


@pytest.mark.parametrize("value", [{1, 2}, b"x", range(2), {"a": [object()]}, torch.Size([1])])
def test_what_a_checkpoint_cannot_hold_has_no_digest(value):
    with pytest.raises(TypeError, match="the value"):
        digest(value)


def test_run_is_the_digest_of_what_decides_how_training_goes_on():
    state = {"networks": network().state_dict(), "random": [1], "seconds": {"train": 1.0}, "options": {"seed": 1},
             "callbacks": {}, "format": 1, "progress": {"epoch": 1}}  # fmt: skip
    before = digests(state)
    assert list(before) == [*state, "run"] and before["random"] == digest([1])
    for name in state:
        after = digests({**state, name: "another"})
        differing = {part for part in before if before[part] != after[part]}
        assert differing == ({name} if name in ("seconds", "options", "callbacks", "format") else {name, "run"})


def test_kernels_of_an_optimizer_stay_those_of_the_machine():
    """A state from another kind of device must not choose how this one steps."""
    fused = torch.optim.AdamW([nn.Parameter(torch.ones(2))], lr=0.1, fused=True)
    plain = torch.optim.AdamW([nn.Parameter(torch.ones(2))], lr=0.2)
    set_state({"model": fused}, get_state({"model": plain}), "It")
    assert (fused.param_groups[0]["fused"], fused.param_groups[0]["lr"]) == (True, 0.2)
