"""When a metric counts as better, and when it is time to stop."""

import doctest
import io

import pytest
import torch

from utils import earlystopper
from utils.earlystopper import EarlyStopper, direction

NAN = float("nan")


@pytest.mark.parametrize(
    ("mode", "values", "improved", "best"),
    [
        ("max", [0.5, 0.7, 0.6, 0.7, 0.8], [True, True, False, False, True], 0.8),
        ("min", [0.5, 0.7, 0.4, 0.4, 0.3], [True, False, True, False, True], 0.3),
    ],
)
def test_improvement_follows_the_mode(mode, values, improved, best):
    stopper = EarlyStopper(mode)
    assert [stopper.update(value) for value in values] == improved
    assert stopper.best == best


@pytest.mark.parametrize(
    "name", ["mae", "val_MAE", "rmse", "loss/dice", "error", "top1-error", "perplexity", "my/nll", "pixelloss"]
)
def test_of_some_metrics_less_is_better(name):
    assert direction(name) == "min" and direction(name, "max") == "max"


@pytest.mark.parametrize("name", ["accuracy", "psnr", "dice", "ssim", "errorless", "f1", "lossless_share"])
def test_of_others_more_is(name):
    assert direction(name) == "max" and direction(name, "min") == "min"


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("patience", [1, 3])
def test_constant_metric_stops_after_exactly_patience_validations_without_improvement(mode, patience):
    stopper = EarlyStopper(mode, patience)
    stopper.update(0.5)
    stops = []
    for _ in range(patience):
        stops.append(stopper.should_stop)
        stopper.update(0.5)
    assert stops == [False] * patience and stopper.should_stop
    assert stopper.num_bad == patience


def test_improvement_starts_the_count_anew():
    stopper = EarlyStopper("max", patience=2)
    for value in (0.5, 0.4, 0.6, 0.4):
        stopper.update(value)
    assert stopper.num_bad == 1 and not stopper.should_stop


def test_patience_zero_never_stops():
    stopper = EarlyStopper("max", patience=0)
    for _ in range(100):
        stopper.update(0.5)
    assert stopper.num_bad == 99 and not stopper.should_stop


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_improvement_must_exceed_min_delta_and_small_gains_add_up(mode, sign):
    stopper = EarlyStopper(mode, min_delta=0.25)  # binary fractions, so that the sums are exact
    gains = [0.0, 0.125, 0.25, 0.375, 0.5]
    assert [stopper.update(sign * gain) for gain in gains] == [True, False, False, True, False]
    assert stopper.best == sign * 0.375


@pytest.mark.parametrize("mode", ["max", "min"])
def test_nan_is_never_an_improvement_not_even_as_the_first_value(mode):
    stopper = EarlyStopper(mode, patience=2)
    assert [stopper.update(value) for value in (NAN, 0.5, NAN, NAN)] == [False, True, False, False]
    assert stopper.best == 0.5 and stopper.should_stop


def test_infinite_loss_is_no_improvement():
    assert not EarlyStopper("min").update(float("inf"))
    assert not EarlyStopper("max").update(float("-inf"))


def test_takes_tensors_and_remembers_plain_numbers():
    stopper = EarlyStopper("max")
    assert stopper.update(torch.tensor(0.5)) is True
    assert type(stopper.best) is float


def test_state_round_trip_passes_a_weights_only_load():
    stopper = EarlyStopper("min", patience=3)
    for value in (0.5, 0.6, 0.7):
        stopper.update(value)
    buffer = io.BytesIO()
    torch.save([stopper.state_dict(), EarlyStopper().state_dict()], buffer)
    buffer.seek(0)
    state, _ = torch.load(buffer, weights_only=True)
    resumed = EarlyStopper("min", patience=3)
    resumed.load_state_dict(state)
    assert (resumed.best, resumed.num_bad, resumed.should_stop) == (0.5, 2, False)
    resumed.update(0.5)
    assert resumed.should_stop


@pytest.mark.parametrize("forged", [{"best": None}, {"best": float("nan")}, {"num_bad": -1}, {"num_bad": None}])
def test_state_that_cannot_be_is_refused(forged):
    stopper = EarlyStopper()
    with pytest.raises(ValueError, match="cannot be"):
        stopper.load_state_dict(stopper.state_dict() | forged)


def test_examples_in_the_docstrings():
    assert doctest.testmod(earlystopper).failed == 0
