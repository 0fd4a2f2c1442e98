"""Data is selected by name, evaluated in order and whole, and never tested on what was learned."""

from argparse import Namespace
from itertools import product

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from data.data_entry import (
    PARTS,
    build_datasets,
    data_notes,
    describe,
    fingerprint,
    group_hashes,
    refuse_seen,
    sample_groups,
    seen_groups,
)
from data.loader import EvalLoader
from data.sampler import sample_names
from utils.errors import UserError

SPLIT = {"train_val_sample_rate": 300, "test_sample_rate": 50, "val_split": 0.2, "split_seed": 0}


class Cars(Dataset):
    """Pictures of cars: the groups are the cars."""

    is_random = False

    def __init__(self, *cars: str, num_views: int = 3):
        self.groups = [car for car in cars for _ in range(num_views)]
        self.names = [f"{car}_{view}" for car in cars for view in range(num_views)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return torch.tensor([index])


class RandomCars(Cars):
    is_random = True

    def __getitem__(self, index):
        return torch.cat([torch.tensor([float(index)]), torch.rand(1)])


# ---- selection -------------------------------------------------------------------------------------------------------
def test_all_data_may_be_tested_on_and_not_trained_on(cars):
    whole = {"data_type": "Carvana", "data_dir": cars, **SPLIT, "test_sample_rate": 1}
    assert len(build_datasets(Namespace(**whole, split="test"))["test"]) == 24
    for opt in (Namespace(**whole), Namespace(**whole, split="val")):
        with pytest.raises(UserError, match=r"--data_type Carvana: the (train|val) part is empty"):
            build_datasets(opt)


def test_sample_of_the_repository_has_three_disjoint_parts():
    datasets = build_datasets(Namespace(data_type="FashionMNISTSample", n_channels=1, n_classes=10, **SPLIT))
    names = [set(sample_names(datasets[part])) for part in PARTS]
    assert [len(datasets[part]) for part in PARTS] == [len(part) for part in names]
    assert all(names) and len(set.union(*names)) == sum(map(len, names))
    image, label = datasets["train"][0]
    assert image.shape == (1, 28, 28) and 0 <= int(label) < 10


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(3)

    def __len__(self):
        return 3


@pytest.mark.parametrize("parts", [("all",), ("train", "val", "test")])
def test_a_stream_is_refused_in_one_line(monkeypatch, parts):
    monkeypatch.setattr("data.data_entry.find", lambda kind, name: lambda: {part: Stream() for part in parts})
    with pytest.raises(UserError, match="A stream has no indices"):
        build_datasets(Namespace(data_type="mine:stream"))



def test_what_a_data_set_lacks_is_replaced():
    plain = torch.utils.data.TensorDataset(torch.zeros(3))
    assert sample_names(plain) == sample_groups(plain) == range(3)
    cars = Cars("a", "b", num_views=2)
    assert sample_names(cars) == ["a_0", "a_1", "b_0", "b_1"] and sample_groups(cars) == ["a", "a", "b", "b"]


def test_attributes_with_another_meaning_are_left_alone():
    class OfClasses(Cars):
        fingerprint = "abc"
        cached = get_batch = report = 3

        def __len__(self):
            return 6

        def summary(self):
            return "no attribute"

    dataset = OfClasses("a", "b")
    dataset.names = ["cat", "dog"]
    dataset.groups = {"cat": 3}
    assert sample_names(dataset) == sample_groups(dataset) == range(6) and len(group_hashes(dataset)) == 0
    assert fingerprint(dataset) == "abc"
    (note,) = data_notes({"train": dataset})
    assert "neither names nor groups" in note
    dataset.fingerprint = lambda: "def"
    assert fingerprint(dataset) == "def"
    assert torch.cat(list(EvalLoader(dataset, 4))).flatten().tolist() == list(range(6))


def test_names_and_groups_may_be_arrays_or_tensors():
    dataset = Cars("a", "b")
    dataset.names, dataset.groups = np.array(dataset.names), torch.tensor([0, 0, 0, 1, 1, 1])
    assert sample_names(dataset) == Cars("a", "b").names and sample_groups(dataset) == [0, 0, 0, 1, 1, 1]
    assert len(group_hashes(dataset)) == 2


def test_many_samples_without_names_are_a_number_in_the_records():
    names, fingerprints = describe({"train": range(3_000_000), "val": range(5)})
    assert names == {"train": range(3_000_000), "val": range(5)} and len(set(fingerprints.values())) == 2


def test_a_group_in_two_parts_is_refused_before_the_training():
    with pytest.raises(UserError, match=r"^1 of the 2 groups of the val part are in the train part, too"):
        seen_groups({"train": Cars("a", "b"), "val": Cars("b", "c")})
    one = Cars("a")
    assert len(seen_groups({"train": one, "val": one}).data["val"]) == 1  # on purpose: a network that overfits


def test_notes_are_said_once():
    first, second = Cars("a"), Cars("b")
    first.report = second.report = "2 cars"
    first.summary = "3 pictures"
    assert data_notes({"train": first, "val": second, "test": Cars("c")}) == ["2 cars", "3 pictures"]


# ---- evaluation ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_is_in_order_and_whole_with_a_short_last_batch(num_workers):
    batches = list(EvalLoader(Cars("a", "b", "c", num_views=4), batch_size=5, num_workers=num_workers))
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert torch.cat(batches).flatten().tolist() == list(range(12))


def test_limit_takes_the_first_batches():
    for max_batches, num_samples in ((2, 10), (3, 12), (9, 12)):
        loader = EvalLoader(Cars("a", "b", "c", num_views=4), 5, max_batches=max_batches)
        assert torch.cat(list(loader)).flatten().tolist() == list(range(num_samples))
        assert loader.num_samples == num_samples


@pytest.mark.parametrize("num_workers", [0, 2])
def test_random_data_is_the_same_at_every_evaluation(num_workers):
    dataset = RandomCars("a", "b")
    expected = torch.cat(list(EvalLoader(dataset, 6)))
    loader = EvalLoader(dataset, 4, num_workers=num_workers)
    assert all(torch.equal(torch.cat(list(loader)), expected) for _ in range(2))
    assert expected[:, 0].tolist() == list(range(6)) and len(set(expected[:, 1].tolist())) == 6
    plain = DataLoader(dataset, 4)  # the fault planted
    assert not torch.equal(torch.cat(list(plain)), torch.cat(list(plain)))


@pytest.mark.parametrize(("dataset", "num_workers"), list(product([Cars, RandomCars], [0, 2])))
def test_evaluation_leaves_the_generator_alone(dataset, num_workers):
    before = torch.get_rng_state()
    list(EvalLoader(dataset("a", "b"), 4, num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), before)
    list(DataLoader(dataset("a", "b"), 4))  # the fault planted: a plain loader draws its workers' seed
    assert not torch.equal(torch.get_rng_state(), before)


# ---- what was seen ---------------------------------------------------------------------------------------------------
SEEN = {"train": group_hashes(Cars("a", "b")), "val": group_hashes(Cars("c"))}


@pytest.mark.parametrize(
    ("part", "car", "other"),
    [("test", "a", "train"), ("test", "c", "val"), ("val", "b", "train")],
)
def test_one_car_that_was_seen_is_refused(part, car, other):
    with pytest.raises(UserError, match=f"^1 of the 3 groups of the {part} part were in the {other} part") as caught:
        refuse_seen(Cars("x", car, "y"), part, SEEN)
    assert "--allow_seen" in str(caught.value) and f": those of {Cars(car).names[0]}. Leave" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "cars"),
    [("test", "xyz"), ("val", "c"), ("val", "cx"), ("train", "ab"), ("train", "abc")],
)
def test_what_a_part_may_meet(part, cars):
    refuse_seen(Cars(*cars), part, SEEN)


def test_another_view_of_a_car_that_was_seen_is_refused_too():
    other_views = Cars("a")
    other_views.names = ["a_7", "a_8", "a_9"]
    with pytest.raises(UserError, match="1 of the 1 groups"):
        refuse_seen(other_views, "test", SEEN)
    other_views.groups = None  # the fault planted: names instead of cars
    refuse_seen(other_views, "test", SEEN)


def test_hashes_are_few_sorted_and_do_not_depend_on_the_order():
    hashes = group_hashes(Cars("a", "b", "c", num_views=5))
    assert hashes.dtype == torch.int64 and hashes.shape == (3,) and hashes.diff().min() > 0
    assert torch.equal(hashes, group_hashes(Cars("c", "a", "b")))
    assert group_hashes(Cars()).dtype == torch.int64


