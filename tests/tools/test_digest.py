"""A digest sees every bit, and nothing else."""

import hashlib
import struct

import pytest
import torch
from torch import nn

from tools.digest import digest, digests
from utils.errors import UserError

NAN, INF = float("nan"), float("inf")


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


QUIET, OTHER = (struct.unpack(">d", bytes.fromhex(f"7ff800000000000{last}"))[0] for last in "12")
DIFFERENT = [
    None, False, True, 0, 1, -1, 2**70, 0.0, -0.0, 1.0, INF, QUIET, OTHER, "", "1", "None", "a", (), [], {}, [[]], [()],
    [1], (1,), {1: 1}, {"1": 1}, {"a": 1}, {"a": 2}, {"b": 1}, {"a": None}, {"a": {}}, ["a", "b"], ["b", "a"], ["ab"],
    ["a", "b", ""], ["a", ["b"]], [["a"], "b"], {"a": "b", "c": "d"}, {"a": "d", "c": "b"}, "str 1:a", ["str 1:a"],
    torch.tensor(1), torch.tensor(1.0), torch.tensor([1.0]), torch.tensor([[1.0]]), torch.tensor([1.0, 0.0]),
    torch.tensor([0.0]), torch.tensor([-0.0]), torch.tensor([True]), torch.tensor([1], dtype=torch.uint8),
    torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0], dtype=torch.float16), torch.zeros(0),
    torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(6), torch.tensor([NAN]),
    torch.tensor([1 + 2j]), torch.tensor([1 - 2j]),
    torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32),
]  # fmt: skip


def test_different_values_have_different_digests():
    found = [digest(value) for value in DIFFERENT]
    assert len(set(found)) == len(DIFFERENT) and {len(text) for text in found} == {len(hashlib.sha256().hexdigest())}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({0: "x", 1: "y"}, {1: "y", 0: "x"}),
        (torch.arange(6).reshape(2, 3), torch.arange(6).reshape(2, 3).t().contiguous().t()),
        (torch.zeros(2, 3), torch.zeros(1).expand(2, 3)),
        (torch.arange(3), torch.arange(9)[3:6] - 3),
        (torch.arange(3), torch.arange(6)[::2] // 2),
        (torch.tensor([1 - 2j]), torch.tensor([1 + 2j]).conj()),
        (torch.ones(2), nn.Parameter(torch.ones(2))),
        (network().state_dict(), dict(network().state_dict())),
        ([NAN], [NAN]),
    ],
)
def test_what_is_the_same_has_the_same_digest(a, b):
    assert digest(a) == digest(b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.complex64, torch.uint16])
def test_every_bit_of_a_tensor_counts(dtype):
    bits = torch.zeros(8, dtype=torch.uint8)
    before = digest(bits.view(dtype))
    bits[5] = 1
    assert digest(bits.view(dtype)) != before


def test_digest_is_the_same_in_every_process_and_version():
    expected = "6acee2a376f1dc6df23c7ba3b4800e8d586bacea98186d8a32ede1db5b93a531"
    assert digest({"a": [1, 2.5, None], "b": torch.arange(3)}) == expected


@pytest.mark.parametrize("value", [range(2), print, {"a": [object()]}])
def test_what_a_checkpoint_cannot_hold_has_no_digest(value):
    with pytest.raises(UserError, match="the value"):
        digest(value)


def test_run_is_the_digest_of_what_decides_how_training_goes_on():
    state = {"networks": network().state_dict(), "random": [1], "seconds": {"train": 1.0}, "options": {"seed": 1},
             "callbacks": {}, "format": 1, "progress": {"epoch": 1}}  # fmt: skip
    before = digests(state)
    assert list(before) == [*state, "run"] and before["random"] == digest([1])
    for name in state:
        after = digests({**state, name: "another"})
        differing = {part for part in before if before[part] != after[part]}
        assert differing == ({name} if name in ("seconds", "options", "callbacks", "format") else {name, "run"})
