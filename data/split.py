"""Cut a data set into disjoint train, validation and test parts, by group.

The samples of a group stay together: the sixteen views of one car, the slices of one patient. Groups are shuffled by
`split_seed` alone, so the split is a function of the data and the seed.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from utils.errors import UserError


def amount(value: float, total: int, option: str) -> int:
    """Turn a fraction (0 to 1) or a count (above 1) into a count of `total`.

    >>> amount(0.15, 200, "--val_split"), amount(32, 200, "--val_split"), amount(1, 200, "--val_split")
    (30, 32, 200)
    """
    count = round(value * total) if value <= 1 else int(value)
    if count > total:
        raise UserError(f"{option} {value:g} asks for {count} samples, but there are only {total}.")
    return count


def shuffled_groups(
    groups: Sequence[Hashable], split_seed: int, strata: Sequence[int] | None = None
) -> list[list[int]]:
    """Return the sample indices of each group, the groups in random order.

    Args:
        groups: the group of each sample, (N,).
        split_seed: the seed of the shuffle.
        strata: the class of each sample, (N,). With it, every prefix of the list holds the classes in nearly their
            overall proportions. Meant for groups of one sample.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    lists = list(members.values())
    order = np.random.default_rng(split_seed).permutation(len(lists))
    if strata is not None:
        classes = np.asarray(strata)[[group[0] for group in lists]][order]
        place = np.empty(len(order))  # of a group among those of its class, from 0 to 1
        for value in np.unique(classes):
            of_class = classes == value
            place[of_class] = (np.arange(of_class.sum()) + 0.5) / of_class.sum()
        order = order[np.argsort(place, kind="stable")]
    return [lists[i] for i in order.tolist()]


def take(groups: list[list[int]], value: float, option: str) -> tuple[list[list[int]], list[list[int]]]:
    """Cut a list of groups where it holds nearest to an amount of its samples.

    Only whole groups: at least one if the amount is above 0, and not the last one unless it is all samples.

    Args:
        groups: the groups.
        value, option: the amount, see `amount`; or a fold, see extras/own_data/folds.py, which takes its groups.
    """
    if hasattr(value, "cut"):
        return value.cut(groups)
    sizes = np.cumsum([len(group) for group in groups])
    total = int(sizes[-1]) if groups else 0
    count = amount(value, total, option)
    if count <= 0:
        return [], groups
    cut = int(np.argmin(np.abs(sizes - count))) + 1
    if count < total:
        cut = max(min(cut, len(groups) - 1), 1)
    return groups[:cut], groups[cut:]


def flatten(groups: list[list[int]]) -> list[int]:
    return sorted(index for group in groups for index in group)


def split_by_group(
    groups: Sequence[Hashable],
    train_val_sample_rate: float,
    test_sample_rate: float,
    val_split: float,
    split_seed: int,
    strata: Sequence[int] | None = None,
) -> dict[str, list[int]]:
    """Cut N samples into ``{"train": indices, "val": indices, "test": indices}``, disjoint by group.

    The test part is cut first. `train_val_sample_rate` is a share of the rest, so 1 always means all of the rest.
    Every amount is rounded to whole groups, at least one. When all samples are for test, the other parts are empty:
    such data can be evaluated, not trained on.

    Args:
        groups: the group of each sample, (N,).
        train_val_sample_rate: fraction (0 to 1) or count (above 1) for train and validation together.
        test_sample_rate: fraction or count of all samples for the test part; 0 when the test part is elsewhere.
        val_split: fraction or count of the train-and-validation samples for validation; or a fold of them.
        split_seed: the seed of the shuffle.
        strata: the class of each sample, see `shuffled_groups`.

    Raises:
        UserError: when another part would be empty, or a count exceeds what there is.
    """
    test, rest = take(shuffled_groups(groups, split_seed, strata), test_sample_rate, "--test_sample_rate")
    if test and not rest:
        return {"train": [], "val": [], "test": flatten(test)}
    pool, _ = take(rest, train_val_sample_rate, "--train_val_sample_rate")
    val, train = take(pool, val_split, "--val_split")
    parts = {"train": flatten(train), "val": flatten(val), "test": flatten(test)}
    for name, option in (("train", "--train_val_sample_rate"), ("val", "--val_split"), ("test", "--test_sample_rate")):
        if not parts[name] and not (name == "test" and test_sample_rate == 0):
            raise UserError(
                f"The {name} part is empty: {len(set(groups))} groups with {len(groups)} samples do not stretch to "
                f"train, validation and test. Give more data, or other values of {option} and --val_split."
            )
    return parts
