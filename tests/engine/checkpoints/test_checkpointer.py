"""At every moment a good checkpoint is there, and the newest good one is found."""

import json
import logging
import os
import shutil

import pytest
import torch

from engine.checkpoints.checkpointer import Checkpointer
from engine.checkpoints.file import FORMAT, load_checkpoint, read_position, save_checkpoint
from engine.checkpoints.find import find_checkpoint, run_name
from utils.errors import DamagedError, UserError


def state(update: int, epoch: int = 0, exact: bool = True) -> dict:
    return {
        "weights": torch.full((5,), float(update)),
        "progress": {"epoch": epoch, "update": update, "sample": 0, "is_exact": exact},
    }  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """A function that saves `last` after each of these updates, and returns the checkpointer."""

    def saved(*updates, keep=2) -> Checkpointer:
        checkpointer = Checkpointer(tmp_path, "Net", keep=keep)
        for update in updates:
            checkpointer.save(state(update), "last")
        return checkpointer

    return saved


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def flip(path, place: int = 200) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def find(directory) -> tuple[str, list[str]]:
    said: list[str] = []
    path, content = find_checkpoint(directory, said.append)
    assert content["progress"] == load_checkpoint(path)["progress"]
    return path.name, said


@pytest.mark.parametrize(("keep", "left"), [
    (1, ["Net_last_ckpt.pth"]),
    (2, ["Net_last-4_ckpt.pth", "Net_last_ckpt.pth"]),
    (3, ["Net_last-3_ckpt.pth", "Net_last-4_ckpt.pth", "Net_last_ckpt.pth"]),
])  # fmt: skip
def test_as_many_are_kept_as_asked_for(keep, left, saved, tmp_path):
    saved(1, 2, 3, 4, 5, keep=keep)
    assert names(tmp_path) == left
    assert read_position(tmp_path / "Net_last_ckpt.pth") == (0, 5)


def test_order_is_that_of_updates_not_of_names_or_times(saved, tmp_path):
    saved(8, 9, 10, 11, keep=3)
    assert names(tmp_path) == ["Net_last-10_ckpt.pth", "Net_last-9_ckpt.pth", "Net_last_ckpt.pth"]
    shutil.copy(tmp_path / "Net_last-9_ckpt.pth", tmp_path / "Net_best_ckpt.pth")  # the newest by its time
    assert find(tmp_path) == ("Net_last_ckpt.pth", [])


def test_damaged_one_does_not_count_among_those_kept(saved, tmp_path):
    checkpointer = saved(1, 2)
    flip(tmp_path / "Net_last-1_ckpt.pth")
    flip(tmp_path / "Net_last_ckpt.pth")
    checkpointer.save(state(3), "last")  # the one of update 2, damaged, is now before the last
    assert names(tmp_path) == ["Net_last-1_ckpt.pth", "Net_last-2_ckpt.pth", "Net_last_ckpt.pth"]
    checkpointer.save(state(4), "last")  # a good one is before it, so the rest may go
    assert names(tmp_path) == ["Net_last-3_ckpt.pth", "Net_last_ckpt.pth"]


def test_nothing_is_removed_when_the_new_one_cannot_be_written(saved, tmp_path, monkeypatch):
    checkpointer = saved(1, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UserError, match="space"):
        checkpointer.save(state(3), "last")
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert all(after[name] == content for name, content in before.items())
    assert find(tmp_path) == ("Net_last_ckpt.pth", [])


