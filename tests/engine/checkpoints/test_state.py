"""A state comes back as it was, and that of another object is refused in one line."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from engine.checkpoints.checkpointer import Checkpointer
from engine.checkpoints.file import load_checkpoint, save_checkpoint
from engine.checkpoints.restore import set_state
from engine.checkpoints.state import PlainState, collect_state, get_state, is_expanded, plain
from engine.devices.process_group import Distributed
from engine.progress import Progress
from extras.averaging import Averaging
from tools.digest import digest
from utils.errors import UserError
from utils.optimizer import eager


def trained(make=torch.optim.Adam, parameters=None, **settings) -> torch.optim.Optimizer:
    """An optimizer after a step on matrices of 2 x 3 and a vector of 2."""
    parameters = parameters or [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2))]
    optimizer = make(parameters, lr=0.1, **settings)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


# ---- collect and restore ---------------------------------------------------------------------------------------------
def test_state_of_a_dictionary_of_objects_comes_back():
    networks, others = ({"generator": nn.Linear(2, 2), "critic": nn.Linear(2, 1)} for _ in range(2))
    set_state(others, get_state(networks), "The networks")
    assert torch.equal(networks["critic"].weight, others["critic"].weight)


def sgd(**settings) -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, **settings)


def cosine() -> lr_scheduler.LRScheduler:
    return lr_scheduler.CosineAnnealingLR(sgd(), 5)


@pytest.mark.parametrize(
    ("part", "state", "message"),
    [
        ({"model": nn.Linear(2, 2)}, {"generator": {}}, "The networks: it has generator, but this run has model"),
        ({"model": nn.Linear(2, 2)}, {}, "it has none, but this run has model"),
        ({"model": nn.Linear(2, 2)}, 3, "it has none, but this run has model"),
        ({"model": nn.Linear(2, 2)}, {"model": nn.Linear(3, 2).state_dict()}, r"weight is \(2, 3\), here \(2, 2\)"),
        (nn.Linear(2, 2), nn.Linear(2, 2, bias=False).state_dict(), "does not fit .*it lacks bias"),
        (nn.Linear(2, 2, bias=False), nn.Linear(2, 2).state_dict(), "does not fit .*it has bias"),
        (nn.Linear(2, 2), {"weight": 3, "bias": torch.ones(2)}, "does not fit"),
        (nn.Linear(2, 2), [1], "does not fit"),
        (nn.Linear(2, 2), None, "there is none"),
        (sgd(), {}, "does not fit"),
        (sgd(), {"param_groups": [3], "state": {}}, "does not fit"),
        (sgd(), trained(parameters=[torch.ones(2, 2)]).state_dict(), "doesn't match the size"),
        (sgd(), trained(parameters=list(nn.Linear(2, 2).parameters())).state_dict(), "groups lack momentum"),
        (sgd(), torch.optim.SGD([{"params": [torch.ones(2)]}] * 1 + [{"params": [torch.ones(2)]}]).state_dict(),
         "different number of parameter groups"),
        (cosine(), lr_scheduler.StepLR(sgd(), 5).state_dict(), "it lacks T_max.*; it has step_size"),
        (cosine(), cosine().state_dict() | {"step": None}, "it has step"),
    ],
)  # fmt: skip
def test_state_of_another_object_is_refused_in_one_line(part, state, message):
    with pytest.raises(UserError, match=f"The networks.*{message.removeprefix('The networks')}") as caught:
        set_state(part, state, "The networks")
    assert "\n" not in str(caught.value)


def test_parameter_groups_of_other_parameters_are_refused():
    first, second = ([{"params": [nn.Parameter(torch.ones(2))], "name": name}] for name in ("head", "body"))
    with pytest.raises(UserError, match="it has a parameter group 'head', here 'body'"):
        set_state(torch.optim.SGD(second), torch.optim.SGD(first).state_dict(), "The optimizer")


def test_error_while_loading_is_an_error_for_people():
    class Broken(PlainState):
        def load_state_dict(self, state):
            raise KeyError("best")

    with pytest.raises(UserError, match="The stopper does not fit this run's options: 'best'"):
        set_state(Broken(), {}, "The stopper")


def test_kernels_of_an_optimizer_stay_those_of_the_machine():
    """A state from another kind of device must not choose how this one steps."""
    fused = torch.optim.AdamW([nn.Parameter(torch.ones(2))], lr=0.1, fused=True)
    plain = torch.optim.AdamW([nn.Parameter(torch.ones(2))], lr=0.2)
    set_state({"model": fused}, get_state({"model": plain}), "It")
    assert (fused.param_groups[0]["fused"], fused.param_groups[0]["lr"]) == (True, 0.2)


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


# ---- plain -----------------------------------------------------------------------------------------------------------
def test_numpy_scalars_become_numbers_and_what_cannot_be_loaded_is_named():
    state = {np.int64(3): [np.float32(0.5), (np.bool_(True), np.str_("a"))], "rate": np.float64(0.1)}
    converted = plain(state, "it")
    assert converted == {3: [0.5, (True, "a")], "rate": 0.1}
    kinds = [type(value) for value in (*converted, converted[3][0], *converted[3][1], converted["rate"])]
    assert kinds == [int, str, float, bool, str, float]
    with pytest.raises(UserError, match=r"it\['a'\]\[1\]\['b'\] is of type range"):
        plain({"a": [1, {"b": range(2)}]}, "it")
    for value in (np.ones(2), print, nn.Linear(1, 1), {range(2): 0}):
        with pytest.raises(UserError, match=r"it\['a'\].* is of type"):
            plain({"a": value}, "it")


def test_what_torch_opens_stays_as_it_is():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = network.state_dict() | {"dtype": torch.float16, "set": {1}, "size": torch.Size([2]), "inf": float("inf")}
    assert list(plain(state, "it")) == list(state)
    assert plain(network.state_dict(), "it")._metadata == network.state_dict()._metadata
    numbers = [1] * 9
    assert plain({"many": numbers}, "it")["many"] is numbers


# ---- through a file --------------------------------------------------------------------------------------------------
def through_a_file(part, path):
    """The state of an object as a checkpoint gives it back."""
    save_checkpoint({"part": plain(get_state(part), "it")}, path)
    return load_checkpoint(path)["part"]


class Odd(torch.optim.SGD):
    """Has states of other shapes and types than their parameter, settings that are no numbers, a text as a key."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=np.float64(0.1))
        for group in self.param_groups:
            group |= {"best": float("inf"), "precision": torch.float16}
        self.state["all"] = {"count": np.int64(0), "sum": torch.zeros(2, dtype=torch.float64)}

    @torch.no_grad()
    def step(self):
        self.state["all"]["count"] += 1
        self.state["all"]["sum"] += 1 / 3
        for group in self.param_groups:
            group["best"] = min(group["best"], 2.0)
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    rows = len(parameter)
                    state["nested"] = {"matrices": [torch.eye(rows), torch.zeros(rows, dtype=torch.float64)]}
                    state["table"] = torch.zeros(256, dtype=torch.uint8)
                state["nested"]["matrices"][0] += parameter.grad.norm()
                state["nested"]["matrices"][1] += 1 / 3
                state["table"] += 7
                shift = state["nested"]["matrices"][1].sum() + state["table"].sum() + self.state["all"]["sum"].sum()
                parameter -= group["lr"] * state["nested"]["matrices"][0].sum() * shift * parameter.grad


