"""Say which samples two parts of the data share."""

from collections.abc import Mapping

import torch
from torch.utils.data import Dataset

from data.data_entry import group_hashes, hash_of, sample_groups
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
        f"flatter: {name} of {part} and {first_of[group]} of {other} are of one group, such as files of the same "
        f"content. Remove one (python -m tools.look lists copies), or let the `groups` of the data sets differ; or "
        f"accept it by --allow_shared."
    )


def seen_before(dataset: Dataset, part: str, other: str, seen: torch.Tensor) -> UserError:
    """Return the error for groups of a part that a run has seen in another one; it names two of their samples.

    Args:
        dataset: the data to evaluate.
        part: its name.
        other: the part of the run.
        seen: the `group_hashes` of that.
    """
    hashes = group_hashes(dataset)
    known = set(seen.tolist())
    names = {group: name for name, group in reversed(named(dataset)) if hash_of(group) in known}
    listed = ", ".join(list(names.values())[-1:-3:-1])
    return UserError(
        f"{len(names)} of the {len(hashes)} groups of the {part} part were in the {other} part of the checkpoint's "
        f"run, so the score would flatter: those of {listed}. Leave the options of the data as they were trained with "
        f"(python -m tools.look shows the parts), or give --allow_seen to evaluate all the same."
    )


def named(dataset: Dataset) -> list[tuple[str, str]]:
    """Return the name and the group of each sample."""
    return list(zip(map(str, sample_names(dataset)), map(str, sample_groups(dataset)), strict=True))
