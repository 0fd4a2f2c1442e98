"""Results are held against those that a checkpoint remembers."""

import pytest

from extras.compare_scores import compare_with_stored
from utils.errors import UserError

NAN = float("nan")


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
