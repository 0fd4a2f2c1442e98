"""Metrics of classification; see also extras/precision_recall.py, and for segmentation utils/overlap.py.

Every metric is a meter (utils/meter.py): `update` with each batch, `compute` at the end, which is NaN without a batch.
Predictions are logits unless stated otherwise, and must be on the device of the meter.
"""

import math

import torch
from torch import Tensor

from utils.meter import IGNORED, Meter, predicted_classes


class Accuracy(Meter):
    """The share of samples, 0 to 1, whose true class is among the `top_k` largest logits.

    >>> meter = Accuracy()
    >>> meter.update(torch.tensor([[0.1, 2.0], [3.0, 0.2], [0.5, 0.4]]), torch.tensor([1, 0, 1]))
    >>> round(meter.compute(), 4)
    0.6667
    """

    def __init__(self, top_k: int = 1, ignore_index: int = IGNORED) -> None:
        super().__init__()
        if top_k < 1:
            raise ValueError(f"top_k {top_k} is not allowed: give 1 or more.")
        self.top_k = top_k
        self.ignored = ignore_index
        self.declare_rows("correct", (), torch.int8)  # 1 or 0; -1 does not count

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits (N, C) and the true classes (N,). C must be at least `top_k`."""
        # Without this check a shape such as (N, 1) would be broadcast, and counted wrong without an error.
        assert labels.shape == logits.shape[:1], f"labels {tuple(labels.shape)} for logits {tuple(logits.shape)}"
        if self.top_k == 1:
            correct = predicted_classes(logits) == labels  # (N,)
        else:
            largest = logits.topk(self.top_k, dim=1).indices  # (N, top_k)
            correct = (largest == labels[:, None]).any(dim=1)  # (N,)
        self.correct.append(correct.to(torch.int8).masked_fill(labels.long() == self.ignored, -1))

    def counted(self) -> Tensor:
        """Return 1 or 0 for each sample that counts, on the CPU."""
        correct = torch.cat(self.correct).cpu()
        return correct[correct >= 0]

    def compute(self) -> float:
        return self.counted().double().mean().item()

    def interval(self) -> tuple[float, float] | None:
        """Return the ends of the 95 % interval of a proportion (Wilson 1927); None without a sample.

        It says how far the value may be off because the set has no more samples, not how much another training seed
        would change it. It has a width also when all samples are right.
        """
        correct = self.counted()
        n = len(correct)
        if n == 0:
            return None
        share = correct.sum().item() / n
        z = 1.96  # of the normal distribution, 95 % are less than this many standard deviations from the mean
        center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
        return max(center - half, 0.0), min(center + half, 1.0)  # rounding may lead out of 0 to 1


class ConfusionMatrix(Meter):
    """Counts of each actual class (row) predicted as each class (column), int64 (C, C).

    >>> meter = ConfusionMatrix(num_classes=2)
    >>> meter.update(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    >>> meter.compute().tolist()
    [[1, 1], [0, 1]]
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORED) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes {num_classes} is not allowed: give 2 or more (yes and no are 2 classes).")
        self.num_classes = num_classes
        self.ignored = ignore_index
        self.declare_sum("matrix", (num_classes, num_classes), torch.int64)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add logits (N, C, ...) or class indices (N, ...), and the true classes (N, ...), integers in [0, C).

        Labels of `ignore_index` do not count.

        Raises:
            IndexError: when a class is outside [0, C). (CUDA reports it as a failed device-side assertion.)
        """
        if predictions.is_floating_point():
            predictions = predicted_classes(predictions)
        assert predictions.shape == labels.shape, f"classes {tuple(predictions.shape)}, labels {tuple(labels.shape)}"
        counts_at_all = labels.flatten().long() != self.ignored  # uint8 would wrap
        predictions, labels = predictions.flatten().long(), labels.flatten().long().where(counts_at_all, 0)
        allowed = (predictions >= 0) & (predictions < self.num_classes) & (labels >= 0) & (labels < self.num_classes)
        # A class out of range must not land in another class's cell: it is sent to a cell that does not exist.
        cells = torch.where(allowed, labels * self.num_classes + predictions, self.num_classes**2)
        # torch.bincount would be shorter, but on a GPU it makes the host wait.
        counts = torch.zeros_like(self.matrix).flatten().index_add(0, cells, counts_at_all.long())
        self.matrix = self.matrix + counts.view_as(self.matrix)

    def compute(self) -> Tensor:
        """Return the matrix, int64 (C, C); zeros before the first update."""
        return self.matrix.clone()

    def per_class_accuracy(self) -> Tensor:
        """Return the recall of each class, float64 (C,); NaN for an absent class."""
        matrix = self.matrix.cpu().double()
        return matrix.diagonal() / matrix.sum(dim=1)
