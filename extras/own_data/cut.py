"""Cut own data into parts: what a data function returns may be whole, or lack a part."""

import contextlib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from data.data_entry import PARTS, sample_groups
from data.sampler import may_be_random, one_each
from data.split import flatten, shuffled_groups, take
from utils.errors import UserError

GIVEN = ({"all"}, {"train"}, {"train", "test"}, {"train", "val"}, set(PARTS))
TEST_SHARE = 0.15  # of data that has no test part
OF_SAMPLES = ("names", "groups", "targets")  # the attributes with an entry for each sample


class Part(Dataset):
    """Some of the samples of a data set that has no `select`.

    Args:
        dataset: the whole.
        indices: which samples of it.

    Attributes:
        names, groups, targets, is_random, and others of the whole that are not one for each sample.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int]):
        self.dataset = dataset
        self.indices = indices
        self.is_random = may_be_random(dataset)
        for name in OF_SAMPLES:
            values = one_each(dataset, name)
            if values is not None:
                setattr(self, name, [values[index] for index in indices])
        for name in ("collate_fn", "found_options", "report"):
            if hasattr(dataset, name):
                setattr(self, name, getattr(dataset, name))
        if hasattr(dataset, "__getitems__"):
            self.__getitems__ = lambda places: dataset.__getitems__([indices[place] for place in places])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


def select(dataset: Dataset, indices: Sequence[int]) -> Dataset:
    """Return some of the samples of a data set: by its own `select`, or as a `Part`."""
    return dataset.select(indices) if hasattr(dataset, "select") else Part(dataset, indices)


def classes_of(dataset: Dataset) -> Sequence[int] | None:
    """Return the class of each sample, if the data set has `targets` that are whole numbers."""
    targets = one_each(dataset, "targets")
    return targets if targets and np.issubdtype(np.asarray(targets).dtype, np.integer) else None


def cut_parts(datasets: Mapping[str, Dataset], opt: Namespace) -> dict[str, Dataset]:
    """Return the parts "train", "val" and "test" of own data; what is there stays, what is missing is cut.

    The options of the split act as on other data: groups stay together, and the classes keep their shares.

    Args:
        datasets: one data set "all" or "train"; "train" and "test"; "train" and "val"; or all three.
            A training part with a method `prepared` gets them all, and returns those to load: so it decides how the
            samples of all are changed, such as the mean that is subtracted.
        opt: --train_val_sample_rate acts on what is cut, --test_sample_rate on the test part, --split_seed on both, and
            --val_split or --fold where there is no val part. Of three given parts none is cut.

    Raises:
        UserError: the parts are others; a part would be empty; an option was asked for that does not act.
    """
    given = set(datasets)
    if given not in GIVEN:
        ways = "; ".join(" and ".join(sorted(way, reverse=True)) for way in GIVEN[:-1])
        raise UserError(
            f"--data_type {opt.data_type} returned {', '.join(map(str, given)) or 'no parts'}: it must return a "
            f"dictionary of three data sets, {', '.join(PARTS)}; or of those that are not to be cut: {ways}."
        )
    refuse_idle(given, getattr(opt, "asked_to_cut", ()))
    if given == set(PARTS):
        return dict(datasets)
    pool = datasets["all"] if "all" in datasets else datasets["train"]
    chosen = indices_of_parts(pool, given, opt)
    parts = {part: select(pool, indices) for part, indices in chosen.items()} | {
        part: datasets[part] for part in ("val", "test") if part in datasets
    }
    if "test" in datasets and opt.test_sample_rate not in (None, 1):
        parts["test"] = select(datasets["test"], some_of(datasets["test"], opt))
    note(parts, len(pool), len(set(sample_groups(pool))))
    parts = {part: parts[part] for part in PARTS}
    if hasattr(parts["train"], "prepared"):
        return parts["train"].prepared(parts)
    return parts


def refuse_idle(given: set[str], asked: Sequence[str]) -> None:
    """Raise UserError when an option was asked for that the given parts leave nothing to do."""
    idle = set(asked) if given == set(PARTS) else {"val_split", "fold"} & set(asked) if "val" in given else set()
    for name in sorted(idle):
        own = "all three parts" if given == set(PARTS) else "a val part"
        raise UserError(f"--{name} has no effect: the data has {own} of its own. Leave it out.")


def indices_of_parts(pool: Dataset, given: set[str], opt: Namespace) -> dict[str, list[int]]:
    """Return which samples of `pool` go to which part; without the parts that are given beside it."""
    groups = shuffled_groups(sample_groups(pool), opt.split_seed, classes_of(pool))
    rate = TEST_SHARE if opt.test_sample_rate is None else opt.test_sample_rate
    test, rest = ([], groups) if "test" in given else take(groups, rate, "--test_sample_rate")
    if test and not rest:  # data that is evaluated only
        return {"train": [], "val": [], "test": flatten(test)}
    used, _ = take(rest, opt.train_val_sample_rate, "--train_val_sample_rate")
    val, train = ([], used) if "val" in given else take(used, opt.val_split, "--val_split")
    parts = {"train": train, "val": val, "test": test}
    for part, of_part in parts.items():
        if not of_part and part not in given - {"train"}:
            raise UserError(
                f"The {part} part is empty: {len(groups)} groups with {len(pool)} samples do not stretch to train, "
                f"validation and test. Give more data, or other values of --test_sample_rate and --val_split."
            )
    return {part: flatten(of_part) for part, of_part in parts.items() if part not in given - {"train"}}


def some_of(test: Dataset, opt: Namespace) -> list[int]:
    """Return the samples of a given test part that --test_sample_rate chooses."""
    groups = shuffled_groups(sample_groups(test), opt.split_seed, classes_of(test))
    return flatten(take(groups, opt.test_sample_rate, "--test_sample_rate")[0])


def note(parts: Mapping[str, Dataset], num_samples: int, num_groups: int) -> None:
    """Add to the summaries of the parts what was cut."""
    using = ", ".join(f"{len(parts[part]):,} for {part}" for part in PARTS)
    line = f"cut from {num_samples:,} samples in {num_groups:,} groups: using {using}"
    for dataset in parts.values():
        before = getattr(dataset, "summary", "")
        with contextlib.suppress(AttributeError):  # of a data set that has one that cannot be set
            dataset.summary = "; ".join([before, line]) if isinstance(before, str) and before else line
