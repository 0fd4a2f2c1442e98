"""What a checkpoint says of its shards is checked before any of it is believed."""

import pytest
import torch

from engine.checkpoints.shard_record import Shards, Stored, file_digest, new_directory, put_in, remove_others, take_out
from utils.errors import DamagedError, UserError

FILE = "__0_0.distcp"


def record(**changes) -> dict:
    """What describes a float32 tensor of 4 x 3, in two pieces of one file; with changes to the tensor's entry."""
    rows = [[0, 0, 50, 0, 0, 2, 3], [0, 50, 50, 2, 0, 2, 3]]
    entry = {"shape": [4, 3], "dtype": "float32", "pieces": torch.tensor(rows)} | changes
    return {"directory": "7", "files": {FILE: [100, "0" * 64]}, "tensors": {"['networks']['w']": entry}}


def piece(column: int, value: int) -> torch.Tensor:
    """The pieces with another number in the second one."""
    pieces = record()["tensors"]["['networks']['w']"]["pieces"].clone()
    pieces[1, column] = value
    return pieces


def test_tensors_are_taken_out_and_put_in_again(differences):
    state = {
        "networks": {"a": {"w": torch.ones(2, 3), "extra": 1}}, "epoch": 3, "random": torch.ones(5),
        "optimizers": {"a": {"state": {0: {"step": torch.tensor(1.0), "m": torch.zeros(2)}}, "groups": [{"lr": 0.1}]}},
    }  # fmt: skip
    rest, taken = take_out(state)
    assert list(taken) == ["['networks']['a']['w']", "['optimizers']['a']['state'][0]['m']"]
    assert rest["networks"]["a"] == {"w": None, "extra": 1} and rest["random"] is state["random"]
    assert rest["optimizers"]["a"]["state"][0]["step"] == 1  # a number needs no shard
    assert differences(put_in({**rest, "shards": {}}, taken), state) == []


def test_a_record_survives_the_way_through_a_checkpoint():
    shards = Shards.of({"shards": record()}, "a.pth")
    assert shards.tensors["['networks']['w']"].shape == (4, 3) and shards.files == {FILE: (100, "0" * 64)}
    again = Shards.of({"shards": shards.state_dict()}, "a.pth")
    assert again.state_dict().keys() == shards.state_dict().keys() and again.files == shards.files


@pytest.mark.parametrize("change", [
    {"directory": "../7"}, {"directory": "/etc"}, {"directory": ""}, {"directory": ".."}, {"directory": 7},
    {"directory": "7\n"}, {"files": {"../x": [100, ""]}}, {"files": {FILE: [-1, ""]}}, {"files": {FILE: [100]}},
    {"files": {FILE: [100.0, ""]}}, {"files": {}}, {"files": None}, {"tensors": None}, {"files": {FILE: [47, ""]}},
    {"files": {FILE: [2**62, ""]}},
])  # fmt: skip
def test_a_record_that_names_other_files_is_refused(change):
    with pytest.raises(UserError, match=r"a.pth does not tell as this template does"):
        Shards.of({"shards": record() | change}, "a.pth")


@pytest.mark.parametrize("change", [
    {"shape": [5, 3]}, {"shape": [4, 4]}, {"shape": [4]}, {"shape": [-4, -3]}, {"shape": [4.0, 3]}, {"shape": 12},
    {"shape": [2**40, 2**40, 0]}, {"dtype": "float33"}, {"dtype": "complex128"}, {"dtype": []}, {"pieces": None},
    {"pieces": torch.ones(2, 7)}, {"pieces": torch.ones(7, dtype=torch.int64)}, {"pieces": piece(0, 1)},
    {"pieces": piece(0, -1)}, {"pieces": piece(1, 51)}, {"pieces": piece(2, 23)}, {"pieces": piece(3, 3)},
    {"pieces": piece(5, 1)}, {"pieces": piece(6, 2**62)}, {"pieces": torch.ones(0, 7, dtype=torch.int64)},
])  # fmt: skip
def test_a_tensor_that_its_pieces_do_not_make_is_refused(change):
    with pytest.raises(UserError, match=r"a.pth does not tell as this template does"):
        Shards.of({"shards": record(**change)}, "a.pth")


def test_a_tensor_larger_than_the_files_is_refused():
    # Pieces that lie over each other would let a small file unfold to much memory.
    rows = [[0, 0, 100, 20 * number, 20] for number in range(5)]
    entry = {"shape": [100], "dtype": "float32", "pieces": torch.tensor(rows)}
    with pytest.raises(UserError, match="does not tell"):
        Shards.of({"shards": record() | {"tensors": {"['networks']['w']": entry}}}, "a.pth")


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda path: path.unlink(), r"shard .*distcp is missing"),
    (lambda path: path.write_bytes(b"half"), r"shard .*distcp has 4 bytes, not 8"),
    (lambda path: path.write_bytes(b"numberz!"), r"shard .*distcp does not fit its SHA-256"),
])  # fmt: skip
def test_a_damaged_file_is_noticed(damage, reason, tmp_path):
    path = tmp_path / "shards" / "7" / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"numbers!")
    shards = Shards("7", {FILE: (8, file_digest(path))}, {"w": Stored((1,), torch.int64, torch.ones(1, 5))})
    shards.check_files(tmp_path / "a.pth")
    damage(path)
    with pytest.raises(DamagedError, match=reason):
        shards.check_files(tmp_path / "a.pth")
    if "SHA" in reason:
        shards.check_files(tmp_path / "a.pth", deep=False)  # sizes alone do not tell


def test_only_shards_that_nobody_refers_to_are_removed(tmp_path):
    for name in ("3", "3-1", "6", "mine", "7 "):
        (tmp_path / "shards" / name).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shards" / "9").symlink_to(tmp_path / "elsewhere")
    remove_others(tmp_path, {"3-1"})
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["3-1", "7 ", "9", "mine"]
    assert (tmp_path / "elsewhere").is_dir()


def test_the_same_update_gets_another_directory(tmp_path):
    assert new_directory(tmp_path, 3) == "3"
    (tmp_path / "shards" / "3").mkdir(parents=True)
    (tmp_path / "shards" / "3-1").mkdir()
    assert new_directory(tmp_path, 3) == "3-2"
