"""Every metric of segmentation against torchmetrics, fed batch by batch with a small last batch, and its interval."""

import doctest
import math
import time

import pytest
import torch
import torchmetrics
from torchmetrics.segmentation import DiceScore

import utils.overlap
from utils.meter import predicted_classes
from utils.overlap import Dice, IoU, MeanImageDice, bootstrap_interval, mean_of_samples

SIZES = (8, 8, 3)  # the last batch is smaller


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def segmentation(num_classes, sizes=SIZES, side=6):
    """Logits (n, num_classes, side, side) and masks (n, side, side)."""
    made = []
    for size in sizes:
        masks = torch.randint(max(num_classes, 2), (size, side, side))
        logits = torch.randn(size, num_classes, side, side)
        logits += masks[:, None] - 0.5 if num_classes == 1 else torch.eye(num_classes)[masks].permute(0, 3, 1, 2)
        made.append((logits, masks))
    return made


def fed(meter, batches):
    for predictions, truth in batches:
        meter.update(predictions, truth)
    return meter


def joined(batches):
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def test_docstring_examples():
    assert doctest.testmod(utils.overlap).failed == 0


def as_index(logits, masks):
    """Predicted and actual class indices, as the oracles want them."""
    return predicted_classes(logits), masks


@pytest.mark.parametrize("num_classes", [1, 2, 5])
@pytest.mark.parametrize(("meter", "level"), [(Dice, "global"), (MeanImageDice, "samplewise")])
def test_dice_agrees_with_torchmetrics(meter, level, num_classes):
    batches = segmentation(num_classes)
    oracle = DiceScore(
        max(num_classes, 2), include_background=False, average="macro", aggregation_level=level, input_format="index"
    )
    fed(oracle, [as_index(*batch) for batch in batches])
    assert fed(meter(num_classes), batches).compute() == pytest.approx(oracle.compute().item(), abs=1e-6)


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_iou_agrees_with_torchmetrics(num_classes):
    batches = segmentation(num_classes)
    oracle = torchmetrics.functional.classification.multiclass_jaccard_index(
        *as_index(*joined(batches)), max(num_classes, 2), average="none"
    )
    assert fed(IoU(num_classes), batches).compute() == pytest.approx(oracle[1:].mean().item(), abs=1e-6)


def one_hot_logits(classes, num_classes):
    """Logits whose largest is at the given class; for one logit per pixel, its sign."""
    if num_classes == 1:
        return classes[:, None].float() - 0.5
    return torch.nn.functional.one_hot(classes, num_classes).movedim(-1, 1).float()


def test_pooled_and_per_image_dice_differ_by_hand():
    # Image 1: 4 of 4 pixels found. Image 2: 1 actual pixel, another one predicted.
    predicted = torch.tensor([[[1, 1], [1, 1]], [[1, 0], [0, 0]]])
    masks = torch.tensor([[[1, 1], [1, 1]], [[0, 0], [0, 1]]])
    batches = [(one_hot_logits(predicted, 1), masks)]
    assert fed(Dice(1), batches).compute() == pytest.approx(2 * 4 / 10)
    assert fed(IoU(1), batches).compute() == pytest.approx(4 / 6)
    assert fed(MeanImageDice(1), batches).compute() == pytest.approx((1 + 0) / 2)


def test_a_class_absent_everywhere_is_left_out_of_the_mean():
    predicted = torch.tensor([[[1, 1, 0, 0]]])
    masks = torch.tensor([[[1, 0, 0, 0]]])
    for meter, score in ((Dice, 2 / 3), (IoU, 1 / 2), (MeanImageDice, 2 / 3)):
        assert fed(meter(4), [(one_hot_logits(predicted, 4), masks)]).compute() == pytest.approx(score)


def test_a_class_that_is_only_predicted_counts_as_0():
    predicted = torch.tensor([[[1, 2, 0, 0]]])
    masks = torch.tensor([[[1, 0, 0, 0]]])
    for meter in (Dice, IoU, MeanImageDice):
        assert fed(meter(3), [(one_hot_logits(predicted, 3), masks)]).compute() == pytest.approx(1 / 2)


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("meter", [Dice, IoU, MeanImageDice])
def test_nothing_to_find_and_nothing_found_is_1(meter, num_classes):
    empty = torch.zeros(2, 3, 3, dtype=torch.int64)
    full = fed(meter(num_classes), [(one_hot_logits(empty, num_classes), empty)])
    assert full.compute() == 1.0
    assert full.interval(num_resamples=5) is None


def test_an_empty_image_counts_as_1_only_when_nothing_is_predicted():
    masks = torch.zeros(2, 1, 4, dtype=torch.int64)
    predicted = torch.tensor([[[0, 0, 0, 0]], [[0, 0, 0, 1]]])
    assert fed(MeanImageDice(1), [(one_hot_logits(predicted, 1), masks)]).compute() == 0.5


def test_masks_may_be_float_or_bool():
    logits, masks = joined(segmentation(1))
    for dtype in (torch.float32, torch.bool, torch.uint8):
        assert fed(Dice(1), [(logits, masks.to(dtype))]).compute() == fed(Dice(1), [(logits, masks)]).compute()


