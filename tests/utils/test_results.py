"""Results are shown with their intervals, and held against what a checkpoint remembers."""

import pytest

from utils.errors import UserError
from utils.results import compare_with_stored, format_results

NAN = float("nan")


def test_table_has_a_line_for_each_metric():
    lines = format_results("The model", 12345, {"loss": 0.25, "accuracy": 0.9}, {"accuracy": (0.88, 0.92)}).splitlines()
    assert lines[0] == "The model, n = 12,345:"
    assert lines[1].split() == ["loss", "0.2500"]
    assert lines[2].split() == ["accuracy", "0.9000", "95", "%", "interval", "0.8800", "to", "0.9200"]


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
    assert "agrees" in compare_with_stored(new, 100, {"num_samples": 100, "results": old})


@pytest.mark.parametrize(("new", "old"), [(0.9, 0.901), (NAN, 0.9), (0.9, NAN), (0.9, float("inf")), (0.0, 1e-3)])
def test_another_score_is_refused_with_both_numbers(new, old):
    stored = {"num_samples": 100, "results": {"loss": 1.0, "dice": old}}
    with pytest.raises(UserError, match=f"^dice is {new:.6f}, but {old:.6f} was stored"):
        compare_with_stored({"loss": 1.0, "dice": new}, 100, stored)


@pytest.mark.parametrize("stored", [None, {"num_samples": 99, "results": {"dice": 0.1}}])
def test_score_of_other_samples_is_not_compared(stored):
    assert "no score of these samples" in compare_with_stored({"dice": 0.9}, 100, stored)
