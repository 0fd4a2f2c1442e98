"""A checkpoint is written whole or not at all, is opened as data only, and damage is noticed."""

import ast
import io
import logging
import os
import pickle
import random
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.checkpoint import (
    FORMAT,
    Checkpointer,
    load_checkpoint,
    load_file,
    save_checkpoint,
    write_atomically,
)
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
STATE = {"format": FORMAT, "exact": True, "weight": torch.arange(6.0), "options": {"lr": 1e-3, "seed": None}}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "UNet_last_ckpt.pth"
    save_checkpoint(STATE, path)
    return path


def bare_bytes(content, **how) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


# ---- writing ---------------------------------------------------------------------------------------------------------
def test_what_is_saved_comes_back(checkpoint):
    state = load_checkpoint(checkpoint)
    assert torch.equal(state.pop("weight"), STATE["weight"])
    assert state == {name: value for name, value in STATE.items() if name != "weight"}


def test_torch_opens_the_file_as_it_is(checkpoint):
    assert torch.load(checkpoint, weights_only=True)["options"] == STATE["options"]


def test_several_paths_get_the_same_file_and_nothing_else_is_left(tmp_path):
    save_checkpoint(STATE, tmp_path / "a.pth", str(tmp_path / "b.pth"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failing_write_leaves_the_old_file_and_no_temporary(checkpoint, monkeypatch, failing):
    old = checkpoint.read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint({**STATE, "more": 1}, checkpoint)
    assert list(checkpoint.parent.iterdir()) == [checkpoint] and checkpoint.read_bytes() == old


def test_old_file_stands_until_the_new_one_is_whole_and_on_the_disk(checkpoint, monkeypatch):
    old, seen = checkpoint.read_bytes(), []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(file):
        seen.append(("fsync", os.fstat(file).st_size if checkpoint.read_bytes() == old else "too late"))
        fsync(file)

    def watched_replace(source, target):
        seen.append(("replace", Path(source).read_bytes(), Path(source).parent, checkpoint.read_bytes() == old))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_atomically(checkpoint, b"the new content")
    assert seen[:2] == [("fsync", 15), ("replace", b"the new content", checkpoint.parent, True)]
    assert checkpoint.read_bytes() == b"the new content"


# ---- reading ---------------------------------------------------------------------------------------------------------
def test_flipped_bit_anywhere_is_noticed(checkpoint):
    whole = checkpoint.read_bytes()
    for place in [*range(0, len(whole), 13), *range(len(whole) - 60, len(whole))]:
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        checkpoint.write_bytes(data)
        with pytest.raises(UserError, match=checkpoint.name):
            load_checkpoint(checkpoint)


def test_truncated_file_is_noticed(checkpoint):
    whole = checkpoint.read_bytes()
    for length in [*range(0, len(whole), 29), *range(len(whole) - 60, len(whole))]:
        checkpoint.write_bytes(whole[:length])
        with pytest.raises(UserError, match=checkpoint.name):
            load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a text\n",
        b"\x80\x04",
        b"\x00" * 100,
        b"PK\x03\x04" + b"a" * 50,
        pickle.dumps({"weight": [1.0]}, protocol=4),
        bare_bytes(nn.Linear(2, 2)),
        bare_bytes({"function": print}),
    ],
    ids=["empty", "text", "start of a pickle", "zeros", "start of a zip", "pickle", "whole module", "function"],
)
def test_file_that_holds_no_data_of_torch_is_refused_by_name(tmp_path, data):
    path = tmp_path / "strange.pth"
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as warned, pytest.raises(UserError, match=r"strange\.pth") as caught:
        load_file(path)
    assert "\n" not in str(caught.value) and not warned


def test_missing_file_and_directory_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"gone\.pth: No such file"):
        load_checkpoint(tmp_path / "gone.pth")
    with pytest.raises(UserError, match=r"Is a directory"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_random_damage_makes_of_a_foreign_file_it_is_an_error_for_people(tmp_path, zipped):
    whole = bare_bytes(nn.Linear(3, 2).state_dict(), _use_new_zipfile_serialization=zipped)
    generator, path, refused = random.Random(0), tmp_path / "foreign.pth", 0
    for _ in range(400):
        data = bytearray(whole)
        data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        try:
            load_file(path)
        except UserError:
            refused += 1
    assert refused > 40


class Payload:
    """What an attacker would put in a pickle: a call that is made while it is read."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["pickle", "torch", "torch, old", "torch, with digest"])
def test_payload_of_a_pickle_is_not_executed(tmp_path, kind):
    marker, path = tmp_path / "executed", tmp_path / "payload.pth"
    content = {"format": FORMAT, "exact": True, "payload": Payload(marker)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    elif kind == "torch, with digest":
        save_checkpoint(content, path)
    else:
        path.write_bytes(bare_bytes(content, _use_new_zipfile_serialization=kind == "torch"))
    with pytest.raises(UserError, match=r"payload\.pth"):
        load_checkpoint(path)
    assert not marker.exists()
    if kind != "pickle":  # the fault planted: such a file does harm where anything but data is read
        torch.load(path, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize("content", [nn.Linear(2, 2).state_dict(), {"state_dict": {}}, [1, 2], {"format": FORMAT + 1}])
def test_what_is_no_run_of_this_template_gets_a_hint(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth holds no run.*--pretrained --model_path"):
        load_checkpoint(tmp_path / "other.pth")


def unsafe_reads(source: str) -> list[str]:
    """What in a program's text reads files that can execute something, `torch.load` included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.keyword):
            names = [f"{node.arg}={ast.unparse(node.value)}"]
        else:
            continue
        pattern = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.load",
                   "torch.jit.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
                   "allow_pickle=True", "weights_only=False"}  # fmt: skip
        found += [name for name in names if name in pattern]
    return found


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "from torch import load", "import torch\ntorch.load(path)",
     "numpy.load(path, allow_pickle=True)", "reader = torch.load", "import yaml\nyaml.load(text)"],
)  # fmt: skip
def test_unsafe_read_would_be_found(source):
    assert unsafe_reads(source)