def test_ignored_pixels_count_in_no_score():
    predicted = torch.tensor([[[1, 1, 1, 0, 2]]])
    masks = torch.tensor([[[1, 0, -100, -100, 2]]])  # of the four pixels that count: 1 right, 1 wrong, 1 right
    logits = one_hot_logits(predicted, 3)
    assert fed(Dice(3), [(logits, masks)]).compute() == pytest.approx((2 / 3 + 1) / 2)
    assert fed(IoU(3), [(logits, masks)]).compute() == pytest.approx((1 / 2 + 1) / 2)


@pytest.mark.parametrize("kind", [Dice, IoU, MeanImageDice])
def test_masks_of_other_values_than_classes_are_no_perfect_score(kind):
    """Masks of 0 and 255, and a network that predicts nothing: there seemed to be nothing to find."""
    masks = torch.tensor([[[0, 255, 255, 0]], [[0, 0, 0, 0]]])
    nothing = one_hot_logits(torch.zeros_like(masks), 1)
    with pytest.raises(ValueError, match="2 pixels of the masks are of no class: these are numbered from 0 to 1"):
        fed(kind(1), [(nothing, masks)]).compute()
    assert fed(kind(1), [(nothing, masks // 255)]).compute() == {Dice: 0, IoU: 0, MeanImageDice: 0.5}[kind]
    assert fed(kind(1, ignore_index=255), [(nothing, masks)]).compute() == 1
    assert fed(kind(3), [(one_hot_logits(masks // 255, 3), masks // 255)]).compute() == 1


def test_counts_are_kept_for_each_image_and_foreground_class():
    assert fed(Dice(4), segmentation(4)).per_image_counts().shape == (sum(SIZES), 3, 3)
    assert fed(IoU(1), segmentation(1)).per_image_counts().shape == (sum(SIZES), 1, 3)


def test_overlap_refuses_shapes_that_would_be_broadcast():
    with pytest.raises(AssertionError, match="masks"):
        Dice(1).update(torch.randn(4, 1, 5, 5), torch.zeros(4, 1, 5, 5))
    with pytest.raises(AssertionError, match="num_classes is 1"):
        Dice(1).update(torch.randn(4, 2, 5, 5), torch.zeros(4, 5, 5))
    with pytest.raises(ValueError, match="num_classes 0"):
        IoU(0)


# ---- intervals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("meter", [Dice(1), IoU(3), MeanImageDice(3)])
def test_nothing_seen_is_nan_and_has_no_interval(meter):
    assert math.isnan(meter.compute()) and meter.interval() is None


def test_bootstrap_covers_the_true_value_about_as_often_as_it_says():
    truth, num_samples, num_experiments = 0.7, 100, 200
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for experiment in range(num_experiments):
        correct = torch.rand(num_samples, generator=generator) < truth
        low, high = bootstrap_interval(correct, mean_of_samples, num_resamples=300, seed=experiment)
        covered += low <= truth <= high
    assert 0.90 <= covered / num_experiments <= 0.99


def test_bootstrap_width_is_that_of_the_normal_approximation():
    correct = torch.arange(1000) < 800
    low, high = bootstrap_interval(correct, mean_of_samples)
    standard_error = math.sqrt(0.8 * 0.2 / 1000)
    assert low == pytest.approx(0.8 - 1.96 * standard_error, abs=0.15 * standard_error)
    assert high == pytest.approx(0.8 + 1.96 * standard_error, abs=0.15 * standard_error)


def test_a_higher_confidence_gives_a_wider_interval():
    correct = torch.arange(50) < 30
    narrow = bootstrap_interval(correct, mean_of_samples, confidence=0.5)
    wide = bootstrap_interval(correct, mean_of_samples, confidence=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_bootstrap_of_a_ratio_agrees_with_resampling_by_hand():
    counts = fed(Dice(1), segmentation(1, sizes=(32,))).per_image_counts()  # (32, 1, 3)
    generator = torch.Generator().manual_seed(4)
    values = []
    for _ in range(50):
        intersection, predicted, actual = counts[torch.randint(32, (32,), generator=generator)].sum(dim=(0, 1))
        values.append(2 * intersection / (predicted + actual))
    wanted = torch.stack(values).quantile(torch.tensor([0.05, 0.95], dtype=torch.float64))
    got = fed(Dice(1), [(torch.zeros(0, 1, 2, 2), torch.zeros(0, 2, 2))])  # an empty batch adds nothing
    got.counts.append(counts.long())
    assert got.interval(num_resamples=50, confidence=0.9, seed=4) == pytest.approx(tuple(wanted.tolist()), abs=1e-12)


@pytest.mark.parametrize("build", [Dice, IoU, MeanImageDice])
def test_an_interval_holds_its_score_and_repeats(build):
    meter = fed(build(3), segmentation(3, sizes=(20, 12)))
    low, high = meter.interval(num_resamples=200)
    assert low < meter.compute() < high
    assert meter.interval(num_resamples=200) == (low, high)
    assert meter.interval(num_resamples=200, seed=1) != (low, high)


def test_few_or_equal_samples_have_no_interval():
    assert bootstrap_interval(torch.ones(30), mean_of_samples) is None
    assert bootstrap_interval(torch.rand(29), mean_of_samples) is None
    assert bootstrap_interval(torch.empty(0), mean_of_samples) is None


def test_bootstrap_of_ten_thousand_samples_is_fast():
    correct = torch.rand(10_000) < 0.9
    start = time.process_time()
    bootstrap_interval(correct, mean_of_samples)
    assert time.process_time() - start < 2.0  # about 0.2 s; the rest is for a busy machine
