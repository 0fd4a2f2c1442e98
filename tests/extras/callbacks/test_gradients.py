"""The gradients of a layer have the norm that torch's own clipping finds."""

import pytest
import torch
from torch import nn

from extras.callbacks.gradients import gradient_norms


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), nn.Linear(3, 2))
    network(torch.randn(5, 4)).square().sum().backward()
    return network


def test_the_norm_of_each_layer_and_of_all(network):
    norms = gradient_norms(network)
    assert list(norms) == ["0.0", "0.1", "1"]
    expected = nn.utils.get_total_norm([p.grad for p in network[0][1].parameters()])
    assert torch.allclose(norms["0.1"], expected)
    whole = gradient_norms(network, depth=1)
    assert list(whole) == ["0", "1"]
    all_grads = nn.utils.get_total_norm([p.grad for p in network.parameters()])
    assert torch.allclose(torch.stack([*whole.values()]).norm(), all_grads)


def test_what_has_no_gradient_is_passed_over_and_sparse_ones_count(network):
    network[1].requires_grad_(False)
    for parameter in network[1].parameters():
        parameter.grad = None
    assert list(gradient_norms(network)) == ["0.0", "0.1"]
    embedding = nn.Embedding(9, 2, sparse=True)
    embedding(torch.tensor([1, 1])).sum().backward()
    assert gradient_norms(embedding)["weight"].item() == pytest.approx(8**0.5)
