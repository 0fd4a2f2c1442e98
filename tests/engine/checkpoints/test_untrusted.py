"""A checkpoint from a stranger executes nothing, writes nothing, fills no memory and takes no hours."""

import collections
import io
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.checkpoints.file import make_footer
from engine.checkpoints.untrusted import open_as_data
from tests.torture.malicious import KINDS, archive, pickled, saved
from utils.errors import DamagedError, UserError

ROOT = Path(__file__).resolve().parents[3]
# They open, as data that fits into the file; nothing of an archive is written to the disk.
HARMLESS = ("attributes of an allowed class", "overlapping entries", "deep nesting", "path out of the archive")
OPEN_ALL = """
import resource, sys, time
from engine.checkpoints.file import load_checkpoint, load_file

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before, started = peak(), time.perf_counter()
for path in sys.argv[1:]:
    for open_it in (load_file, load_checkpoint):
        try:
            open_it(path)
            print("opened", path)
        except ValueError as error:
            print(type(error).__name__, error)
print(peak() - before, time.perf_counter() - started)
"""


def test_malicious_files_do_nothing(tmp_path):
    """One process opens them all, as the checkpoints that they pretend to be, without and with a right SHA-256."""
    canary, paths = tmp_path / "canary", []
    for kind, make in KINDS.items():
        data = make(canary)
        for ending, content in (("", data), (" with digest", data + make_footer(data))):
            paths.append(tmp_path / f"{kind + ending}.pth")
            paths[-1].write_bytes(content)
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, *map(str, paths)], cwd=ROOT, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    *lines, last = done.stdout.splitlines()
    mebibytes, seconds = map(float, last.split())
    assert sorted(tmp_path.iterdir()) == before and mebibytes < 100 and seconds < 30
    assert len(lines) == 2 * len(paths) >= 90 and max(map(len, lines)) < 500
    opened = {kind for kind in KINDS for line in lines if line.startswith("opened") and f"/{kind}" in line}
    assert opened == set(HARMLESS)


@pytest.mark.parametrize(
    "kind",
    ["os system", "builtins eval", "exec by getattr", "subprocess in the old format", "numpy objects", "whole module",
     "stack global"],
)  # fmt: skip
def test_the_attacks_are_real(tmp_path, kind):
    torch.load(io.BytesIO(KINDS[kind](tmp_path / "canary")), weights_only=False)
    assert (tmp_path / "canary").exists()


def test_the_attack_by_a_bare_pickle_is_real(tmp_path):
    pickle.loads(KINDS["bare pickle"](tmp_path / "canary"))
    assert (tmp_path / "canary").exists()


def refusal(data: bytes, error_class: type[UserError] = UserError) -> str:
    with pytest.raises(error_class) as caught:
        open_as_data(io.BytesIO(data), "some.pth")
    assert "some.pth" in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_named_in_the_pickle_is_named_in_the_message():
    assert "torch.nn.modules.linear.Linear" in refusal(saved(nn.Linear(2, 2)))
    assert "before 1.6" in refusal(saved({}, _use_new_zipfile_serialization=False))


@pytest.mark.parametrize("payload", [b"h\x05", b"\x86", b"t", b"e", b"K", b"X\xff\xff\xff\x7fa", b"\xff", b"}Q"])
def test_pickle_that_is_cut_or_changed_is_an_error_for_people(payload):
    refusal(archive(b"\x80\x02" + payload + b"."))
    refusal(archive(b"\x80\x02" + payload))


def test_encrypted_archive_is_refused():
    data = bytearray(archive(pickled(b"N")))
    data[data.index(b"PK\1\2") + 8] |= 1
    assert "encrypted" in refusal(bytes(data))


def test_size_that_is_larger_than_the_file_is_refused():
    data = archive(pickled(b"N"))
    place = data.rindex(b"PK\1\2") + 20
    assert "larger than the file" in refusal(data[:place] + 2 * (2**30).to_bytes(4, "little") + data[place + 8 :])


def test_zip_of_another_kind_is_damaged_or_none():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("word/document.xml", "<a/>")
    refusal(buffer.getvalue(), DamagedError)
    with zipfile.ZipFile(empty := io.BytesIO(), "w"):
        pass
    refusal(empty.getvalue(), DamagedError)


def test_accident_is_told_from_attack():
    for data in (b"", b"a text", b"PK\3\4", saved({"a": torch.zeros(3)})[:-10]):
        refusal(data, DamagedError)


# ---- taken -----------------------------------------------------------------------------------------------------------
def test_what_checkpoints_hold_is_taken():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LSTM(3, 4))
    module[2].weight_hh_l0 = module[2].weight_ih_l0  # a shared weight
    optimizer = torch.optim.Adam(module.parameters(), amsgrad=True)
    module[0](torch.ones(1, 1, 3, 3)).sum().backward()
    optimizer.step()
    content = {
        "module": module.state_dict(), "parameters": list(module.parameters()), "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 4]).state_dict(),
        "random": random.getstate(), "numbers": [0, -1, 255, 70000, -(2**40), 2**100, 1.5, float("nan")],
        "text": ["", "ü", "x" * 300, *["automobile"] * 3000], "none": None, "flags": [True, False],
        "ordered": collections.OrderedDict(a=1), "nested": [[[{"a": ((), [], {})}]]], "size": torch.Size([1, 2]),
        "device": torch.device("cuda", 1), "dtype": torch.bfloat16, "numbered": {1: 2}, "many": list(range(5000)),
        "twice": [module[0].weight, module[0].weight, module[0].weight[0]], "pairs": [(0.9, 0.999)] * 3000,
        "tensors": [torch.zeros(1) for _ in range(1000)], "view": torch.zeros(2, 3, dtype=torch.uint16)[:, 1:],
    }  # fmt: skip
    found = open_as_data(io.BytesIO(saved(content)), "some.pth")
    assert found.keys() == content.keys() and torch.equal(found["view"], content["view"])
