"""Files are written whole, and a full disk is one line."""

import errno
import json
import os
from types import SimpleNamespace

import pytest

from utils.errors import UserError
from utils.files import StorageError, full_disk_explained, write_json


def test_json_file_ends_with_a_line_break_and_is_replaced_whole(tmp_path):
    write_json(tmp_path / "a.json", {"lr": 0.1})
    write_json(str(tmp_path / "a.json"), {"lr": 0.2, "ä": [1]}, indent=None)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{"lr": 0.2, "\\u00e4": [1]}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    other = tmp_path / "other"
    other.write_text("of another")
    (tmp_path / f".a.json.{os.getpid()}.tmp").symlink_to(other)
    write_json(tmp_path / "a.json", {"lr": 0.1})
    assert other.read_text() == "of another" and not (tmp_path / "a.json").is_symlink()


def test_what_cannot_be_written_as_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"lr": 0.1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"lr": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"lr": 0.1}


def test_full_disk_names_the_writer(tmp_path):
    (tmp_path / "a_ckpt.pth").write_bytes(b"x" * 12345)
    words = r"^CSVLogger cannot write: No space left on device\. .*needs 12,345 bytes .* are free"
    refused = pytest.raises(StorageError, match=words)
    with refused as caught, full_disk_explained("CSVLogger", tmp_path), open("/dev/full", "w") as file:
        file.write("x" * 100_000)
    assert isinstance(caught.value, UserError) and caught.value.status == 2


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), full_disk_explained("CSVLogger", tmp_path):
        (tmp_path / "gone" / "a").write_text("x")


def test_disk_without_room_for_another_file_says_so(tmp_path, monkeypatch):
    """All inodes are in use, though there are bytes."""
    disk = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_files=disk.f_files or 1, f_favail=0))
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(StorageError, match=r"No space left.*; the disk has no room for another file, however small"):
        write_json(tmp_path / "a.json", {})
