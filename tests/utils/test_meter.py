"""The base of all meters, what holds for every meter, and the mean over samples."""

import doctest
import io
import math
import random

import numpy as np
import pytest
import torch
import torchmetrics

import utils.meter
from extras.precision_recall import PrecisionRecallF1
from utils.meter import AvgMeter, Meter
from utils.metrics import Accuracy, ConfusionMatrix
from utils.overlap import Dice, IoU, MeanImageDice


class SumAndRows(Meter):
    """One state of each kind."""

    def __init__(self, width=2):
        super().__init__()
        self.declare_sum("total", (width,), torch.float64)
        self.declare_rows("rows", (width,), torch.float32)

    def update(self, values):
        self.total = self.total + values.sum(dim=0)
        self.rows.append(values)

    def compute(self):
        return self.total, torch.cat(self.rows)


def batches(sizes=(4, 4, 3), width=2):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, width, generator=generator) for size in sizes]


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_docstring_examples():
    assert doctest.testmod(utils.meter).failed == 0


def test_reset_forgets_everything():
    meter, fresh = SumAndRows(), SumAndRows()
    for values in batches():
        meter.update(values)
    meter.reset()
    for name, value in fresh.state_dict().items():
        assert torch.equal(meter.state_dict()[name], value)


def test_reset_is_not_undone_by_writing_in_place():
    meter = SumAndRows()
    meter.total += 5  # a subclass may do so
    meter.reset()
    assert torch.equal(meter.total, torch.zeros(2, dtype=torch.float64))


def test_a_state_saved_mid_stream_continues_bit_for_bit():
    whole, first_part, second_part = SumAndRows(), SumAndRows(), SumAndRows()
    for values in batches():
        whole.update(values)
    for values in batches()[:2]:
        first_part.update(values)
    second_part.load_state_dict(saved_and_loaded(first_part.state_dict()))
    for values in batches()[2:]:
        second_part.update(values)
    for got, wanted in zip(second_part.compute(), whole.compute(), strict=True):
        assert torch.equal(got, wanted)


def test_a_snapshot_is_not_changed_by_later_updates():
    meter = SumAndRows()
    meter.update(batches()[0])
    snapshot = meter.state_dict()
    before = {name: value.clone() for name, value in snapshot.items()}
    meter.total += 1
    meter.update(batches()[1])
    for name in snapshot:
        assert torch.equal(snapshot[name], before[name])


def test_a_loaded_state_is_a_copy():
    meter, state = SumAndRows(), SumAndRows().state_dict()
    meter.load_state_dict(state)
    meter.total += 1
    assert state["total"].sum() == 0


def test_loading_the_state_of_another_meter_is_refused_by_name():
    with pytest.raises(ValueError, match="SumAndRows cannot load 'total': it is missing"):
        SumAndRows().load_state_dict(AvgMeter().state_dict())


@pytest.mark.parametrize("name", ["total", "rows"])
def test_loading_another_shape_is_refused_and_changes_nothing(name):
    meter = SumAndRows(width=2)
    meter.update(batches()[0])
    state, before = meter.state_dict(), meter.state_dict()
    state[name] = SumAndRows(width=3).state_dict()[name]
    with pytest.raises(ValueError, match=name):
        meter.load_state_dict(state)
    for key in before:
        assert torch.equal(meter.state_dict()[key], before[key])


def test_to_returns_the_meter_and_moves_every_state():
    meter = SumAndRows()
    assert meter.to("meta") is meter
    assert meter.device.type == "meta"
    assert {value.device.type for value in meter.state_dict().values()} == {"meta"}
    meter.reset()
    assert {value.device.type for value in meter.state_dict().values()} == {"meta"}


def test_to_keeps_what_was_seen():
    meter = SumAndRows()
    meter.update(batches()[0])
    total, rows = meter.to("cpu").compute()
    assert torch.equal(rows, batches()[0])
    assert torch.equal(total, batches()[0].sum(dim=0).double())


# What holds for every meter


def batches_for(kind, sizes=(8, 8, 3)):
    """Predictions and truths; the last batch is smaller."""
    generator = torch.Generator().manual_seed(0)
    shape = {"classes": (5,), "one logit": (1, 9, 8), "pixels": (3, 9, 8), "image": (2, 9, 8)}[kind]
    made = []
    for size in sizes:
        truth_shape = (size, *shape) if kind == "image" else (size, *shape[1:])
        truth = torch.randint(max(2, shape[0]), truth_shape, generator=generator)
        made.append((torch.randn(size, *shape, generator=generator), truth))
    return made


def fed(meter, batches):
    for predictions, truth in batches:
        meter.update(predictions, truth)
    return meter


METERS = {
    "accuracy": (Accuracy, batches_for("classes")),
    "top 2 accuracy": (lambda: Accuracy(top_k=2), batches_for("classes")),
    "confusion matrix": (lambda: ConfusionMatrix(5), batches_for("classes")),
    "precision, recall, f1": (lambda: PrecisionRecallF1(5), batches_for("classes")),
    "dice": (lambda: Dice(1), batches_for("one logit")),
    "iou": (lambda: IoU(3), batches_for("pixels")),
    "mean image dice": (lambda: MeanImageDice(3), batches_for("pixels")),
}
all_meters = pytest.mark.parametrize(("build", "batches"), METERS.values(), ids=METERS.keys())


@all_meters
def test_every_meter_saved_mid_stream_continues_bit_for_bit(build, batches):
    resumed = build()
    resumed.load_state_dict(saved_and_loaded(fed(build(), batches[:2]).state_dict()))
    fed(resumed, batches[2:])
    whole = fed(build(), batches)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)
    assert str(resumed.compute()) == str(whole.compute())


