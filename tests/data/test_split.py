"""The cut of a data set into disjoint parts, whole groups each."""

import random

import numpy as np
import pytest
import torch

from data.split import amount, flatten, shuffled_groups, split_by_group, take
from utils.errors import UserError

VIEWS = [f"car{index // 16}" for index in range(320)]  # 20 cars with 16 views each


def cut(groups, train_val=1.0, test=0.2, val=0.25, seed=0, strata=None):
    return split_by_group(groups, train_val, test, val, seed, strata)


def check(parts, groups):
    """Every sample in one part at most, and no group in two."""
    everything = parts["train"] + parts["val"] + parts["test"]
    assert len(everything) == len(set(everything))
    assert set(everything) <= set(range(len(groups)))
    owners = {}
    for name, indices in parts.items():
        assert indices == sorted(indices)
        for index in indices:
            assert owners.setdefault(groups[index], name) == name


def test_parts_are_disjoint_and_hold_everything():
    parts = cut(VIEWS)
    check(parts, VIEWS)
    assert sorted(parts["train"] + parts["val"] + parts["test"]) == list(range(320))


def test_groups_stay_whole():
    parts = cut(VIEWS, train_val=0.5)
    for indices in parts.values():
        cars = [VIEWS[index] for index in indices]
        assert all(cars.count(car) == 16 for car in cars)


def test_fractions_and_counts_give_the_same_sizes():
    by_fraction = cut(VIEWS, train_val=0.5, test=0.2, val=0.25)
    by_count = cut(VIEWS, train_val=128, test=64, val=32)
    assert by_fraction == by_count
    assert {name: len(indices) for name, indices in by_count.items()} == {"train": 96, "val": 32, "test": 64}


def test_one_means_all_and_above_one_is_a_count():
    assert amount(1, 200, "--x") == amount(1.0, 200, "--x") == 200
    assert amount(2, 200, "--x") == 2
    assert amount(0.5, 200, "--x") == 100
    assert amount(0, 200, "--x") == 0


def test_train_val_sample_rate_is_a_share_of_what_the_test_part_left():
    parts = cut(list(range(1000)), train_val=0.5, test=0.2, val=0.25)
    assert (len(parts["test"]), len(parts["val"]), len(parts["train"])) == (200, 100, 300)


def test_test_part_does_not_depend_on_the_other_amounts():
    assert cut(VIEWS, train_val=0.3, val=0.5)["test"] == cut(VIEWS, train_val=1.0, val=0.1)["test"]


def test_amounts_are_rounded_to_whole_groups_but_at_least_one():
    parts = cut(VIEWS, test=1e-2, val=1e-2)  # about 3 samples; a car has 16
    assert (len(parts["test"]), len(parts["val"])) == (16, 16)


def test_cut_falls_nearest_to_the_count():
    groups = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert take(groups, 4, "--x")[0] == groups[:1]
    assert take(groups, 5, "--x")[0] == groups[:2]
    assert take(groups, 0, "--x") == ([], groups)
    assert flatten(groups[1:]) == [3, 4, 5, 6, 7, 8]


def test_zero_test_rate_means_that_the_test_part_is_elsewhere():
    parts = cut(VIEWS, test=0)
    assert parts["test"] == []
    assert len(parts["train"]) + len(parts["val"]) == 320


@pytest.mark.parametrize(
    ("groups", "amounts", "part"),
    [
        (["one"] * 50, {"test": 0}, "train"),  # one group cannot be in two parts
        (VIEWS, {"val": 0}, "val"),
        (VIEWS, {"val": 1.0}, "train"),
        (VIEWS, {"train_val": 0}, "train"),
        (list(range(4)), {"test": 0.01}, "test"),
        ([], {"test": 0.2}, "train"),
    ],
)
def test_empty_part_is_an_error_that_names_it(groups, amounts, part):
    with pytest.raises(UserError, match=f"The {part} part is empty.*--"):
        cut(groups, **amounts)