def test_file_system_without_links(saved, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", fail)
    saved(1, 2, 3)
    assert names(tmp_path) == ["Net_last-2_ckpt.pth", "Net_last_ckpt.pth"]
    assert load_checkpoint(tmp_path / "Net_last-2_ckpt.pth")["progress"]["update"] == 2


@pytest.mark.parametrize("damage", [
    flip,
    lambda path: flip(path, -40),  # in its position
    lambda path: flip(path, -5),  # in its digest
    lambda path: path.write_bytes(path.read_bytes()[:-100]),
    lambda path: path.write_bytes(path.read_bytes()[:100]),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_text("a note\n" * 100),
], ids=["flip", "position", "digest", "cut", "stub", "empty", "text"])  # fmt: skip
def test_damaged_one_is_named_and_the_one_before_it_is_used(damage, saved, tmp_path):
    saved(1, 2, 3)
    damage(tmp_path / "Net_last_ckpt.pth")
    name, said = find(tmp_path)
    assert name == "Net_last-2_ckpt.pth"
    assert len(said) == 1 and "Net_last_ckpt.pth" in said[0] and "newest intact one is used" in said[0]


def test_all_damaged(saved, tmp_path):
    saved(1, 2)
    for path in tmp_path.iterdir():
        flip(path)
    with pytest.raises(DamagedError, match=r"no intact checkpoint is left. .*: .*last_ckpt.*last-1_ckpt") as caught:
        find(tmp_path)
    assert caught.value.status == 3


def test_damaged_file_that_was_asked_for_is_not_replaced_by_another(saved, tmp_path):
    saved(1, 2)
    flip(tmp_path / "Net_last_ckpt.pth")
    with pytest.raises(DamagedError):
        find(tmp_path / "Net_last_ckpt.pth")


def test_interrupted_one_counts_by_its_position_and_an_inexact_one_is_not_saved(saved, tmp_path):
    checkpointer = saved(1, 2)
    checkpointer.rescue(lambda: state(4), logging.getLogger("test"))
    assert find(tmp_path)[0] == "Net_InT_ckpt.pth"
    checkpointer.save(state(5), "last")
    assert find(tmp_path)[0] == "Net_last_ckpt.pth"
    before = names(tmp_path)
    checkpointer.rescue(lambda: state(9, exact=False), logging.getLogger("test"))
    assert names(tmp_path) == before


def test_end_of_an_epoch_is_after_its_last_update(saved, tmp_path):
    """Validated and counted, or not: the same number of updates, but another position."""
    checkpointer = saved(8)
    checkpointer.save(state(8, epoch=1), "best")
    checkpointer.save(state(8), "InT")
    assert find(tmp_path)[0] == "Net_best_ckpt.pth"


def test_run_that_goes_on_from_an_older_one_is_not_overtaken_by_its_former_future(saved, tmp_path):
    checkpointer = saved(1, 2, 3, keep=3)
    checkpointer.save(state(3), "best")
    (tmp_path / ".Net_last_ckpt.pth.123.tmp").write_bytes(b"half of a checkpoint")
    moved = checkpointer.begin((0, 2))
    assert len(moved) == 2 and all("renamed" in note for note in moved)
    assert names(tmp_path) == [
        "Net_best_ckpt.pth.aside", "Net_last-1_ckpt.pth", "Net_last-2_ckpt.pth", "Net_last_ckpt.pth.aside",
    ]  # fmt: skip
    assert find(tmp_path)[0] == "Net_last-2_ckpt.pth"


def test_going_back_twice_keeps_both_futures(saved, tmp_path):
    for _ in range(2):
        saved(1, 2, 3, keep=3).begin((0, 2))
    assert {"Net_last_ckpt.pth.aside", "Net_last_ckpt.pth.aside1"} <= set(names(tmp_path))


def test_save_that_a_kill_broke_off_is_completed_on_resume(saved, tmp_path):
    """Killed between best and last of the final save: a resume has nothing left to do, so it would save no more."""
    whole = saved(1, 2, 3)
    whole.save(state(4), "best", "last")
    expected = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "Net_last_ckpt.pth").unlink()
    (tmp_path / "Net_last-3_ckpt.pth").rename(tmp_path / "Net_last_ckpt.pth")
    save_checkpoint(state(2) | {"saved_as": ["last"]}, tmp_path / "Net_last-2_ckpt.pth")
    path, _ = find_checkpoint(tmp_path, print)
    assert path.name == "Net_best_ckpt.pth"
    assert whole.begin((0, 4), path) == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == expected


@pytest.mark.parametrize("kinds", [3, None, ["../x"], [torch.ones(2)], ["last", 7]])
def test_kinds_of_a_file_from_elsewhere_write_no_other_file(kinds, saved, tmp_path):
    checkpointer = saved(1)
    save_checkpoint(state(1) | {"saved_as": kinds}, tmp_path / "Net_last_ckpt.pth")
    checkpointer.begin((0, 1), tmp_path / "Net_last_ckpt.pth")
    assert names(tmp_path) == ["Net_last_ckpt.pth"]


def test_what_cannot_be_read_is_passed_over_too(saved, tmp_path):
    saved(1, 2)
    (tmp_path / "Net_best_ckpt.pth").mkdir()
    assert find(tmp_path) == ("Net_last_ckpt.pth", [])


