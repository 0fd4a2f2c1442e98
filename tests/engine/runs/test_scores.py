"""Results are known by name before anything was measured."""

import pytest
import torchmetrics

from engine.runs.scores import check_monitor, scalars
from extras.precision_recall import PrecisionRecallF1
from utils.errors import UserError
from utils.meter import AvgMeter
from utils.metrics import ConfusionMatrix


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
