"""All parts of the data as one data set (--split all)."""

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from torch.utils.data import Dataset

from data.data_entry import LOG_LINES
from data.sampler import may_be_random, one_each


class AllParts(Dataset):
    """The samples of all parts, one after the other, with their names and groups where every part has them.

    Samples are loaded one by one: torch's `ConcatDataset` would return whole batches of a part as if they were samples.

    Attributes:
        parts: the data sets by name.
        part_of: the name of the part of each sample.
    """

    def __init__(self, parts: Mapping[str, Dataset]):
        self.parts = dict(parts)
        self.datasets = list(parts.values())
        self.ends = list(accumulate(map(len, self.datasets)))
        self.part_of = [name for name, part in parts.items() for _ in range(len(part))]
        self.is_random = any(map(may_be_random, self.datasets))
        for attribute in ("names", "groups"):
            values = [one_each(part, attribute) for part in self.datasets]
            if all(value is not None for value in values):
                setattr(self, attribute, [entry for value in values for entry in value])
        for attribute in LOG_LINES:
            lines = [getattr(part, attribute, "") for part in self.datasets]
            setattr(self, attribute, "\n".join(dict.fromkeys(line for line in lines if line and isinstance(line, str))))
        first = self.datasets[0]
        if hasattr(first, "collate_fn") and not hasattr(first, "__getitems__"):  # else it expects a whole batch
            self.collate_fn: Any = first.collate_fn

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Any:
        number = bisect_right(self.ends, index)
        return self.datasets[number][index - (self.ends[number - 1] if number else 0)]

    def open_cache(self) -> "AllParts":
        opened = {name: part.open_cache() if hasattr(part, "open_cache") else part for name, part in self.parts.items()}
        return AllParts(opened)