def test_same_position_twice_does_not_push_out_the_one_before(saved, tmp_path):
    saved(1, 2, 2)
    assert names(tmp_path) == ["Net_last-1_ckpt.pth", "Net_last_ckpt.pth"]


def test_begin_sets_aside_what_cannot_tell_its_position(saved, tmp_path):
    checkpointer = saved(1, 2)
    (tmp_path / "Net_best_ckpt.pth").write_bytes(b"")
    assert len(checkpointer.begin((0, 2))) == 1
    assert find(tmp_path) == ("Net_last_ckpt.pth", [])


def test_rescue_that_fails_says_so_and_raises_nothing(tmp_path, caplog):
    checkpointer = Checkpointer(tmp_path / "gone", "UNet")
    checkpointer.rescue(lambda: state(1), logging.getLogger("rescue"))
    assert "could not be saved" in caplog.text


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint to resume from"):
        find(tmp_path)
    with pytest.raises(UserError, match="no such run directory"):
        find(tmp_path / "Nowhere")


def test_run_of_an_earlier_version_is_not_resumed_but_said_to_be_usable(saved, tmp_path):
    saved(1)
    old = {"format": 1, **state(2)}
    save_checkpoint(old, tmp_path / "Net_last_ckpt.pth")
    for source in (tmp_path, tmp_path / "Net_last_ckpt.pth"):
        with pytest.raises(UserError, match=r"an earlier version wrote it.*--pretrained --model_path"):
            find(source)
    assert load_checkpoint(tmp_path / "Net_last_ckpt.pth")["progress"]["update"] == 2


def test_a_bare_state_dict_is_no_damaged_checkpoint(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no run of this template") as caught:
        find(tmp_path / "other.pth")
    assert not isinstance(caught.value, DamagedError)


def test_pruning_touches_only_what_it_wrote(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save_checkpoint(state(1), tmp_path / "Net_last-good_ckpt.pth")  # a copy that somebody keeps
    save_checkpoint(state(1), tmp_path / "Net_last-2_ckpt.pth")
    (elsewhere / "7").mkdir()
    (tmp_path / "shards").symlink_to(elsewhere)
    checkpointer = Checkpointer(tmp_path, "Net", keep=1)
    for update in (3, 4, 5):
        checkpointer.save(state(update), "last")
    checkpointer.begin((0, 5))
    assert {"Net_last-good_ckpt.pth", "Net_last-2_ckpt.pth"} <= set(names(tmp_path)) and names(elsewhere) == ["7"]
    (tmp_path / "shards").unlink()
    for name in ("7", "7-1", "3", "notes", "7b"):
        (tmp_path / "shards" / name).mkdir(parents=True)
    (tmp_path / "shards" / "8").symlink_to(elsewhere)
    checkpointer.save(state(3), "best")
    assert names(tmp_path / "shards") == ["3", "7b", "8", "notes"] and names(elsewhere) == ["7"]


# ---- the name of a run -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["/../../victim/package", "/tmp/package_1", "../a_1", "a/../b_1", "a_1\n", "", 5, ["a_1"]]
)
def test_recorded_name_that_leaves_the_directory_is_none(name, tmp_path):
    (tmp_path / "provenance.json").write_text(json.dumps({"run_name": name}))
    assert run_name(tmp_path) is None
    (tmp_path / "config_a_1.json").write_text("{}")
    assert run_name(tmp_path) == "a_1"


def test_recorded_name_counts_whatever_files_there_are(tmp_path):
    (tmp_path / "provenance.json").write_text(json.dumps({"run_name": "My-net.v2_17"}))
    (tmp_path / "config_a_1.json").write_text("{}")
    assert run_name(tmp_path) == "My-net.v2_17"


def test_renamed_run_of_an_earlier_version_has_one_name(tmp_path):
    run = tmp_path / "run_3"
    run.mkdir()
    for age, name in enumerate(["a_run_3", "a_run_4", "a_1796048028"]):
        for path in (run / f"config_{name}.json", run / f"{name}_log.txt"):
            path.write_text("{}")
            os.utime(path, ns=(10**18 - age, 10**18 - age))
    assert run_name(run) == "a_run_3"
    run = run.rename(tmp_path / "baseline")
    assert run_name(run) == "a_1796048028"
    save_checkpoint(state(1) | {"format": FORMAT, "run_name": "a_run_4"}, run / "Net_last_ckpt.pth")
    assert run_name(run) == "a_run_4"
