"""How weights begin."""

import pytest
import torch
from torch import nn

from extras.initialize import initialize

XAVIER = (2 / (72 + 64 * 9)) ** 0.5  # of 8 channels to 64, 3 x 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64, 32), nn.Embedding(4, 4))


def test_default_changes_nothing_and_draws_nothing():
    plain, same = network(), network()
    before = torch.get_rng_state()
    initialize(same)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), same.parameters(), strict=True))


@pytest.mark.parametrize(
    ("init", "spread"),
    [("kaiming", (2 / 72) ** 0.5), ("xavier", XAVIER), ("xavier_normal", XAVIER), ("normal", 0.02)],
)
def test_convolutions_spread_as_the_papers_say_and_the_rest_stays(init, spread):
    plain, other = network(), initialize(network(), init)
    assert float(other[0].weight.detach().std()) == pytest.approx(spread, rel=0.05)
    assert not other[0].bias.any() and not other[3].bias.any()
    for place in (1, 4):
        assert torch.equal(plain[place].weight, other[place].weight)
    again = initialize(network(), init)  # the same seed, the same weights
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), again.parameters(), strict=True))


def test_orthogonal_rows():
    weight = initialize(network(), "orthogonal")[3].weight.detach()  # (32, 64)
    torch.testing.assert_close(weight @ weight.T, torch.eye(32), atol=1e-5, rtol=0)


def test_what_is_frozen_stays():
    plain, other = network(), network()
    other[3].requires_grad_(False)
    initialize(other, "normal")
    assert torch.equal(plain[3].weight, other[3].weight) and not torch.equal(plain[0].weight, other[0].weight)


def test_a_run_begins_with_what_is_named(build, weights):
    plain, orthogonal = weights(build()), weights(build("--init", "orthogonal"))
    weight = orthogonal["layers.2.weight"]
    torch.testing.assert_close(weight @ weight.T, torch.eye(512), atol=1e-4, rtol=0)
    assert not torch.equal(plain["layers.2.weight"], weight)
