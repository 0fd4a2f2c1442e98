"""Moving and counting."""

import doctest
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from utils import func
from utils.func import count_parameters, count_samples, cut, frozen, layer_table, move_to

Pair = namedtuple("Pair", ["image", "name"])


def test_move_to_walks_nested_structures_and_keeps_their_types():
    zeros = torch.zeros(2)
    batch = {"pair": Pair(zeros, "a"), "list": [zeros, (zeros, 3)], "none": None, "text": "b", "number": 1.5}
    moved = move_to(batch, "meta")
    assert isinstance(moved["pair"], Pair) and moved["pair"].image.is_meta and moved["pair"].name == "a"
    assert isinstance(moved["list"], list) and moved["list"][0].is_meta
    assert isinstance(moved["list"][1], tuple) and moved["list"][1][0].is_meta and moved["list"][1][1] == 3
    assert (moved["none"], moved["text"], moved["number"]) == (None, "b", 1.5)
    assert not batch["pair"].image.is_meta  # the batch itself is left alone


def test_move_to_lets_things_move_themselves():
    class Custom:
        def to(self, device, non_blocking):
            return (device, non_blocking)

    assert move_to([Custom()], "cpu", non_blocking=True) == [("cpu", True)]
    packed = pack_sequence([torch.zeros(3), torch.zeros(2)])  # a named tuple that must not be rebuilt field by field
    assert type(move_to(packed, "cpu")) is type(packed)


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(5, 2),
        (torch.zeros(5, 2), torch.zeros(3)),
        {"name": ["x"] * 9, "scale": torch.tensor(2.0), "image": torch.zeros(5)},
        [Pair([], "a"), {"deep": (torch.zeros(5),)}],
    ],
)
def test_count_samples_is_the_length_of_the_first_tensor(batch):
    assert count_samples(batch) == 5


@pytest.mark.parametrize(("batch", "kind"), [("text", "str"), ([1, 2], "list"), ({"x": torch.tensor(1)}, "dict")])
def test_count_samples_without_a_tensor_names_what_it_got(batch, kind):
    with pytest.raises(TypeError, match=f"type {kind}:"):
        count_samples(batch)


def test_count_parameters_separates_frozen_ones_and_counts_shared_ones_once():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    first.bias.requires_grad_(False)
    assert count_parameters(nn.Sequential(first, second)) == (9 + 3 + 3, 9 + 3)


class Token(nn.Module):
    """Has a child and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(()))
        self.child = nn.Linear(2, 1000)


def test_layer_table_lists_every_owner_of_parameters_in_aligned_columns():
    lines = layer_table(nn.Sequential(Token(), nn.ReLU())).splitlines()
    assert [line.split() for line in lines] == [
        ["layer", "type", "shapes", "parameters"],
        ["0", "Token", "1", "1"],
        ["0.child", "Linear", "1000x2,", "1000", "3,000"],
        ["1", "ReLU", "0"],
        ["total", "3,001", "parameters,", "3,001", "trainable"],
    ]
    assert len({len(line) for line in lines[:4]}) == 1


def test_layer_table_stops_at_max_rows_and_says_so():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(7)))
    lines = layer_table(model, max_rows=5).splitlines()
    assert len(lines) == 1 + 5 + 2
    assert lines[-2:] == ["... and 2 more layers", "total 42 parameters, 42 trainable"]
    assert "more layers" not in layer_table(model, max_rows=7)


def test_examples_in_the_docstrings():
    assert doctest.testmod(func).failed == 0


def test_cut_takes_the_entries_of_samples_and_leaves_what_belongs_to_the_batch():
    batch = {"x": {"image": torch.arange(6).reshape(3, 2)}, "name": ["a", "b", "c"], "pair": ("u", "v"), "n": 3,
             "one": torch.tensor(7), "both": [torch.arange(3), torch.arange(3)], "numbers": (1, 2, 3)}  # fmt: skip
    part = cut(batch, 1, 2)
    assert part["x"]["image"].tolist() == [[2, 3]] and part["name"] == ["b"] and part["numbers"] == (2,)
    assert part["pair"] == ("u", "v") and part["n"] == 3 and part["one"] == 7
    assert [tensor.tolist() for tensor in part["both"]] == [[1], [1]]


def test_a_frozen_module_passes_gradients_on_and_takes_none():
    module, images = torch.nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    module.bias.requires_grad_(False)
    with frozen(module) as same:
        same(images).sum().backward()
    assert images.grad is not None and module.weight.grad is None
    assert module.weight.requires_grad and not module.bias.requires_grad
    with pytest.raises(KeyError), frozen(module):
        raise KeyError
    assert module.weight.requires_grad
