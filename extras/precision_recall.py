"""Precision, recall and F1 of classification: --metrics precision recall f1."""

from utils.meter import IGNORED
from utils.metrics import ConfusionMatrix


class PrecisionRecallF1(ConfusionMatrix):
    """Precision, recall and their harmonic mean F1, each 0 to 1.

    Of class k: precision is the share of the samples predicted as k that are k; recall is the share of the samples
    of k that were predicted as k. A share of nothing counts as 0: the precision of a class that is never predicted,
    the recall of a class that has no samples.

    Args:
        num_classes: C, at least 2. With C == 2 both classes count, "no" as much as "yes".
        average: "macro" is the mean over classes of the value of each class. A class with no samples and no
            predictions is left out of it. "micro" counts all samples together; with one label per sample all three
            values are then the accuracy.
    """

    def __init__(self, num_classes: int, average: str = "macro", ignore_index: int = IGNORED) -> None:
        super().__init__(num_classes, ignore_index)
        if average not in ("macro", "micro"):
            raise ValueError(f"average {average!r} is unknown: give 'macro' or 'micro'.")
        self.average = average

    def compute(self) -> dict[str, float]:
        """Return ``{"precision": ..., "recall": ..., "f1": ...}``."""
        matrix = self.matrix.cpu().double()
        correct, predicted, actual = matrix.diagonal(), matrix.sum(dim=0), matrix.sum(dim=1)  # each (C,)
        if self.average == "micro":
            correct, predicted, actual = (count.sum(dim=0, keepdim=True) for count in (correct, predicted, actual))
        present = predicted + actual > 0
        correct, predicted, actual = correct[present], predicted[present], actual[present]
        # Where a count is 0, `correct` is 0 too, and 0 / 1 is 0.
        precision = correct / predicted.clamp(min=1)
        recall = correct / actual.clamp(min=1)
        f1 = 2 * correct / (predicted + actual)
        return {"precision": precision.mean().item(), "recall": recall.mean().item(), "f1": f1.mean().item()}


class Precision(PrecisionRecallF1):
    """The macro precision alone, see `PrecisionRecallF1`."""

    def compute(self) -> float:
        return super().compute()["precision"]


class Recall(PrecisionRecallF1):
    """The macro recall alone, see `PrecisionRecallF1`."""

    def compute(self) -> float:
        return super().compute()["recall"]


class F1(PrecisionRecallF1):
    """The macro F1 alone, see `PrecisionRecallF1`."""

    def compute(self) -> float:
        return super().compute()["f1"]
