"""The range test finds where training learns, leaves everything as it was, and survives a divergence."""

import itertools

import numpy as np
import pytest
import torch

from tools.lr_finder import LrCurve, describe, find_lr
from tools.snapshot import Snapshot
from utils.optimizer import SGD


def quadratic(scale=1.0, start=3.0, **settings):
    """A range test on scale * w² / 2, which plain SGD makes smaller below the rate 2 / scale; its weight, the curve."""
    weight = torch.nn.Parameter(torch.tensor([start]))
    module = torch.nn.ParameterList([weight])
    optimizer = SGD([weight], lr=1.0)
    snapshot = {"module": module, "optimizer": optimizer}

    def step(number):
        optimizer.zero_grad()
        loss = scale * (weight**2).sum() / 2 * (1 + 0.01 * (number % 3))
        loss.backward()
        optimizer.step()
        return loss.item()

    curve = find_lr(
        step, [optimizer], lambda run: itertools.count(run), lambda: Snapshot(snapshot), Snapshot.put_back, **settings
    )
    return weight, optimizer, curve


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_the_suggestion_follows_the_curvature(scale):
    _, _, curve = quadratic(scale, low=1e-6, high=1e4, num_values=80)
    assert 0.01 / scale < curve.suggestion < 2 / scale
    assert len(curve.suggestions) == 3 and np.isnan(curve.losses[:, -1]).all()  # far above 2 / scale each run ends
    assert f"--lr {curve.suggestion:.2g}, between" in describe(curve) and "3 of 3 runs ended early" in describe(curve)


def test_the_state_is_put_back_even_after_an_error():
    weight, optimizer, _ = quadratic(high=100.0)
    assert weight.item() == 3.0 and optimizer.param_groups[0]["lr"] == 1.0 and weight.grad is None
    seen = []
    with pytest.raises(ZeroDivisionError):
        find_lr(lambda _: 1 / 0, [optimizer], itertools.count, lambda: 7, seen.append)
    assert seen == [7, 7]


def test_groups_keep_the_ratio_of_their_rates():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(3)]
    one = SGD([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:2], "lr": 0.01}])
    two = SGD(weights[2:], lr=torch.tensor(0.2))
    two.param_groups[0]["initial_lr"] = 0.3  # a schedule has begun below it
    seen = []

    def step(_):
        seen.append([float(group["lr"]) for optimizer in (one, two) for group in optimizer.param_groups])
        return 1.0

    find_lr(step, [one, two], lambda run: itertools.count(), lambda: None, lambda _: None,
            low=1.0, high=100.0, num_values=3, num_updates=1, num_runs=1, base_lr=0.1)  # fmt: skip
    assert np.allclose(seen, [[1, 0.1, 3], [10, 1, 30], [100, 10, 300]])


def test_no_suggestion_where_nothing_is_learned():
    flat = LrCurve(np.geomspace(1e-7, 1, 20), np.full((2, 20), 2.3))
    assert flat.suggestion is None and describe(flat).startswith("No suggestion: between 1e-07 and 1 ")
    never = LrCurve(np.geomspace(1e-7, 1, 20), np.full((2, 20), np.nan))
    assert never.suggestion is None


FALL = [1.9, 1.5, 1.2, 1.0]


@pytest.mark.parametrize(("losses", "warning"), [
    ([2.0] * 7 + FALL, "Warning: the loss falls up to 1, next to the highest"),
    ([2.0] * 5 + FALL + [1.1, 1.2], "Warning: the loss falls up to 0.4, next to the highest"),
    ([2.0] + FALL + [1.2] * 6, "Warning: the loss falls fastest at 0.00063, next to the lowest"),
    ([2.0] * 3 + FALL + [1.2] * 4, ""),
])  # fmt: skip
def test_a_suggestion_at_an_edge_of_the_range_is_doubtful(losses, warning):
    text = describe(LrCurve(np.geomspace(1e-4, 1, 11), np.array([losses])))
    assert text.startswith("Suggestion") and warning in text and ("Warning" in text) == bool(warning), text


@pytest.mark.parametrize("num_values", [2, 3])
def test_few_rates_are_described_too(num_values):
    text = describe(LrCurve(np.geomspace(1e-2, 1, num_values), np.linspace([2.0], [1.0], num_values).T))
    assert text.startswith("Suggestion") and "Try a higher range" in text