@pytest.mark.parametrize("groups", [VIEWS, ["one"]])
def test_all_may_be_for_test(groups):
    assert cut(groups, test=1.0) == {"train": [], "val": [], "test": list(range(len(groups)))}


@pytest.mark.parametrize(
    ("amounts", "option"),
    [
        ({"test": 321}, "--test_sample_rate 321"),
        ({"train_val": 300}, "--train_val_sample_rate 300"),
        ({"val": 300}, "--val_split 300"),
    ],
)
def test_count_beyond_the_data_is_an_error_that_names_the_option(amounts, option):
    with pytest.raises(UserError, match=option):
        cut(VIEWS, **amounts)


def test_cut_is_a_function_of_the_seed_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = cut(VIEWS, seed=5)
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    assert cut(VIEWS, seed=5) == first
    assert cut(VIEWS, seed=6) != first


def test_global_random_state_is_left_alone():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    cut(VIEWS)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_cut_of_a_seed_stays_what_it_was():
    """A changed shuffle would silently mix earlier runs' test samples into training."""
    assert cut(list("abcdefgh"), test=0.25, val=0.25, seed=0) == {"train": [0, 1, 5, 7], "val": [3, 6], "test": [2, 4]}


def test_every_stratified_prefix_holds_the_classes_within_one_sample():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], 50)).tolist()
    order = flatten_in_order(shuffled_groups(range(200), 3, labels))
    for count in range(1, 201):
        held = np.bincount(np.asarray(labels)[order[:count]], minlength=4)
        assert np.abs(held - count / 4).max() <= 1


def test_stratified_parts_hold_unequal_classes_within_one_sample():
    labels = np.random.default_rng(1).permutation([0] * 600 + [1] * 300 + [2] * 100)
    parts = cut(list(range(1000)), train_val=0.7, test=0.2, val=0.25, strata=labels)
    for indices in parts.values():
        held = np.bincount(labels[indices], minlength=3)
        assert np.abs(held - len(indices) * np.array([0.6, 0.3, 0.1])).max() <= 1 + 1e-9


def test_rare_classes_do_not_crowd_the_beginning():
    labels = [0] * 160 + [1] * 10 + [2] * 10 + [3] * 10 + [4] * 10
    order = flatten_in_order(shuffled_groups(range(200), 0, labels))
    for count in range(1, 201):
        common = sum(labels[index] == 0 for index in order[:count])
        assert abs(common - 0.8 * count) <= 2


def test_stratified_order_is_still_random_within_a_class():
    labels = [0, 1] * 100
    assert shuffled_groups(range(200), 0, labels) != shuffled_groups(range(200), 1, labels)


def flatten_in_order(groups):
    return [index for group in groups for index in group]


def test_two_hundred_random_configurations_hold_every_promise():
    chance = random.Random(0)
    num_cut = 0
    for trial in range(200):
        num_groups, largest = chance.randint(3, 40), chance.choice([1, 1, 4, 16])
        groups = [f"g{i}" for i in range(num_groups) for _ in range(chance.randint(1, largest))]
        chance.shuffle(groups)
        test = chance.choice([0, chance.uniform(0.05, 0.5), chance.randint(2, len(groups))])
        val = chance.choice([chance.uniform(0.05, 0.6), 2])
        train_val = chance.choice([1.0, chance.uniform(0.3, 1.0)])
        try:
            parts = cut(groups, train_val, test, val, seed=trial)
        except UserError:
            continue
        if test == len(groups):
            continue
        num_cut += 1
        check(parts, groups)
        assert parts["train"] and parts["val"] and bool(parts["test"]) == (test != 0)
        sizes = {name: len(indices) for name, indices in parts.items()}
        largest_group = max(map(groups.count, groups))
        if test:
            assert abs(sizes["test"] - amount(test, len(groups), "")) <= largest_group
        pool = sizes["train"] + sizes["val"]
        assert abs(pool - amount(train_val, len(groups) - sizes["test"], "")) <= largest_group
        assert abs(sizes["val"] - amount(val, pool, "")) <= largest_group
    assert num_cut > 120  # most of them can be cut, so the promises were really put to the test
