"""Mixed precision: full weights, half-precision products, and gradients that do not vanish."""

import pytest
import torch
from torch import nn

from utils.errors import UserError
from utils.precision import Precision


def update(precision: Precision, scale_of_loss: float = 1.0) -> tuple[nn.Linear, torch.Tensor]:
    """Make one update of a small network; return it with its gradients as the optimizer saw them."""
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with precision.autocast():
        loss = network(torch.ones(2, 4)).float().square().mean() * scale_of_loss
    precision.backward(loss)
    precision.unscale(optimizer)
    gradient = network.weight.grad.clone()
    precision.step(optimizer)
    precision.finish_update()
    return network, gradient


def test_without_it_an_update_is_that_of_plain_torch():
    torch.manual_seed(0)
    plain = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    plain(torch.ones(2, 4)).square().mean().backward()
    optimizer.step()
    network, _ = update(Precision("no"))
    assert torch.equal(network.weight, plain.weight) and torch.equal(network.bias, plain.bias)


@pytest.mark.parametrize(("amp", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_have_the_dtype_and_weights_stay_full(amp, dtype):
    precision = Precision(amp, "cpu")
    network = nn.Linear(4, 3)
    with precision.autocast():
        assert network(torch.ones(2, 4)).dtype == dtype
    assert network.weight.dtype == torch.float32
    assert network(torch.ones(2, 4)).dtype == torch.float32  # outside of it


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_small_gradients_do_not_vanish_and_have_their_true_size(amp):
    _, exact = update(Precision("no"), scale_of_loss=1e-9)
    _, gradient = update(Precision(amp), scale_of_loss=1e-9)
    assert (gradient - exact).abs().max() < 0.02 * exact.abs().max()

    unscaled = Precision("fp16")  # the fault planted: float16 without the scale
    unscaled.scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert not update(unscaled, scale_of_loss=1e-9)[1].any()


def test_float16_scales_the_loss_and_an_overflow_costs_one_step():
    precision = Precision("fp16")
    scale = precision.scaler.get_scale()
    torch.manual_seed(0)
    before = nn.Linear(4, 3).weight
    network, gradient = update(precision, scale_of_loss=1e38)
    assert scale > 1 and not gradient.isfinite().all()
    assert torch.equal(network.weight, before) and precision.scaler.get_scale() < scale


def test_scale_is_saved_and_ignored_where_nothing_is_scaled():
    precision, resumed = Precision("fp16"), Precision("fp16")
    update(precision, scale_of_loss=1e38)
    resumed.load_state_dict(precision.state_dict())
    assert resumed.scaler.get_scale() == precision.scaler.get_scale() != Precision("fp16").scaler.get_scale()
    other = Precision("no")
    other.load_state_dict(precision.state_dict())
    assert other.state_dict() == {}
    resumed.load_state_dict(other.state_dict())
    assert resumed.scaler.get_scale() == precision.scaler.get_scale()


def test_a_second_step_of_an_optimizer_is_refused_where_the_scale_is_settled_once_per_update():
    network, optimizers = torch.nn.Linear(2, 1), []
    for _ in range(2):
        optimizers.append(torch.optim.SGD(network.parameters(), lr=0.1))

    def step(precision, optimizer):
        precision.backward(network(torch.ones(1, 2)).sum())
        precision.unscale(optimizer)
        precision.step(optimizer)

    scaled, plain = Precision("fp16"), Precision("no")
    for _ in range(2):  # updates
        for optimizer in optimizers:
            step(scaled, optimizer)
        scaled.finish_update()
    step(scaled, optimizers[0])
    with pytest.raises(UserError, match="steps SGD twice"):
        step(scaled, optimizers[0])
    for _ in range(2):
        step(plain, optimizers[0])
