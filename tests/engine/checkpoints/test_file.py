"""A checkpoint is written whole or not at all, is opened as data only, and damage is noticed."""

import ast
import errno
import io
import os
import pickle
import random
import resource
import tracemalloc
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.checkpoints.file import (
    FOOTER_SIZE,
    FORMAT,
    load_checkpoint,
    load_file,
    options_of,
    read_position,
    save_checkpoint,
    verify,
)
from utils.errors import DamagedError, UserError
from utils.files import StorageError, sweep_temporaries, write_atomically

ROOT = Path(__file__).resolve().parents[3]
STATE = {"format": FORMAT, "weight": torch.arange(6.0), "options": {"lr": 1e-3, "seed": None}}


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("failing", ["fsync", "replace", "open"])
def test_disk_that_is_full_leaves_the_old_file_and_no_temporary(checkpoint, monkeypatch, failing, number):
    old = checkpoint.read_bytes()

    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open" if failing == "open" else f"os.{failing}", fail)
    with pytest.raises(StorageError, match=r"Cannot write .*It needs [\d,]+ bytes; [\d,]+ are free.*is intact\.$"):
        save_checkpoint({**STATE, "more": 1}, checkpoint)
    monkeypatch.undo()
    assert list(checkpoint.parent.iterdir()) == [checkpoint] and checkpoint.read_bytes() == old


