"""Metrics of numbers against numpy, also merged, and far from zero."""

import math

import numpy as np
import pytest
import torch

from extras.regression import R2, RMSE


@pytest.mark.parametrize("about", [0.0, 1e6])
def test_metrics_are_those_of_the_formulas(about):
    dice = np.random.default_rng(0)
    targets = about + dice.normal(0, 3, 100)
    predictions = targets + dice.normal(0, 1, 100)
    meters = [[RMSE(), R2(about)] for _ in range(2)]
    for meter in meters[0]:
        meter.update(torch.tensor(predictions[:30])[:, None], torch.tensor(targets[:30])[:, None])
    for meter in meters[1]:
        meter.update(torch.tensor(predictions[30:]), torch.tensor(targets[30:]))
    for first, second in zip(*meters, strict=True):
        first.merge([first.state_dict(), second.state_dict()])
    squares = (predictions - targets) ** 2
    assert meters[0][0].compute() == pytest.approx(math.sqrt(squares.mean()), rel=1e-9)
    expected = 1 - squares.sum() / ((targets - targets.mean()) ** 2).sum()
    assert meters[0][1].compute() == pytest.approx(expected, rel=1e-9)


def test_without_variance_there_is_no_share():
    meter = R2()
    assert math.isnan(meter.compute())
    meter.update(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0]))
    assert math.isnan(meter.compute())
