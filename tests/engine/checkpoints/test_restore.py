"""The parts of a checkpoint that an evaluation reads are there and of the right kinds."""

import pytest
import torch

from engine.checkpoints.file import FORMAT
from engine.checkpoints.restore import check_parts
from utils.errors import UserError

PARTS = {
    "format": FORMAT,
    "progress": {"epoch": 1, "update": 2, "sample": 0},
    "score": {"update": 2, "num_samples": 3, "results": {"loss": 0.5}},
    "groups": {"train": torch.tensor([1]), "val": torch.tensor([2])},
}


@pytest.mark.parametrize("part", ["progress", "score", "groups"])
def test_part_that_is_missing_or_of_a_wrong_kind_is_named(part):
    check_parts(PARTS, "a.pth")
    check_parts(PARTS | {"score": {}}, "a.pth")  # before the first validation
    inside = [{**PARTS[part], next(iter(PARTS[part])): value} for value in (None, "x", [])]
    for value in (None, 3, "x", [1], *inside):
        with pytest.raises(UserError, match=f"The {part} of the checkpoint a.pth does not fit"):
            check_parts(PARTS | {part: value}, "a.pth")
