"""One process at a time in a directory, by real processes; a dead one keeps nothing."""

import errno
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from engine.runs import lock
from engine.runs.lock import DirectoryLock, is_locked, locked
from utils.errors import UserError

pytestmark = pytest.mark.clock

HOLDER = """
import os, sys, time
from engine.runs.lock import DirectoryLock
lock = DirectoryLock({directory!r}, "run")
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


def try_in_another(root, directory):
    """Take a directory in a process of its own: its answer."""
    text = f"from engine.runs.lock import *\ntry:\n    DirectoryLock({str(directory)!r})\n    print('taken')\n"
    text += "except UserError as error:\n    print('refused:', error)"
    return subprocess.run([sys.executable, "-c", text], cwd=root, capture_output=True, text=True, check=True).stdout


@pytest.fixture(autouse=True)
def nothing_is_kept():
    before = dict(lock.HELD)  # other tests may have trainers
    yield
    assert before == lock.HELD


# ---- between processes -----------------------------------------------------------------------------------------------
def test_second_process_is_refused_and_told_who_is_there(tmp_path, hold):
    process, _ = hold(tmp_path)
    for _ in range(2):  # also after the question was asked
        assert is_locked(tmp_path)
        with pytest.raises(UserError) as caught:
            DirectoryLock(tmp_path, "run")
        message = str(caught.value)
        assert f"process {process.pid} on {socket.gethostname()}" in message and str(tmp_path) in message
        assert "another run" in message and message.count("\n") == 1
    process.terminate()
    process.wait()
    with DirectoryLock(tmp_path):
        assert not is_locked(tmp_path)


def test_killed_process_keeps_nothing_though_its_child_lives(tmp_path, hold):
    process, (child,) = hold(tmp_path, FORK)
    with pytest.raises(UserError, match=f"process {process.pid} "):
        DirectoryLock(tmp_path)
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


def test_child_of_the_holder_is_another_process(tmp_path):
    def work():
        with pytest.raises(UserError, match=f"process {os.getppid()} "):
            DirectoryLock(tmp_path)

    with DirectoryLock(tmp_path):
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join()
        assert process.exitcode == 0


def test_released_lock_is_free_for_others_and_the_file_stays(tmp_path, root):
    held = DirectoryLock(tmp_path)
    assert try_in_another(root, tmp_path).startswith(f"refused: {tmp_path} is in use")
    held.release()
    held.release()
    assert (tmp_path / ".lock").exists() and not is_locked(tmp_path)
    assert try_in_another(root, tmp_path) == "taken\n"


# ---- within one process ----------------------------------------------------------------------------------------------
def test_one_process_takes_it_several_times_until_each_is_released(tmp_path, root):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    first, second = DirectoryLock(tmp_path / "run"), DirectoryLock(tmp_path / "link")
    for held in (first, second):
        assert not is_locked(tmp_path / "run")  # not by another; to ask does not give it up
        assert "refused" in try_in_another(root, tmp_path / "run")
        held.release()
    assert try_in_another(root, tmp_path / "run") == "taken\n"


def test_descriptors_are_given_back(tmp_path):
    num_open = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        DirectoryLock(tmp_path).release()
        is_locked(tmp_path)
        with locked(tmp_path / ".lock", "waits"):
            pass
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_directory_that_was_made_anew_is_another(tmp_path, root):
    directory = tmp_path / "run"
    directory.mkdir()
    with DirectoryLock(directory):
        shutil.rmtree(directory)
        directory.mkdir()
        with DirectoryLock(directory):
            assert "refused" in try_in_another(root, directory)


def test_nothing_is_locked_where_nothing_is(tmp_path):
    assert not is_locked(tmp_path) and not is_locked(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


# ---- places that cannot be locked ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["missing", "file", "read-only", "directory as lock file", "link as lock file"])
def test_unfit_place_is_one_error_that_names_it(tmp_path, kind):
    directory, victim = tmp_path / "run", tmp_path / "victim"
    victim.write_text("precious")
    if kind == "file":
        directory.write_text("")
    elif kind == "read-only":
        directory = "/proc/self"  # nobody can make a file there
    elif kind == "directory as lock file":
        (directory / ".lock").mkdir(parents=True)
    elif kind == "link as lock file":
        directory.mkdir()
        (directory / ".lock").symlink_to(victim)
    with pytest.raises(UserError, match="Cannot write the lock file") as caught:
        DirectoryLock(directory)
    assert f"{directory}/.lock" in str(caught.value) and "\n" not in str(caught.value)
    assert not is_locked(directory)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "lockf", refuse)
    num_open, warned = len(os.listdir("/proc/self/fd")), []
    with DirectoryLock(tmp_path, "run", warn=warned.append), DirectoryLock(tmp_path, "run", warn=warned.append):
        assert not is_locked(tmp_path)
    assert len(warned) == 2 and str(tmp_path) in warned[0] and "without locks" in warned[0]
    with locked(tmp_path / "file", "waits") as is_alone:
        assert not is_alone
    assert len(os.listdir("/proc/self/fd")) == num_open


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"12 \x1b[31mred\n", b"9" * 500, b"12 host extra\n", b"x y\n"])
def test_lock_file_with_anything_in_it_is_only_less_helpful(tmp_path, hold, content):
    hold(tmp_path)
    (tmp_path / ".lock").write_bytes(content)  # this process holds nothing that it could lose by that
    with pytest.raises(UserError, match="its process is not known") as caught:
        DirectoryLock(tmp_path)
    assert "\x1b" not in str(caught.value)


def test_full_disk_only_hides_the_name(tmp_path, monkeypatch, root):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with DirectoryLock(tmp_path):
        monkeypatch.undo()
        assert "its process is not known" in try_in_another(root, tmp_path)


# ---- waiting ---------------------------------------------------------------------------------------------------------
def test_waits_for_another_process_and_says_so(tmp_path, hold, capfd, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    process, _ = hold(tmp_path)
    timer = threading.Timer(0.5, process.kill)
    timer.start()
    asked = time.monotonic()
    with locked(tmp_path / ".lock", "draws pictures", poll=0.01) as is_alone:
        assert is_alone and 0.4 < time.monotonic() - asked < 5
    timer.join()
    assert capfd.readouterr().err == (
        f"Waiting for another process that draws pictures (process {process.pid} on {socket.gethostname()}) ...\n"
    )


def test_says_nothing_when_it_need_not_wait(tmp_path, capfd):
    with locked(tmp_path / "file", "draws pictures"):
        pass
    assert capfd.readouterr() == ("", "")


def test_threads_of_one_process_take_turns(tmp_path, root, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0)  # whoever waits reads who is there, which must not give the lock up
    inside, most = [], []

    def work():
        for _ in range(5):
            with locked(tmp_path / ".lock", "counts", poll=0.001):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    with locked(tmp_path / ".lock", "counts"):
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        assert most == [] and "refused" in try_in_another(root, tmp_path)
    for thread in threads:
        thread.join()
    assert most == [1] * 20


def test_lock_is_free_after_an_error_in_the_block(tmp_path, root):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / ".lock", "fails"):
        raise ZeroDivisionError
    assert try_in_another(root, tmp_path) == "taken\n"


def test_of_many_that_start_at_once_one_gets_in(tmp_path):
    context = multiprocessing.get_context("fork")
    num_tried = context.Value("i", 0)

    def work(place):
        try:
            DirectoryLock(tmp_path)
            (tmp_path / f"in{place}").touch()
        except UserError:
            pass
        with num_tried:
            num_tried.value += 1
        while num_tried.value < 8:  # who is in stays until all have tried
            time.sleep(0.01)

    processes = [context.Process(target=work, args=(place,)) for place in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(list(tmp_path.glob("in*"))) == 1
