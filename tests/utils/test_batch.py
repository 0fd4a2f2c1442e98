"""Moving and cutting nested batches."""

from collections import namedtuple

import torch
from torch.nn.utils.rnn import pack_sequence

from utils.batch import cut, iterate_tensors, move_to

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
    class ToDevice:
        def __init__(self):
            self.edges = torch.zeros(2, 3)

        def to(self, device):
            return device

    assert move_to((ToDevice(),), "cpu", non_blocking=True) == ("cpu",)
    assert [tensor.shape for tensor in iterate_tensors([ToDevice()])] == [(2, 3)]
    packed = pack_sequence([torch.zeros(3), torch.zeros(2)])  # a named tuple that must not be rebuilt field by field
    assert type(move_to(packed, "cpu")) is type(packed)


def test_cut_takes_the_entries_of_samples_and_leaves_what_belongs_to_the_batch():
    batch = {"x": {"image": torch.arange(6).reshape(3, 2)}, "name": ["a", "b", "c"], "pair": ("u", "v"), "n": 3,
             "one": torch.tensor(7), "both": [torch.arange(3), torch.arange(3)], "numbers": (1, 2, 3)}  # fmt: skip
    part = cut(batch, 1, 2, num_samples=3)
    assert part["x"]["image"].tolist() == [[2, 3]] and part["name"] == ["b"] and part["numbers"] == (2,)
    assert part["pair"] == ("u", "v") and part["n"] == 3 and part["one"] == 7
    assert [tensor.tolist() for tensor in part["both"]] == [[1], [1]]


def test_cut_leaves_what_has_no_row_for_each_sample():
    batch = {"boxes": torch.zeros(5, 4), "edges": [torch.zeros(2, 7)], "labels": torch.arange(3)}
    part = cut(batch, 0, 1, num_samples=3)
    assert part["boxes"] is batch["boxes"] and part["edges"][0] is batch["edges"][0] and part["labels"].tolist() == [0]
