"""Image quality against torchmetrics; what holds for every meter is in test_meter.py."""

import doctest
import math

import pytest
import torch
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

import utils.image_metrics
from utils.errors import UserError
from utils.image_metrics import PSNR, SSIM, ClassifierScore


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def images(sizes=(8, 8, 3), channels=2, height=17, width=14):
    made = []
    for size in sizes:
        target = torch.rand(size, channels, height, width)
        made.append(((target + 0.1 * torch.randn_like(target)).clamp(0, 1), target))
    return made


def fed(meter, batches):
    for predictions, truth in batches:
        meter.update(predictions, truth)
    return meter


def joined(batches):
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def test_docstring_examples():
    assert doctest.testmod(utils.image_metrics).failed == 0


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_psnr_agrees_with_torchmetrics(data_range):
    batches = [(preds * data_range, target * data_range) for preds, target in images()]
    oracle = PeakSignalNoiseRatio(data_range=data_range, reduction="elementwise_mean", dim=(1, 2, 3))
    assert fed(PSNR(data_range), batches).compute() == pytest.approx(oracle(*joined(batches)).item(), rel=1e-5)


def test_psnr_of_an_equal_image_is_infinite_and_so_is_the_mean():
    batches = images()
    assert fed(PSNR(), [*batches, (batches[0][1], batches[0][1])]).compute() == math.inf


@pytest.mark.parametrize("data_range", [1.0, 255.0])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 17, 14), (1, 6, 30)])
def test_ssim_agrees_with_torchmetrics(channels, height, width, data_range):
    batches = images(channels=channels, height=height, width=width)
    batches = [(preds * data_range, target * data_range) for preds, target in batches]
    oracle = fed(StructuralSimilarityIndexMeasure(data_range=data_range), batches)
    assert fed(SSIM(data_range), batches).compute() == pytest.approx(oracle.compute().item(), abs=1e-5)


def test_ssim_of_dark_images_agrees_with_torchmetrics():
    # Near black, the constants of the formula decide, so that a wrong one shows.
    batches = [(preds * 2.55, target * 2.55) for preds, target in images()]
    oracle = fed(StructuralSimilarityIndexMeasure(data_range=255.0), batches)
    assert fed(SSIM(255.0), batches).compute() == pytest.approx(oracle.compute().item(), abs=1e-5)


def test_ssim_of_an_equal_image_is_1():
    assert fed(SSIM(), [(target, target) for _, target in images()]).compute() == pytest.approx(1.0, abs=1e-6)


def test_ssim_refuses_an_image_too_small_to_reflect():
    with pytest.raises(UserError, match="not 5 by 28"):
        SSIM().update(torch.rand(1, 1, 5, 28), torch.rand(1, 1, 5, 28))


@pytest.mark.parametrize("build", [PSNR, SSIM])
def test_bytes_are_compared_as_numbers(build):
    batches = [((preds * 255).byte(), (target * 255).byte()) for preds, target in images()]
    as_floats = [(preds.float(), target.float()) for preds, target in batches]
    assert fed(build(255.0), batches).compute() == fed(build(255.0), as_floats).compute()


@pytest.mark.parametrize("build", [PSNR, SSIM])
def test_shapes_that_would_be_broadcast_are_refused(build):
    with pytest.raises(AssertionError, match="target"):
        build().update(torch.rand(4, 3, 8, 8), torch.rand(4, 1, 8, 8))


@pytest.mark.parametrize("build", [PSNR, SSIM])
def test_image_metrics_keep_their_precision_under_autocast(build):
    batches = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = fed(build(), batches).compute()
    assert mixed == fed(build(), batches).compute()


@pytest.mark.parametrize("build", [PSNR, SSIM])
def test_nothing_seen_is_nan(build):
    assert math.isnan(build().compute())


# ---- a classifier's score --------------------------------------------------------------------------------------------
def test_classifier_score_is_the_formula():
    logits = torch.randn(50, 4) * 3
    meter = ClassifierScore(4, threshold=0.8)
    for part in logits.split(7):
        meter.update(part)
    p = logits.double().softmax(dim=1)
    divergence = (p * (p / p.mean(dim=0)).log()).sum(dim=1)
    shares = p.argmax(dim=1).bincount(minlength=4) / 50
    found = meter.compute()
    assert found["score"] == pytest.approx(divergence.mean().exp().item(), rel=1e-6)
    assert found["confident"] == pytest.approx((p.amax(dim=1) >= 0.8).double().mean().item())
    assert found["diversity"] == pytest.approx(-(shares * shares.log()).sum().item() / math.log(4), rel=1e-6)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (1000 * torch.eye(5), (5, 1, 1)),  # sure, and all classes
        (1000 * torch.eye(5)[[2] * 8], (1, 1, 0)),  # sure of one class
        (torch.zeros(8, 5), (1, 0, 0)),  # never sure
    ],
)  # fmt: skip
def test_classifier_score_at_its_ends(logits, expected):
    meter = ClassifierScore(5)
    meter.update(logits)
    assert tuple(meter.compute().values()) == pytest.approx(expected)


def test_classifier_score_of_nothing_and_of_wrong_arguments():
    assert all(math.isnan(ClassifierScore(3).compute()[name]) for name in ("score", "confident", "diversity"))
    for arguments in ((1,), (3, 1.5)):
        with pytest.raises(UserError):
            ClassifierScore(*arguments)