def test_two_halves_with_an_odd_optimizer_are_the_whole(tmp_path):
    networks = [nn.Linear(3, 2), nn.Linear(3, 2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [Odd(network.parameters()) for network in networks]

    def step(number):
        for parameter in networks[number].parameters():
            parameter.grad = torch.full_like(parameter, 1e-5)
        optimizers[number].step()

    for _ in range(3):
        step(0)
    set_state(networks[1], through_a_file(networks[0], tmp_path / "a.pth"), "It")
    set_state(optimizers[1], through_a_file(optimizers[0], tmp_path / "a.pth"), "It")
    for _ in range(2):
        step(0)
        step(1)
    assert digest(networks[0].state_dict()) == digest(networks[1].state_dict())
    ends = [digest(plain(optimizer.state_dict(), "it")) for optimizer in optimizers]
    assert ends[0] == ends[1]


def test_buffers_of_any_kind_come_back(tmp_path):
    def network():
        module = nn.Linear(1, 1)
        module.hidden = nn.Parameter(torch.tensor([float("-inf")]), requires_grad=False)
        for name, buffer in (
            ("nan", torch.tensor([float("nan")])), ("sparse", torch.zeros(2, 2).to_sparse()),
            ("expanded", torch.zeros(1).expand(99, 99)), ("bank", torch.zeros(0, 2)),
        ):  # fmt: skip
            module.register_buffer(name, buffer)
        return module

    first, second = network(), network()
    first.bank = torch.ones(3, 2)
    first.sparse = torch.eye(2).to_sparse()
    first.expanded = torch.ones(1).expand(99, 99)
    set_state(second, through_a_file(first, tmp_path / "a.pth"), "It")
    assert digest(first.state_dict()) == digest(second.state_dict())
    assert torch.equal(second.sparse.to_dense(), torch.eye(2)) and second.bank.shape == (3, 2)


def test_tied_weights_may_unfold_to_many_times_the_file(tmp_path):
    layer = nn.Linear(100, 100)
    tied, other = (nn.Sequential(*[part] * 20) for part in (layer, nn.Linear(100, 100)))
    set_state(other, through_a_file(tied, tmp_path / "a.pth"), "It")
    assert torch.equal(other[7].weight, layer.weight)


class Compiled(nn.Module):
    """Names its module as torch.compile does, whose import takes seconds."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._orig_mod = module


@pytest.mark.parametrize("wrap", [nn.DataParallel, Compiled])
def test_names_that_wrappers_give_are_passed_over_in_both_directions(wrap):
    for first, second in ((wrap(nn.Linear(2, 2)), nn.Linear(2, 2)), (nn.Linear(2, 2), wrap(nn.Linear(2, 2)))):
        set_state(second, first.state_dict(), "It")
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
        averages = [Averaging({"model": network}, decay=0.5) for network in (first, second)]
        set_state(averages[1], averages[0].state_dict(), "It")
    with pytest.raises(UserError, match=r"it lacks weight, bias; it has module\.0"):
        set_state(nn.Linear(2, 2), nn.DataParallel(nn.Sequential(nn.Linear(2, 2))).state_dict(), "It")


def test_part_that_cannot_be_saved_leaves_the_checkpoints_before_it(tmp_path):
    """No checkpoint is pruned for one that cannot be opened: the state is refused before it is written."""
    stopper = PlainState(best=0.5)
    parts = {"stopper": stopper, "progress": Progress(update=1)}
    checkpointer = Checkpointer(tmp_path, "Net", keep=1)
    checkpointer.save(collect_state(parts, Distributed()), "last")
    before = (tmp_path / "Net_last_ckpt.pth").read_bytes()
    stopper["best"] = {3: range(2)}
    with pytest.raises(UserError, match=r"^The run cannot be saved: stopper\['best'\]\[3\] is of type range\. "):
        checkpointer.save(collect_state(parts, Distributed()), "last")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("optimizer_class", [torch.optim.NAdam, torch.optim.ASGD])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_optimizer_without_the_compiler_goes_on_bit_for_bit(optimizer_class, dtype):
    """The state is of another type than the parameters: torch would cast it to theirs."""
    first = trained(eager(optimizer_class), [nn.Parameter(torch.ones(3, dtype=dtype))])
    second = eager(optimizer_class)([nn.Parameter(torch.ones(3, dtype=dtype))], lr=0.1)
    set_state(second, copy.deepcopy(first.state_dict()), "It")
    pairs = zip(*(each.state_dict()["state"][0].values() for each in (first, second)), strict=True)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs if torch.is_tensor(a))


def test_expanded_slice_of_a_larger_tensor_is_written_out():
    bank = torch.arange(200.0).reshape(50, 4)[:1].expand(50, 4)
    assert is_expanded(bank) and plain({"bank": bank}, "It")["bank"].stride() == (4, 1)
    other = nn.Module()
    other.register_buffer("bank", torch.zeros(50, 4)[:1].expand(50, 4))
    set_state(other, {"bank": torch.ones(50, 4)}, "It")
    assert torch.equal(other.bank, torch.ones(50, 4))
    assert not any(map(is_expanded, (torch.ones(3, 4), torch.ones(4)[:2], torch.ones(1, 4).expand(1, 4))))


class Population(PlainState):
    """A part with networks of its own, which are no averages."""

    networks = {"model": nn.Linear(2, 2)}


def test_part_with_networks_of_its_own_is_no_average():
    population = Population()
    set_state({"population": population}, {"population": {"scores": [0.5]}}, "It")
    assert population == {"scores": [0.5]}
