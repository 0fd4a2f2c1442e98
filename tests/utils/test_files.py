"""Files are written whole, and a full disk is one line."""

import json

import pytest

from utils.errors import UserError
from utils.files import StorageError, full_disk_explained, write_json


def test_json_file_ends_with_a_line_break_and_is_replaced_whole(tmp_path):
    write_json(tmp_path / "a.json", {"lr": 0.1})
    write_json(str(tmp_path / "a.json"), {"lr": 0.2, "ä": [1]}, indent=None)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{"lr": 0.2, "\\u00e4": [1]}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


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