def test_one_function_opens_checkpoints_and_as_data_only():
    packages = [init.parent for init in ROOT.glob("*/__init__.py")]  # the tests are none
    sources = [*ROOT.glob("*.py"), *(path for package in packages for path in package.rglob("*.py"))]
    assert len(sources) > 30
    found = {str(path.relative_to(ROOT)): reads for path in sources if (reads := unsafe_reads(path.read_text("utf-8")))}
    assert found == {"utils/checkpoint.py": ["torch.load"]}
    assert "weights_only=True)" in (ROOT / "utils/checkpoint.py").read_text("utf-8")


# ---- the checkpoints of a run ----------------------------------------------------------------------------------------
def test_names(tmp_path):
    checkpointer = Checkpointer(tmp_path, "UNet")
    checkpointer.save({"exact": True}, "best", "last")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["UNet_best_ckpt.pth", "UNet_last_ckpt.pth"]
    assert load_checkpoint(checkpointer.path("best")) == {"format": FORMAT, "exact": True}


def test_rescue_saves(tmp_path):
    checkpointer = Checkpointer(tmp_path, "UNet")
    checkpointer.rescue({"exact": True, "progress": 1}, logging.getLogger("unused"))
    checkpointer.rescue({"exact": False, "progress": 2}, logging.getLogger("unused"))
    assert load_checkpoint(tmp_path / "UNet_crash_ckpt.pth")["exact"] is False
    assert Checkpointer.find(tmp_path) == tmp_path / "UNet_InT_ckpt.pth"  # what can be continued is not overwritten
    assert load_checkpoint(tmp_path / "UNet_InT_ckpt.pth")["progress"] == 1


def test_rescue_that_fails_says_so_and_raises_nothing(tmp_path, caplog):
    checkpointer = Checkpointer(tmp_path / "gone", "UNet")
    checkpointer.rescue({"exact": True}, logging.getLogger("rescue"))
    assert "could not be saved" in caplog.text


def fill(directory, **exact_by_kind) -> None:
    """Save a checkpoint of each kind, every one a second newer than the one before."""
    checkpointer = Checkpointer(directory, "UNet")
    for age, (kind, exact) in enumerate(exact_by_kind.items()):
        checkpointer.save({"exact": exact}, kind)
        os.utime(checkpointer.path(kind), (1000 + age, 1000 + age))


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        ({"best": True, "last": True}, "last"),
        ({"last": True, "best": True}, "best"),
        ({"best": True, "last": True, "InT": True}, "InT"),
        ({"best": True, "last": True, "InT": False}, "last"),
        ({"InT": False, "earlystop": True}, "earlystop"),
    ],
)
def test_newest_exact_checkpoint_of_a_directory_is_found(tmp_path, kinds, found):
    fill(tmp_path, **kinds)
    assert Checkpointer.find(tmp_path) == tmp_path / f"UNet_{found}_ckpt.pth"
    assert Checkpointer.find(str(tmp_path / f"UNet_{found}_ckpt.pth")) == tmp_path / f"UNet_{found}_ckpt.pth"


def test_nothing_to_resume_from_is_an_error_for_people(tmp_path):
    with pytest.raises(UserError, match="no such run directory"):
        Checkpointer.find(tmp_path / "gone")
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        Checkpointer.find(tmp_path)
    fill(tmp_path, InT=False)
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        Checkpointer.find(tmp_path)


def test_checkpoint_from_the_middle_of_an_update_is_not_resumed_even_by_name(tmp_path):
    fill(tmp_path, last=True, InT=False)
    with pytest.raises(UserError, match=r"InT_ckpt\.pth: it is from the middle of an update"):
        Checkpointer.find(tmp_path / "UNet_InT_ckpt.pth")


def test_damaged_checkpoint_is_not_passed_over_in_silence(tmp_path):
    fill(tmp_path, best=True, last=True)
    newest = tmp_path / "UNet_last_ckpt.pth"
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"UNet_last_ckpt\.pth is damaged"):
        Checkpointer.find(tmp_path)

