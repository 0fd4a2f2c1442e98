"""Every run has a directory for itself, also when several begin in the same second."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.timestamp import make_timestamped_dir

ROOT = Path(__file__).resolve().parent.parent.parent
TAKE_MANY = """
import sys, time
time.time = lambda: 1_700_000_000.9
from utils.timestamp import make_timestamped_dir
sys.stdin.readline()
for _ in range(50):
    print(make_timestamped_dir(sys.argv[1]))
"""


def test_directory_is_named_by_the_second(tmp_path):
    before = int(time.time())
    path = make_timestamped_dir(tmp_path / "Results" / "Vanilla")
    assert path.parent == tmp_path / "Results" / "Vanilla" and path.is_dir()
    assert re.fullmatch(r"\d+", path.name) and before <= int(path.name) <= time.time()


def test_second_run_of_a_second_takes_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.9)
    assert [make_timestamped_dir(tmp_path).name for _ in range(3)] == ["1700000000", "1700000001", "1700000002"]


def test_processes_that_begin_in_the_same_second_share_no_directory(tmp_path):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE_MANY, str(tmp_path)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    paths = [path for run in runs for path in run.communicate(timeout=60)[0].split()]
    assert len(paths) == len(set(paths)) == 100


def test_parent_that_cannot_be_made_is_an_error_for_people(tmp_path):
    (tmp_path / "file").write_text("")
    for parent in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"Cannot make a directory for the results in {parent}"):
            make_timestamped_dir(parent)
