"""Small data sets whose samples tell who they are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset


class Numbered(Dataset):
    """Dictionaries of a number (the index), eight values that depend on it, and a label; loaded one by one."""

    is_random = False

    def __init__(self, num_samples: int):
        generator = torch.Generator().manual_seed(num_samples)
        self.values = torch.randn(num_samples, 8, generator=generator)
        self.labels = torch.randint(3, (num_samples,), generator=generator)
        self.names = [f"sample{index}" for index in range(num_samples)]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index, "values": self.values[index], "label": self.labels[index]}


class NumberedRandom(Numbered):
    """The same with random noise in the values."""

    is_random = True

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return sample | {"values": sample["values"] + torch.randn(8)}


class NumberedInMemory(Numbered):
    """The same, loaded in whole batches without a DataLoader."""

    in_memory = True
    device = torch.device("cpu")
    num_bytes = 0
    collate_fn = staticmethod(lambda batch: batch)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        indices = torch.as_tensor(indices)
        return {"index": indices, "values": self.values[indices], "label": self.labels[indices]}


class SomeBad(NumberedRandom):
    """The same as `NumberedRandom`, where some samples cannot be loaded."""

    def __init__(self, num_samples: int, bad: Sequence[int]):
        super().__init__(num_samples)
        self.bad = set(bad)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.bad:
            raise ValueError(f"sample {index} is unreadable")
        return super().__getitem__(index)
