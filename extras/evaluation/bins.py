"""Count probabilities in bins: pixels are too many to be kept one by one.

From the counts come the calibration (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017), and the curves
of precision against recall and of true against false positives.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NUM_BINS = 15  # of the calibration
NUM_THRESHOLDS = 4000  # of the curves, equally far apart as logits, since most probabilities are close to 0 or 1
LARGEST_LOGIT = 20.0


class Bins:
    """Counts of probabilities, over all samples or pixels.

    Attributes:
        calibration: (NUM_BINS, 3) float64: how many have a confidence, the probability of the predicted class, in the
            bin; the sum of their confidences; how many are right.
        thresholds: (C, NUM_THRESHOLDS, 2) int64: how many have a probability of the class in the bin, of those that are
            not of the class, and of those that are.
    """

    def __init__(self, num_classes: int):
        self.calibration = torch.zeros(NUM_BINS, 3, dtype=torch.float64)
        self.thresholds = torch.zeros(num_classes, NUM_THRESHOLDS, 2, dtype=torch.int64)

    @classmethod
    def sum(cls, several: Sequence["Bins"]) -> "Bins":
        total = cls(len(several[0].thresholds))
        for bins in several:
            total.calibration += bins.calibration
            total.thresholds += bins.thresholds
        return total

    def add(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add probabilities (M, C) and the true classes (M,)."""
        if probabilities.device.type == "mps":  # it has no float64
            probabilities, targets = probabilities.cpu(), targets.cpu()
        confidence, predicted = probabilities.max(dim=1)
        confidence = confidence.double()
        values = torch.stack([torch.ones_like(confidence), confidence, (predicted == targets).double()], dim=1)
        # A bin holds its upper end, as in the source: a confidence of 0.2 is in that from 0.13 to 0.2.
        number = (confidence * NUM_BINS).ceil().long().sub(1).clamp(0, NUM_BINS - 1)
        # Not torch.bincount with weights, which --deterministic forbids on GPUs.
        self.calibration += torch.zeros_like(values[:1]).expand(NUM_BINS, 3).index_add(0, number, values).cpu()
        for k in range(probabilities.shape[1]):
            logits = probabilities[:, k].double().logit(eps=1e-9)
            number = ((logits / LARGEST_LOGIT + 1) / 2 * NUM_THRESHOLDS).long().clamp(0, NUM_THRESHOLDS - 1)
            cells = torch.bincount(2 * number + (targets == k), minlength=2 * NUM_THRESHOLDS)
            self.thresholds[k] += cells.view(NUM_THRESHOLDS, 2).cpu()

    def calibration_error(self) -> float:
        """Return the expected calibration error, 0 to 1: the mean distance of a bin's confidence from its accuracy."""
        counts, confidences, right = self.calibration.unbind(dim=1)
        return ((confidences - right).abs().sum() / counts.sum()).item()

    def curves(self, k: int) -> dict[str, Tensor]:
        """Return the points of both curves of a class, float64: "fpr", "tpr", "recall", "precision"."""
        false, true = self.thresholds[k].flip(0).cumsum(dim=0).double().unbind(dim=1)  # above each threshold
        zero = torch.zeros(1, dtype=torch.float64)
        tpr, fpr = torch.cat([zero, true / true[-1]]), torch.cat([zero, false / false[-1]])
        precision = true / (true + false)
        some = true + false > 0
        return {"fpr": fpr, "tpr": tpr, "recall": (true / true[-1])[some], "precision": precision[some]}
