"""Own data that is whole, or lacks a part, is cut by the options of the split."""

from argparse import Namespace
from collections import Counter

import pytest
import torch
from torch.utils.data import Dataset

from data.data_entry import build_datasets
from engine.options.parser import Options
from engine.registry import REGISTERED, register_data
from extras.own_data.cut import Part, cut_parts
from utils.errors import UserError


class Numbers(Dataset):
    """Numbers, of which each is a class of three, in groups of two."""

    is_random = False

    def __init__(self, first: int, count: int):
        self.numbers = range(first, first + count)
        self.targets = torch.tensor([number // 2 % 3 for number in self.numbers])
        self.groups = [f"pair{number // 2}" for number in self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> int:
        return self.numbers[index]


def options(**given) -> Options:
    usual = {"train_val_sample_rate": 1.0, "test_sample_rate": None, "val_split": 0.25, "split_seed": 0}
    return Options(**usual | {"data_type": "mine:numbers", "asked_to_cut": ()} | given)


def numbers_of(parts: dict[str, Dataset]) -> dict[str, set[int]]:
    return {part: {dataset[index] for index in range(len(dataset))} for part, dataset in parts.items()}


@pytest.mark.parametrize("given", [("all",), ("train",), ("train", "test"), ("train", "val")])
def test_parts_are_disjoint_by_group_and_hold_the_classes_in_equal_shares(given):
    sizes = {"all": 240, "train": 240, "val": 24, "test": 24}
    datasets = {part: Numbers(1000 * place, sizes[part]) for place, part in enumerate(given)}
    parts = cut_parts(datasets, options())
    assert list(parts) == ["train", "val", "test"]
    assert all(parts[part] is datasets[part] for part in set(given) & {"val", "test"})
    found = numbers_of(parts)
    assert set.union(*found.values()) == set.union(*numbers_of(datasets).values())
    pairs = Counter(pair for numbers in found.values() for pair in {number // 2 for number in numbers})
    assert set(pairs.values()) == {1}
    for part in parts.values():
        counts = Counter(torch.as_tensor(part.targets).tolist())
        assert max(counts.values()) - min(counts.values()) <= 2
    num_train = {("all",): 154, ("train",): 154, ("train", "test"): 180, ("train", "val"): 204}[given]
    assert len(parts["train"]) == num_train
    assert f"using {len(parts['train'])} for train" in parts["train"].summary


def test_the_options_of_the_split_act_on_what_is_cut():
    whole = {"all": Numbers(0, 240)}
    assert numbers_of(cut_parts(whole, options())) == numbers_of(cut_parts(whole, options()))
    assert numbers_of(cut_parts(whole, options())) != numbers_of(cut_parts(whole, options(split_seed=1)))
    less = cut_parts(whole, options(train_val_sample_rate=100, test_sample_rate=20, val_split=10))
    assert {part: len(dataset) for part, dataset in less.items()} == {"train": 90, "val": 10, "test": 20}
    two = {"train": Numbers(0, 100), "test": Numbers(1000, 40)}
    assert len(cut_parts(two, options(test_sample_rate=0.5))["test"]) == 20
    only_test = cut_parts(whole, options(test_sample_rate=1.0))
    assert {part: len(dataset) for part, dataset in only_test.items()} == {"train": 0, "val": 0, "test": 240}


@pytest.mark.parametrize(
    ("given", "asked", "words"),
    [
        (("train", "val", "test"), "split_seed", "--split_seed has no effect: the data has all three parts of its own"),
        (("train", "val"), "val_split", "--val_split has no effect: the data has a val part of its own"),
        (("test",), None, "returned test: it must return a dictionary of three data sets"),
        ((), None, "returned no parts"),
    ],
)
def test_what_cannot_be_cut_is_refused(given, asked, words):
    with pytest.raises(UserError, match=words):
        cut_parts({part: Numbers(0, 20) for part in given}, options(asked_to_cut=[asked] if asked else []))


def test_too_few_samples_are_refused():
    with pytest.raises(UserError, match="The val part is empty: 2 groups with 4 samples"):
        cut_parts({"all": Numbers(0, 4)}, options())


def test_an_option_that_nobody_has_given_is_none_only_where_none_is_the_default(monkeypatch):
    monkeypatch.setattr("engine.registry.REGISTERED", {**REGISTERED, "data": {}})
    seen = []

    @register_data("told")
    def told(n_classes, n_channels: int | None = None, test_sample_rate: float = 0.5):
        seen.append((n_classes, n_channels, test_sample_rate))
        return {"all": Numbers(0, 40)}

    opt = Namespace(**vars(options(data_type="told", n_classes=None, n_channels=None)))
    assert list(build_datasets(opt)) == ["train", "val", "test"]
    assert seen == [(10, None, 1.0)]


def test_a_part_has_what_loading_needs_and_batches_if_the_whole_has():
    whole = Numbers(5, 10)
    whole.names = [f"n{number}" for number in whole.numbers]
    part = Part(whole, [1, 4])
    assert (part.names, part.groups, part.is_random, part[1]) == (["n6", "n9"], ["pair3", "pair4"], False, 9)
    assert not hasattr(part, "__getitems__")
    whole.__getitems__ = lambda indices: [whole[index] for index in indices]
    assert Part(whole, [1, 4]).__getitems__([1, 0]) == [9, 6]
