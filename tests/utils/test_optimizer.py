"""The classes without the compiler are those of torch to the bit, and do not import it."""

import copy
import pickle

import pytest
import torch
from torch import nn

from utils import optimizer as own

CLASSES = ("Adam", "AdamW", "NAdam", "RAdam", "SGD", "RMSprop", "Adagrad")
SETTINGS = {"SGD": {"momentum": 0.9}}
LIFE = """
import sys, torch
from torch import nn
from utils import optimizer as own

def live(module, name):
    network = nn.Linear(2, 2)
    optimizer = getattr(module, name)([{"params": [network.weight]}], lr=0.1)
    optimizer.add_param_group({"params": [network.bias]})
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1.0)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
    return "torch._dynamo" in sys.modules

print([name for name in sys.argv[1:] if live(own, name)], live(torch.optim, "SGD"))
"""


def trained(module, name: str, updates: int = 5):
    """Return a network and its optimizer after some updates, the last of them after a resume from the state."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    make = getattr(module, name)
    optimizer = make(network.parameters(), lr=0.1, weight_decay=0.1, **SETTINGS.get(name, {}))
    for update in range(updates):
        if update == updates - 1:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = make(network.parameters(), lr=0.5)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        network(torch.rand(5, 3)).square().sum().backward()
        optimizer.step()
    return network, optimizer


@pytest.mark.parametrize("name", CLASSES)
def test_steps_and_states_are_those_of_torch_to_the_bit(name, differences):
    (ours, our_optimizer), (theirs, their_optimizer) = trained(own, name), trained(torch.optim, name)
    assert differences(ours.state_dict(), theirs.state_dict()) == []
    assert differences(our_optimizer.state_dict(), their_optimizer.state_dict()) == []
    assert len(our_optimizer.state_dict()["state"]) == 4  # there was something to compare
    assert repr(our_optimizer) == repr(their_optimizer) and isinstance(our_optimizer, getattr(torch.optim, name))


@pytest.mark.parametrize("name", ["Adadelta", "Adafactor", "LBFGS", "Adamax", "ASGD", "Rprop"])
def test_one_of_any_other_class_steps_as_torchs_own(name):
    weights = []
    for kind in (own.eager(getattr(torch.optim, name)), getattr(torch.optim, name)):
        torch.manual_seed(0)
        weights.append(nn.Parameter(torch.randn(3, 3)))
        optimizer = kind(weights[-1:])

        def closure(weight=weights[-1], optimizer=optimizer):
            optimizer.zero_grad()
            loss = weight.square().sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
    assert torch.equal(*weights)


def test_no_part_of_an_optimizers_life_imports_the_compiler(fresh_python):
    """That torch's own still do is the reason for this file: if that changes, it can go."""
    done = fresh_python("-c", LIFE, *CLASSES)
    assert (done.returncode, done.stdout.strip()) == (0, "[] True"), done.stderr


def test_hooks_closures_and_schedulers_are_served_as_by_torch():
    weight, calls = nn.Parameter(torch.ones(1)), []
    optimizer = own.SGD([weight], lr=0.5)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.5**update)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0 and calls == ["before", "after"]
    scheduler.step()
    assert weight.item() == 0.0 and optimizer.param_groups[0]["lr"] == 0.25
    assert torch.is_grad_enabled()


def test_gradients_are_recorded_again_after_a_step_that_fails():
    weight = nn.Parameter(torch.ones(1))

    def closure():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        own.Adam([weight]).step(closure)
    assert torch.is_grad_enabled()


def test_an_optimizer_can_be_pickled():
    _, optimizer = trained(own, "AdamW")
    again = pickle.loads(pickle.dumps(optimizer))
    assert type(again) is own.AdamW and again.state_dict()["param_groups"][0]["lr"] == 0.1


def test_a_network_can_be_compiled_beside_it():
    network = nn.Linear(2, 1)
    network.compile(backend="eager")
    optimizer = own.SGD(network.parameters(), lr=0.1)
    before = network.weight.clone()
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(network.weight, before - 0.1)
