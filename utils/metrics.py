"""Metrics of classification and segmentation, and intervals for them. For other metrics there is torchmetrics.

Every metric is a meter (utils/meter.py): `update` with each batch, `compute` at the end, which is NaN without a batch.
Predictions are logits unless stated otherwise, and must be on the device of the meter.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from utils.meter import Meter


def predicted_classes(logits: Tensor) -> Tensor:
    """Turn logits (N, C, ...) into class indices (N, ...), int64.

    With C >= 2 it is the class of the largest logit. With C == 1 the one logit belongs to class 1 ("yes"), which is
    predicted where the logit is above 0, that is, where its sigmoid is above one half.
    """
    return logits.argmax(dim=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


def bootstrap_interval(
    per_sample: Tensor,
    statistic: Callable[[Tensor, int], Tensor],
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high) of a statistic of N independent samples.

    The N samples are drawn N times with replacement, and the statistic is computed of this resample. The interval holds
    the middle `confidence` of `num_resamples` such values. It measures how much the value depends on the samples in the
    set, not how much another training seed would change it. When all samples are equal (all correct, or N == 1), the
    interval has no width: the resamples cannot contain an error that is not in the set.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Args:
        per_sample: the contribution of each sample, (N, ...): 1 or 0 for correct or wrong, or a row of counts.
        statistic: a function of ``sums``, the sums of `per_sample` over each resample, float64 (num_resamples, ...),
            and of N, that returns (num_resamples,).
        num_resamples: at least 1; the ends of the interval want about 1000.
        confidence: above 0 and below 1.
        seed: of the resampling alone, which does not use the global generators.

    Returns:
        The two ends, in the unit of the statistic; (NaN, NaN) when N == 0.

    Raises:
        ValueError: when `num_resamples` or `confidence` is out of its range.

    >>> correct = torch.tensor([True] * 80 + [False] * 20)
    >>> low, high = bootstrap_interval(correct, lambda sums, n: sums / n)
    >>> 0.70 < low < 0.80 < high < 0.90
    True
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples {num_resamples} is not allowed: give 1 or more, such as 1000.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not allowed: give a number above 0 and below 1, such as 0.95.")
    num_samples = len(per_sample)
    if num_samples == 0:
        return math.nan, math.nan
    rows = per_sample.detach().cpu().double().reshape(num_samples, -1)  # (N, K)
    generator = torch.Generator().manual_seed(seed)
    sums = torch.empty(num_resamples, rows.shape[1], dtype=torch.float64)
    for i in range(num_resamples):
        drawn = torch.randint(num_samples, (num_samples,), generator=generator)
        times_drawn = torch.bincount(drawn, minlength=num_samples)  # (N,)
        sums[i] = times_drawn.double() @ rows  # the sum over the resample, without copying its rows
    values = statistic(sums.reshape(num_resamples, *per_sample.shape[1:]), num_samples)
    tail = (1 - confidence) / 2
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return low, high


def mean_of_samples(sums: Tensor, num_samples: int) -> Tensor:
    """Return the mean, as a statistic for `bootstrap_interval`."""
    return sums / num_samples


class Accuracy(Meter):
    """The share of samples, 0 to 1, whose true class is among the `top_k` largest logits.

    >>> meter = Accuracy()
    >>> meter.update(torch.tensor([[0.1, 2.0], [3.0, 0.2], [0.5, 0.4]]), torch.tensor([1, 0, 1]))
    >>> round(meter.compute(), 4)
    0.6667
    """

    def __init__(self, top_k: int = 1) -> None:
        super().__init__()
        if top_k < 1:
            raise ValueError(f"top_k {top_k} is not allowed: give 1 or more.")
        self.top_k = top_k
        self.declare_rows("correct", (), torch.bool)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits (N, C) and the true classes (N,). C must be at least `top_k`."""
        # Without this check a shape such as (N, 1) would be broadcast, and counted wrong without an error.
        assert labels.shape == logits.shape[:1], f"labels {tuple(labels.shape)} for logits {tuple(logits.shape)}"
        if self.top_k == 1:
            correct = predicted_classes(logits) == labels  # (N,)
        else:
            largest = logits.topk(self.top_k, dim=1).indices  # (N, top_k)
            correct = (largest == labels[:, None]).any(dim=1)  # (N,)
        self.correct.append(correct)

    def compute(self) -> float:
        return torch.cat(self.correct).cpu().double().mean().item()

    def interval(self, num_resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Return (low, high), see `bootstrap_interval`; the samples are resampled."""
        return bootstrap_interval(torch.cat(self.correct), mean_of_samples, num_resamples, confidence, seed)


class ConfusionMatrix(Meter):
    """Counts of each actual class (row) predicted as each class (column), int64 (C, C).

    >>> meter = ConfusionMatrix(num_classes=2)
    >>> meter.update(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    >>> meter.compute().tolist()
    [[1, 1], [0, 1]]
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes {num_classes} is not allowed: give 2 or more (yes and no are 2 classes).")
        self.num_classes = num_classes
        self.declare_sum("matrix", (num_classes, num_classes), torch.int64)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add logits (N, C, ...) or class indices (N, ...), and the true classes (N, ...), integers in [0, C).

        Raises:
            IndexError: when a class is outside [0, C). (CUDA reports it as a failed device-side assertion.)
        """
        if predictions.is_floating_point():
            predictions = predicted_classes(predictions)
        assert predictions.shape == labels.shape, f"classes {tuple(predictions.shape)}, labels {tuple(labels.shape)}"
        predictions, labels = predictions.flatten().long(), labels.flatten().long()
        allowed = (predictions >= 0) & (predictions < self.num_classes) & (labels >= 0) & (labels < self.num_classes)
        # A class out of range must not land in another class's cell: it is sent to a cell that does not exist.
        cells = torch.where(allowed, labels * self.num_classes + predictions, self.num_classes**2)
        # torch.bincount would be shorter, but on a GPU it makes the host wait.
        counts = torch.zeros_like(self.matrix).flatten().index_add(0, cells, torch.ones_like(cells))
        self.matrix = self.matrix + counts.view_as(self.matrix)

    def compute(self) -> Tensor:
        """Return the matrix, int64 (C, C); zeros before the first update."""
        return self.matrix.clone()

    def per_class_accuracy(self) -> Tensor:
        """Return the recall of each class, float64 (C,); NaN for an absent class."""
        matrix = self.matrix.cpu().double()
        return matrix.diagonal() / matrix.sum(dim=1)


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

    def __init__(self, num_classes: int, average: str = "macro") -> None:
        super().__init__(num_classes)
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


class Overlap(Meter):
    """The base of `Dice` and `IoU`: counts the pixels of each foreground class in each image.

    The counts of the whole set are pooled before the ratio is taken, so every pixel weighs the same and a large
    object weighs more than a small one. The score is the mean over the C' foreground classes. A class that appears in
    neither the predictions nor the masks of the whole set is left out of the mean. When that is so for every class, the
    score is 1: nothing was to be found, and nothing was predicted.

    Args:
        num_classes: 1 for one logit per pixel (foreground where it is above 0); C >= 2 for the largest of C logits,
            where class 0 is the background and not part of the mean.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes {num_classes} is not allowed: give 1 (one logit per pixel) or more.")
        self.num_classes = num_classes
        self.foreground = [1] if num_classes == 1 else list(range(1, num_classes))
        # For each image and foreground class: the pixels in both, the predicted ones, the actual ones.
        self.declare_rows("counts", (len(self.foreground), 3), torch.int64)

    def update(self, logits: Tensor, masks: Tensor) -> None:
        """Add logits (N, num_classes, H, W) and masks (N, H, W) of class indices."""
        assert logits.shape[1] == self.num_classes, f"{logits.shape[1]} logits, but num_classes is {self.num_classes}"
        classes = predicted_classes(logits)  # (N, H, W)
        # Without this check masks of shape (N, 1, H, W) would be broadcast, and counted wrong without an error.
        assert masks.shape == classes.shape, f"masks {tuple(masks.shape)} for logits {tuple(logits.shape)}"
        per_class = []
        for k in self.foreground:
            predicted, actual = (classes == k).flatten(1), (masks == k).flatten(1)  # (N, H * W) each
            counts = [(predicted & actual).sum(dim=1), predicted.sum(dim=1), actual.sum(dim=1)]  # (N,) each
            per_class.append(torch.stack(counts, dim=1))  # (N, 3)
        self.counts.append(torch.stack(per_class, dim=1))  # (N, C', 3)

    def per_image_counts(self) -> Tensor:
        """Return the counts (intersection, predicted, actual) of each image and class, float64 (N, C', 3)."""
        return torch.cat(self.counts).cpu().double()

    def score(self, counts: Tensor) -> Tensor:
        """Turn counts (..., C', 3) into scores (...), the mean over the classes that are present."""
        raise NotImplementedError

    def compute(self) -> float:
        """Return the score of the whole set, 0 to 1."""
        counts = self.per_image_counts()
        return self.score(counts.sum(dim=0)).item() if len(counts) else math.nan

    def interval(self, num_resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Return (low, high), see `bootstrap_interval`; whole images are resampled, as pixels are not independent."""
        counts = self.per_image_counts()
        return bootstrap_interval(counts, lambda sums, _: self.score(sums), num_resamples, confidence, seed)


def mean_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the mean over the last dimension of numerator / denominator where that is not 0 / 0; 1 if all are."""
    present = denominator > 0
    total = (numerator / denominator.clamp(min=1)).sum(dim=-1)  # 0 / 1 adds nothing
    mean = total / present.sum(dim=-1).clamp(min=1)
    return torch.where(present.any(dim=-1), mean, 1.0)


class Dice(Overlap):
    """The pooled Dice coefficient, 2 |A ∩ B| / (|A| + |B|), of predicted and actual pixels; see `Overlap`.

    Source: Dice, Measures of the Amount of Ecologic Association Between Species, Ecology, 1945.

    >>> meter = Dice(num_classes=1)
    >>> meter.update(torch.tensor([[[[3.0, 2.0, -1.0]]]]), torch.tensor([[[1, 0, 0]]]))
    >>> round(meter.compute(), 4)
    0.6667
    """

    def score(self, counts: Tensor) -> Tensor:
        intersection, predicted, actual = counts.unbind(dim=-1)  # (..., C') each
        return mean_ratio(2 * intersection, predicted + actual)


class IoU(Overlap):
    """The pooled intersection over union, |A ∩ B| / |A ∪ B|, of predicted and actual pixels; see `Overlap`.

    Source: Jaccard, The Distribution of the Flora in the Alpine Zone, New Phytologist, 1912.
    """

    def score(self, counts: Tensor) -> Tensor:
        intersection, predicted, actual = counts.unbind(dim=-1)  # (..., C') each
        return mean_ratio(intersection, predicted + actual - intersection)


class MeanImageDice(Dice):
    """The mean over images of the Dice coefficient of each image: a small object weighs as much as a large one.

    Within one image the rules of `Overlap` hold: the mean is over the classes that are present in that image, and an
    image that is empty in both prediction and mask counts as 1.
    """

    def compute(self) -> float:
        """Return the mean over images, 0 to 1."""
        return self.score(self.per_image_counts()).mean().item()

    def interval(self, num_resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Return (low, high), see `bootstrap_interval`; the images are resampled."""
        scores = self.score(self.per_image_counts())  # (N,)
        return bootstrap_interval(scores, mean_of_samples, num_resamples, confidence, seed)
