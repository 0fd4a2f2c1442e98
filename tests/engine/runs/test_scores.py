"""Results are shown with their intervals, and held against what a checkpoint remembers."""

import pytest
import torchmetrics

from engine.runs.scores import check_monitor, compare_with_stored, format_results, scalars
from utils.errors import UserError
from utils.meter import AvgMeter
from utils.metrics import ConfusionMatrix, PrecisionRecallF1

NAN = float("nan")


def test_table_has_a_line_for_each_metric():
    lines = format_results("The model", 12345, {"loss": 0.25, "accuracy": 0.9}, {"accuracy": (0.88, 0.92)}).splitlines()
    assert lines[0] == "The model, n = 12,345:"
    assert lines[1].split() == ["loss", "0.2500"]
    assert lines[2].split() == ["accuracy", "0.9000", "95", "%", "interval", "0.8800", "to", "0.9200"]


def checkpoint(results: dict, **changed) -> dict:
    score = {"update": 7, "num_samples": 100, "results": results}
    return {"score": score, "progress": {"update": 7}, "options": {"amp": "no", "seed": 0}} | changed


def compare(new: dict, saved: dict, num_samples: int = 100, **options) -> str:
    return compare_with_stored(new, num_samples, saved, {"amp": "no", "seed": 0} | options)


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ({"dice": 0.9}, {"dice": 0.9}),
        ({"dice": 0.90001}, {"dice": 0.9}),  # rounding: another batch size, another machine
        ({"loss": 1e-8}, {"loss": 0.0}),
        ({"dice": NAN}, {"dice": NAN}),
        ({"dice": 0.9, "new metric": 1.0}, {"dice": 0.9}),
        ({"dice": 0.9}, {"dice": 0.9, "dropped metric": 1.0}),
    ],
)
def test_same_score_agrees(new, old):
    assert "agrees" in compare(new, checkpoint(old))


@pytest.mark.parametrize(("new", "old"), [(0.9, 0.901), (NAN, 0.9), (0.9, NAN), (0.9, float("inf")), (0.0, 1e-3)])
def test_another_score_is_refused_with_both_numbers(new, old):
    with pytest.raises(UserError, match=f"^dice is {new:.6f}, but {old:.6f} was stored"):
        compare({"loss": 1.0, "dice": new}, checkpoint({"loss": 1.0, "dice": old}))


def test_score_of_other_samples_or_other_weights_is_not_compared():
    saved = checkpoint({"dice": 0.1})
    assert "no score of these weights" in compare({"dice": 0.9}, saved, num_samples=99)
    assert "no score of these weights" in compare({"dice": 0.9}, saved | {"progress": {"update": 8}})
    assert "no score of these weights" in compare({"dice": 0.9}, saved | {"score": None})


def test_score_with_other_options_is_not_compared_unless_they_do_no_harm():
    assert "measured with amp=no" in compare({"dice": 0.9}, checkpoint({"dice": 0.1}), amp="bf16")
    with pytest.raises(UserError):
        compare({"dice": 0.9}, checkpoint({"dice": 0.1}), seed=1)


def test_names_are_known_before_anything_was_measured():
    meters = {"loss": AvgMeter(), "macro": PrecisionRecallF1(3), "confusion": ConfusionMatrix(3)}
    for name in ("loss", "macro/precision", "macro/recall", "macro/f1"):
        check_monitor(name, meters)
    with pytest.raises(UserError, match=r"'macro' is none of the metrics.*: loss, macro/precision, macro/re"):
        check_monitor("macro", meters)
    check_monitor("foreign", {"foreign": torchmetrics.SpearmanCorrCoef()})


def test_a_meter_that_fails_without_data_is_known_by_its_name_and_one_that_fails_later_is_named():
    class Mean:
        values = ()

        def compute(self):
            if self.values:
                raise ValueError("the masks are of no class")
            return sum(self.values) / len(self.values)

    meter = Mean()
    check_monitor("mean", {"mean": meter})
    meter.values = (1,)
    with pytest.raises(UserError, match="The metric mean cannot be computed: the masks are of no class"):
        scalars({"mean": meter})
