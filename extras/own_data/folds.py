"""Cross-validation: cut the samples of train and val into K folds, of which a run validates on one."""

from typing import Any

import numpy as np

from utils.errors import UserError


class Fold:
    """Part I of K, which is cut in the place of an amount, see `data.split.take`.

    The groups come in the random order of --split_seed, in which every stretch holds the classes in nearly their
    overall proportions. So the folds are a function of the data, the seed and K alone. They are disjoint, and together
    they are all samples that are not for test.

    Args:
        text: "I/K", I from 1.
    """

    def __init__(self, text: str):
        self.text = text
        self.number, self.count = map(int, text.split("/"))

    def __repr__(self) -> str:
        return f"fold {self.text}"

    def cut(self, groups: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        """Return the groups of this fold, and all others.

        >>> Fold("2/3").cut([[0], [1, 2], [3], [4, 5]])
        ([[1, 2], [3]], [[0], [4, 5]])

        Raises:
            UserError: there are fewer groups than folds.
        """
        if len(groups) < self.count:
            raise UserError(f"--fold {self.text}: there are only {len(groups)} groups of samples to cut into folds.")
        first, end = (self.border(groups, number) for number in (self.number - 1, self.number))
        return groups[first:end], groups[:first] + groups[end:]

    def border(self, groups: list[Any], number: int) -> int:
        """Return how many groups are in the first folds: nearest to their share of the samples, one in each at least.

        Args:
            groups: all of them.
            number: of folds, from 0 to K.
        """
        if number == 0:
            return 0
        sizes = np.cumsum([len(group) for group in groups])
        nearest = int(np.argmin(np.abs(sizes - sizes[-1] * number / self.count))) + 1
        lowest = self.border(groups, number - 1) + 1
        return max(lowest, min(nearest, len(groups) - (self.count - number)))