@pytest.mark.parametrize("room", [0, 1, 1000, 100_000])
def test_file_that_really_finds_no_room_leaves_the_old_one(checkpoint, room):
    old, limits = checkpoint.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(StorageError) as caught:
            save_checkpoint({"weight": torch.zeros(50_000)}, checkpoint, checkpoint.with_name("other.pth"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    needed = int(str(caught.value).split("It needs ")[1].split(" ")[0].replace(",", ""))
    save_checkpoint({"weight": torch.zeros(50_000)}, checkpoint.with_name("other.pth"))
    assert needed == checkpoint.with_name("other.pth").stat().st_size
    assert checkpoint.read_bytes() == old and len(list(checkpoint.parent.iterdir())) == 2


def test_new_file_without_room_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(StorageError, match=r"on the disk\.$"):
        save_checkpoint(STATE, tmp_path / "new.pth")
    assert not list(tmp_path.iterdir())


def test_other_faults_of_writing_are_errors_for_people(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"Cannot write .*gone.*a\.pth: No such file or directory\.$") as caught:
        save_checkpoint(STATE, tmp_path / "gone" / "a.pth")
    assert not isinstance(caught.value, StorageError)
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only")))
    with pytest.raises(UserError, match="Read-only"):
        save_checkpoint(STATE, tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_file_system_that_cannot_flush_directories_is_no_fault(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def of_files_only(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    if number != errno.EIO:
        save_checkpoint(STATE, tmp_path / "a.pth")
    else:
        with pytest.raises(UserError, match="Cannot write"):
            save_checkpoint(STATE, tmp_path / "a.pth")
    verify(tmp_path / "a.pth")


def test_left_over_temporaries_are_swept_and_nothing_else(tmp_path):
    names = [".UNet_last_ckpt.pth.4711.tmp", "UNet_last_ckpt.pth", ".hidden.tmp", "a.1.tmp", ".a.1.tmp.gz", ".b.1.tmp"]
    for name in names:
        (tmp_path / name).write_text("x")
    swept = sweep_temporaries(tmp_path)
    assert sorted(path.name for path in swept) == [names[0], names[-1]]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:-1])


def test_name_of_a_temporary_is_one_that_is_swept(checkpoint, monkeypatch):
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: None)  # as when the process is killed
    monkeypatch.setattr(os, "replace", lambda source, target: None)
    write_atomically(checkpoint, b"new")
    monkeypatch.undo()
    assert len(list(checkpoint.parent.iterdir())) == 2 and len(sweep_temporaries(checkpoint.parent)) == 1
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_saving_holds_the_content_in_memory_once(tmp_path):
    size = 20_000_000
    state = {"weight": torch.zeros(size // 4)}
    save_checkpoint({}, tmp_path / "warm.pth")
    tracemalloc.start()
    save_checkpoint(state, tmp_path / "a.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size < peak < 1.5 * size


# ---- the position ----------------------------------------------------------------------------------------------------
def test_position_is_read_without_the_rest(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint({**STATE, "progress": {"epoch": 3, "update": 2**40, "sample": 7}}, path)
    assert read_position(path) == (3, 2**40)
    path.write_bytes(b"\0" * 10 + path.read_bytes()[-FOOTER_SIZE:])
    assert read_position(path) == (3, 2**40)


def test_no_progress_is_position_zero_and_no_footer_is_none(checkpoint, tmp_path):
    assert read_position(checkpoint) == (0, 0)
    for data in (b"", b"text", checkpoint.read_bytes()[:-1], checkpoint.read_bytes()[:-FOOTER_SIZE]):
        (tmp_path / "other").write_bytes(data)
        assert read_position(tmp_path / "other") is None
    with pytest.raises(UserError, match="No such file"):
        read_position(tmp_path / "gone")


def test_position_cannot_be_changed_unnoticed(checkpoint):
    data = bytearray(checkpoint.read_bytes())
    data[-40] ^= 1
    checkpoint.write_bytes(data)
    for check in (verify, load_checkpoint):
        with pytest.raises(DamagedError, match="SHA-256"):
            check(checkpoint)


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
        for check in (load_checkpoint, verify):
            with pytest.raises(DamagedError, match=checkpoint.name):
                check(checkpoint)


def test_truncated_file_is_noticed(checkpoint):
    whole = checkpoint.read_bytes()
    for length in [*range(0, len(whole), 29), *range(len(whole) - 60, len(whole))]:
        checkpoint.write_bytes(whole[:length])
        for check in (load_checkpoint, verify):
            with pytest.raises(DamagedError, match=checkpoint.name):
                check(checkpoint)


@pytest.mark.parametrize("data", [b"", b"a text\n", b"\0" * 5000, b"PK\3\4" + b"a" * 50])
def test_what_was_never_a_checkpoint_counts_as_damaged(checkpoint, data):
    checkpoint.write_bytes(data)
    for check in (load_checkpoint, verify, load_file):
        with pytest.raises(DamagedError, match=checkpoint.name):
            check(checkpoint)


def test_footer_that_is_cut_off_is_damage_of_ours_but_not_of_others(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-FOOTER_SIZE])
    with pytest.raises(DamagedError, match="SHA-256 at its end is missing"):
        load_checkpoint(checkpoint)
    assert torch.equal(load_file(checkpoint)["weight"], STATE["weight"])


def test_whole_checkpoint_is_verified(checkpoint):
    verify(checkpoint)
    verify(str(checkpoint))


def test_what_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        for read in (load_checkpoint, load_file, verify, read_position):
            with pytest.raises(UserError, match="no regular file"):
                read(path)


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
    with pytest.raises(UserError, match="null"):
        load_checkpoint("a\0b")


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


@pytest.mark.parametrize(
    "content",
    [nn.Linear(2, 2).state_dict(), {"state_dict": {}}, [1, 2], {"format": FORMAT + 1}, {"format": torch.ones(2)}],
)
def test_what_is_no_run_of_this_template_gets_a_hint(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth holds no run.*--pretrained --model_path") as caught:
        load_checkpoint(tmp_path / "other.pth")
    assert caught.value.status == UserError.status  # sound, only not ours


def test_options_of_a_checkpoint_are_a_mapping_or_refused_by_name():
    assert options_of({"options": {"lr": 0.1}}, "a.pth") == {"lr": 0.1}
    endless: list = []
    endless.append(endless)
    no_json = ({"model_args": {"a": torch.zeros(2)}}, {"lr": b"1"}, {"model_args": endless})
    for options in (None, [1], {1: 2}, "lr", *no_json):
        state = {"options": options}
        with pytest.raises(UserError, match=r"a\.pth holds no options of a run"):
            options_of(state, "a.pth")


def unsafe_reads(source: str) -> list[str]:
    """Return the calls in a program that read files which can execute code, `torch.load` included."""
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
    index = found.pop("extras/distributed_checkpoints.py")  # which opens an index with a list of allowed names
    assert set(index) == {"pickle"}
    assert found.pop("data/dataloader.py") == ["pickle"]  # whose exception it catches
    assert "pickle.load" not in (ROOT / "data/dataloader.py").read_text("utf-8")
    assert found == {"engine/checkpoints/untrusted.py": ["torch.load"]}
    assert "weights_only=True)" in (ROOT / "engine/checkpoints/untrusted.py").read_text("utf-8")
