"""Names of Lightning's checkpoints, and checkpoints of ours that come of them, without Lightning."""

from pathlib import Path

import pytest
import torch

from engine.checkpoints.file import load_checkpoint
from extras.lightning.checkpoint import OURS, export, export_run, newest_of
from utils.errors import UserError

STATE = {"networks": {"model": {"weight": torch.ones(2)}}, "progress": {"epoch": 1, "update": 3, "sample": 0}}


def test_the_newest_is_that_with_the_highest_number(tmp_path):
    assert newest_of(tmp_path) is None
    for name in ("last-9.ckpt", "last-10.ckpt", "last-x.ckpt", "last-99.ckpt.aside", "best.ckpt"):
        (tmp_path / name).touch()
    assert newest_of(tmp_path) == tmp_path / "last-10.ckpt"


def test_what_is_exported_is_a_checkpoint_of_ours(tmp_path):
    torch.save({"state_dict": {}, OURS: STATE}, tmp_path / "last-3.ckpt")
    (line,) = export_run(tmp_path, "Net")
    state = load_checkpoint(tmp_path / "Net_last_ckpt.pth")
    assert "last-3.ckpt" in line and state["progress"] == STATE["progress"]
    assert torch.equal(state["networks"]["model"]["weight"], torch.ones(2))


@pytest.mark.parametrize("content", [{"state_dict": {}}, {OURS: {}}, {OURS: 3}, [1]])
def test_a_file_of_another_program_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="no checkpoint of a task"):
        export(tmp_path / "x.ckpt", tmp_path / "x.pth")
    assert not Path(tmp_path / "x.pth").exists()


def test_a_file_that_is_missing_or_no_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="Cannot read"):
        export(tmp_path / "nowhere.ckpt", tmp_path / "x.pth")
    (tmp_path / "x.ckpt").write_bytes(b"no archive")
    with pytest.raises(UserError):
        export(tmp_path / "x.ckpt", tmp_path / "x.pth")
