"""Say which samples two parts of the data share."""

from collections.abc import Mapping

from torch.utils.data import Dataset

from data.data_entry import sample_groups
from data.sampler import sample_names
from utils.errors import UserError


def shared_groups(datasets: Mapping[str, Dataset], part: str, other: str) -> UserError:
    """Return the error for groups of `part` that are in `other`, too; it names a sample of each."""
    first_of = {group: name for name, group in reversed(named(datasets[other]))}
    shared = [(name, group) for name, group in named(datasets[part]) if group in first_of]
    name, group = shared[0]
    num_groups, num_shared = len(set(map(str, sample_groups(datasets[part])))), len({group for _, group in shared})
    return UserError(
        f"{num_shared} of the {num_groups} groups of the {part} part are in the {other} part, too, so the scores would "
        f"flatter: {name} of {part} and {first_of[group]} of {other} are of one group. Remove one, let `names` and "
        f"`groups` of the data sets differ, or split by group. Or accept it by --allow_shared."
    )


def named(dataset: Dataset) -> list[tuple[str, str]]:
    """Return the name and the group of each sample."""
    return list(zip(map(str, sample_names(dataset)), map(str, sample_groups(dataset)), strict=True))
