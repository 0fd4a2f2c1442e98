"""Metrics of segmentation: the overlap of predicted and actual pixels, with intervals over the images.

Every metric is a meter (utils/meter.py): `update` with each batch, `compute` at the end, which is NaN without a batch.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.meter import IGNORED, Meter, predicted_classes

LEAST_SAMPLES = 30  # of an interval


def bootstrap_interval(
    per_sample: Tensor,
    statistic: Callable[[Tensor, int], Tensor],
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval (low, high) of a statistic of N independent samples.

    The N samples are drawn N times with replacement, and the statistic is computed of this resample. The interval holds
    the middle `confidence` of `num_resamples` such values. It measures how much the value depends on the samples in the
    set, not how much another training seed would change it. Of few samples, or equal ones, it would be too narrow: the
    resamples cannot contain an error that is not in the set.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Args:
        per_sample: the contribution of each sample, (N, ...): 1 or 0 for correct or wrong, or a row of counts.
        statistic: a function of ``sums``, the sums of `per_sample` over each resample, float64 (num_resamples, ...),
            and of N, that returns (num_resamples,).
        num_resamples: at least 1; the ends of the interval want about 1000.
        confidence: above 0 and below 1.
        seed: of the resampling alone, which does not use the global generators.

    Returns:
        The two ends, in the unit of the statistic; None for fewer samples than `LEAST_SAMPLES`, or if all resamples
        have one value.

    >>> scores = torch.tensor([1.0] * 80 + [0.0] * 20)
    >>> low, high = bootstrap_interval(scores, mean_of_samples)
    >>> 0.70 < low < 0.80 < high < 0.90
    True
    """
    num_samples = len(per_sample)
    if num_samples < LEAST_SAMPLES:
        return None
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
    return (low, high) if low < high else None


def mean_of_samples(sums: Tensor, num_samples: int) -> Tensor:
    """Return the mean, as a statistic for `bootstrap_interval`."""
    return sums / num_samples


class Overlap(Meter):
    """The base of `Dice` and `IoU`: counts the pixels of each foreground class in each image.

    The counts of the whole set are pooled before the ratio is taken, so every pixel weighs the same and a large
    object weighs more than a small one. The score is the mean over the C' foreground classes. A class that appears in
    neither the predictions nor the masks of the whole set is left out of the mean. When that is so for every class, the
    score is 1: nothing was to be found, and nothing was predicted.

    Args:
        num_classes: 1 for one logit per pixel (foreground where it is above 0); C >= 2 for the largest of C logits,
            where class 0 is the background and not part of the mean.
        ignore_index: the value of pixels that do not count.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORED) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes {num_classes} is not allowed: give 1 (one logit per pixel) or more.")
        self.num_classes = num_classes
        self.ignored = ignore_index
        self.foreground = [1] if num_classes == 1 else list(range(1, num_classes))
        # For each image and foreground class: the pixels in both, the predicted ones, the actual ones.
        self.declare_rows("counts", (len(self.foreground), 3), torch.int64)
        self.declare_sum("of_no_class", (), torch.int64)

    def update(self, logits: Tensor, masks: Tensor) -> None:
        """Add logits (N, num_classes, H, W) and masks (N, H, W) of class indices; see `ignore_index`."""
        assert logits.shape[1] == self.num_classes, f"{logits.shape[1]} logits, but num_classes is {self.num_classes}"
        classes = predicted_classes(logits)  # (N, H, W)
        # Without this check masks of shape (N, 1, H, W) would be broadcast, and counted wrong without an error.
        assert masks.shape == classes.shape, f"masks {tuple(masks.shape)} for logits {tuple(logits.shape)}"
        is_ignored = masks.long() == self.ignored  # uint8 would wrap
        is_of_class = (masks >= 0) & (masks < max(self.num_classes, 2))
        self.of_no_class = self.of_no_class + (~is_of_class & ~is_ignored).sum()
        classes, masks = (each.masked_fill(is_ignored, 0) for each in (classes, masks))  # the background has no score
        per_class = []
        for k in self.foreground:
            predicted, actual = (classes == k).flatten(1), (masks == k).flatten(1)  # (N, H * W) each
            counts = [(predicted & actual).sum(dim=1), predicted.sum(dim=1), actual.sum(dim=1)]  # (N,) each
            per_class.append(torch.stack(counts, dim=1))  # (N, 3)
        self.counts.append(torch.stack(per_class, dim=1))  # (N, C', 3)

    def per_image_counts(self) -> Tensor:
        """Return the counts (intersection, predicted, actual) of each image and class, float64 (N, C', 3)."""
        return torch.cat(self.counts).cpu().double()

    def checked_counts(self) -> Tensor:
        """Return `per_image_counts`; ValueError when a mask had another value than a class."""
        if self.of_no_class:
            raise ValueError(
                f"{self.of_no_class:,} pixels of the masks are of no class: these are numbered from 0 to "
                f"{max(self.num_classes, 2) - 1}. Number them so in the data set, or leave out one value: ignore_index."
            )
        return self.per_image_counts()

    def score(self, counts: Tensor) -> Tensor:
        """Turn counts (..., C', 3) into scores (...), the mean over the classes that are present."""
        raise NotImplementedError

    def compute(self) -> float:
        """Return the score of the whole set, 0 to 1."""
        counts = self.checked_counts()
        return self.score(counts.sum(dim=0)).item() if len(counts) else math.nan

    def interval(self, **settings: Any) -> tuple[float, float] | None:
        """Return (low, high); whole images are resampled, as pixels are not independent.

        Args:
            settings: see `bootstrap_interval`.
        """
        counts = self.per_image_counts()
        return bootstrap_interval(counts, lambda sums, _: self.score(sums), **settings)


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
        return self.score(self.checked_counts()).mean().item()

    def interval(self, **settings: Any) -> tuple[float, float] | None:
        """Return (low, high), see `bootstrap_interval`; the images are resampled."""
        scores = self.score(self.per_image_counts())  # (N,)
        return bootstrap_interval(scores, mean_of_samples, **settings)