@all_meters
def test_every_meter_starts_again_after_reset(build, batches):
    meter = fed(build(), batches[:1])
    meter.reset()
    assert str(fed(meter, batches[1:]).compute()) == str(fed(build(), batches[1:]).compute())


@all_meters
def test_no_update_reads_from_the_device(build, batches):
    meter = build().to("meta")  # tensors without data: reading a number from one fails
    for predictions, truth in batches:
        meter.update(predictions.to("meta"), truth.to("meta"))


@all_meters
def test_no_meter_keeps_a_gradient(build, batches):
    meter = fed(build(), [(predictions.clone().requires_grad_(), truth) for predictions, truth in batches])
    assert not any(value.requires_grad for value in meter.state_dict().values())


@all_meters
def test_every_meter_may_cross_inference_mode(build, batches):
    meter = build()
    with torch.inference_mode():
        meter.reset()
        fed(meter, batches[:1])
    assert str(fed(meter, batches[1:]).compute()) == str(fed(build(), batches).compute())


@all_meters
def test_the_global_random_state_is_untouched(build, batches):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    meter = fed(build(), batches)
    meter.compute()
    if hasattr(meter, "interval"):
        meter.interval()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


# AvgMeter


def test_mean_over_ragged_batches_is_the_mean_over_samples():
    meter = AvgMeter()
    for values in batches(sizes=(8, 8, 8, 1)):
        meter.update(values.mean(), n=values.numel())
    assert meter.compute() == pytest.approx(torch.cat(batches(sizes=(8, 8, 8, 1))).double().mean().item(), abs=1e-7)


def test_mean_agrees_with_torchmetrics():
    meter, oracle = AvgMeter(), torchmetrics.MeanMetric()
    for values in batches(sizes=(5, 5, 2)):
        meter.update(values.mean(), n=len(values))
        oracle.update(values.mean(), weight=len(values))
    assert meter.compute() == pytest.approx(oracle.compute().item(), abs=1e-6)


def test_numbers_and_tensors_are_the_same():
    of_numbers, of_tensors = AvgMeter(), AvgMeter()
    for value, n in ((0.5, 3), (0.25, 2), (4, 1)):
        of_numbers.update(value, n)
        of_tensors.update(torch.tensor(value), n)
    assert of_numbers.compute() == of_tensors.compute() == 6 / 6
    assert type(of_numbers.compute()) is float


def test_a_long_sum_keeps_its_precision():
    meter = AvgMeter()
    meter.update(1e8)
    for _ in range(100):
        meter.update(torch.tensor(1.0))  # float32 would lose every one of these
    assert meter.compute() == (1e8 + 100) / 101


def test_low_precision_values_are_weighted_in_high_precision():
    meter = AvgMeter()
    meter.update(torch.tensor(1.0, dtype=torch.bfloat16), n=257)  # bfloat16 has no 257
    assert meter.compute() == 1.0


def test_no_gradient_is_kept():
    meter = AvgMeter()
    meter.update(torch.tensor(1.0, requires_grad=True) * 2)
    assert not meter.total.requires_grad


def test_nothing_seen_is_nan_and_an_empty_batch_is_nothing():
    meter = AvgMeter()
    assert math.isnan(meter.compute())
    meter.update(torch.empty(0).mean(), n=0)
    meter.update(2.0, n=1)
    assert meter.compute() == 2.0


def test_a_batch_of_values_is_refused():
    with pytest.raises(AssertionError, match="one number"):
        AvgMeter().update(torch.ones(3))


def test_a_meter_may_cross_inference_mode():
    meter = AvgMeter()
    with torch.inference_mode():
        meter.reset()
        meter.update(torch.tensor(1.0))
    meter.update(torch.tensor(3.0))
    assert meter.compute() == 2.0


def test_update_never_reads_from_the_device():
    meter = AvgMeter().to("meta")  # tensors without data: reading a number from one fails
    meter.update(torch.tensor(1.0, device="meta"), n=3)
    with pytest.raises(RuntimeError):
        meter.compute()


# ---- several processes -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sizes", [[4, 0, 3], [0, 5], [7], [1, 1, 1], [0, 0]])
def test_merged_states_are_those_of_one_meter_that_has_seen_all_in_order(sizes):
    rows = torch.arange(2 * sum(sizes), dtype=torch.float32).reshape(-1, 2)
    whole, shares = SumAndRows(), []
    whole.update(rows)
    for part in rows.split(sizes):
        meter = SumAndRows()
        for one in part.split(2):  # in batches, and none at all of an empty share
            meter.update(one)
        shares.append(meter.state_dict())
    merged = SumAndRows()
    merged.update(torch.full((2, 2), 99.0))  # is forgotten
    merged.merge(shares)
    for name, value in whole.state_dict().items():
        assert torch.equal(merged.state_dict()[name], value) and merged.state_dict()[name].dtype == value.dtype


def test_a_merged_meter_goes_on_counting_and_resets():
    meters = [AvgMeter(), AvgMeter()]
    for meter, value in zip(meters, (1.0, 4.0), strict=True):
        meter.update(value, n=3)
    meters[0].merge([meter.state_dict() for meter in meters])
    assert meters[0].compute() == 2.5 and meters[1].compute() == 4.0
    meters[0].update(5.0, n=6)
    assert meters[0].compute() == 3.75
    meters[0].reset()
    assert math.isnan(meters[0].compute())
