"""One process at a time in a directory; a dead one keeps nothing."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from engine.runs.lock import DirectoryLock, is_locked
from extras import turns
from extras.turns import locked
from utils.errors import UserError

HOLDER = """
import os, sys, time
from engine.runs.lock import DirectoryLock
lock = DirectoryLock({directory!r})
{then}
print("ready", flush=True)
time.sleep(60)
"""
# As loading processes are: forked, and alive for a while when the main process is not.
FORK = "child = os.fork() or os._exit(time.sleep(30) or 0)\nprint(child, flush=True)"


@pytest.fixture
def hold(root):
    """A function that starts a process which holds a directory, and returns it with the lines it printed."""
    processes = []

    def hold(directory, then=""):
        text = HOLDER.format(directory=str(directory), then=then)
        process = subprocess.Popen([sys.executable, "-c", text], cwd=root, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        lines = []
        while (line := process.stdout.readline()) and line != "ready\n":
            lines.append(line)
        return process, lines

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


def test_killed_process_keeps_nothing_though_its_child_lives(tmp_path, hold):
    process, (child,) = hold(tmp_path, FORK)
    for _ in range(2):
        assert is_locked(tmp_path)
        with pytest.raises(UserError, match="is in use by another run: wait for its end, or stop it") as caught:
            DirectoryLock(tmp_path)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    process.kill()
    process.wait()
    try:
        with DirectoryLock(tmp_path):
            os.kill(int(child), 0)  # it is alive
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_end_of_a_child_takes_nothing_from_its_parent(tmp_path, hold):
    hold(tmp_path, "if not (child := os.fork()):\n    lock.release()\n    sys.exit()\nos.waitpid(child, 0)")
    assert is_locked(tmp_path)


def test_one_process_takes_it_several_times_until_each_is_released(tmp_path, root):
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    for held in (first, second):
        assert is_refused_in_another(root, tmp_path)
        held.release()
        held.release()
    assert not is_refused_in_another(root, tmp_path) and not is_locked(tmp_path)


def is_refused_in_another(root, directory):
    """Take a directory in a process of its own."""
    text = f"from engine.runs.lock import *\nprint(is_locked({str(directory)!r}))"
    answer = subprocess.run([sys.executable, "-c", text], cwd=root, capture_output=True, text=True, check=True).stdout
    return {"True\n": True, "False\n": False}[answer]


@pytest.mark.parametrize("kind", ["file", "directory as lock file", "link as lock file"])
def test_unfit_place_is_one_error_that_names_it(tmp_path, kind):
    directory, victim = tmp_path / "run", tmp_path / "victim"
    victim.write_text("precious")
    if kind == "file":
        directory.write_text("")
    elif kind == "directory as lock file":
        (directory / ".lock").mkdir(parents=True)
    else:
        directory.mkdir()
        (directory / ".lock").symlink_to(victim)
    with pytest.raises(UserError, match="Cannot write the lock file") as caught:
        DirectoryLock(directory)
    assert f"{directory}/.lock" in str(caught.value) and "\n" not in str(caught.value)
    assert victim.read_text() == "precious"


def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="without locks"), DirectoryLock(tmp_path):
        pass
    with locked(tmp_path / "file", "waits") as is_alone:
        assert not is_alone


def test_waits_for_another_process_and_says_so(tmp_path, hold, capfd, monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.1)
    process, _ = hold(tmp_path)
    timer = threading.Timer(0.5, process.kill)
    timer.start()
    asked = time.monotonic()
    with locked(tmp_path / ".lock", "draws pictures") as is_alone:
        assert is_alone and time.monotonic() - asked > 0.4
    timer.join()
    assert capfd.readouterr().err == "Waiting for another process that draws pictures ...\n"


def test_threads_of_one_process_take_turns(tmp_path):
    inside, most = [], []

    def work():
        for _ in range(3):
            with locked(tmp_path / ".lock", "counts"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 9
    with pytest.raises(ZeroDivisionError), locked(tmp_path / ".lock", "fails"):
        raise ZeroDivisionError
    assert not is_locked(tmp_path)
