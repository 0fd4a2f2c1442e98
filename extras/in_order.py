"""A data set whose samples come in its own order."""

from typing import Any

from torch.utils.data import Dataset


class InOrder(Dataset):
    """The same samples as those of a data set, in each epoch from the first to the last.

    >>> InOrder(["a", "b", "c"]).epoch_order(seed=0, epoch=5)
    [0, 1, 2]
    """

    in_memory = False  # what is loaded without a DataLoader is always shuffled

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        """Return another attribute of the data set, see data/data_entry.py."""
        if name == "dataset" or (name.startswith("__") and name != "__getitems__"):  # it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def epoch_order(self, seed: int, epoch: int) -> list[int]:
        return list(range(len(self)))

    def open_cache(self) -> Dataset:
        return InOrder(self.dataset.open_cache()) if hasattr(self.dataset, "open_cache") else self
