"""The judge's score of generated images."""

import math

import pytest
import torch

from extras.gan.classifier_score import ClassifierScore
from utils.errors import UserError


def test_classifier_score_is_the_formula():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3
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
