"""Start processes, and report how they ended. Real processes are killed in tests/torture."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.devices.job import place
from extras import job_store as store_module
from extras import launch as processes
from extras.job_store import attempt, job_store
from extras.launch import children_woken, end_as, own_command, reported
from utils.errors import DivergedError, PeerError, UserError


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No store of another test, and no launcher's environment."""
    monkeypatch.setattr(store_module, "_store", None)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


class Store(dict):
    """The requests to torch's store."""

    def check(self, names):
        return all(name in self for name in names)

    def add(self, name, amount):
        self[name] = self.get(name, 0) + amount
        return self[name]

    def set(self, name, value):
        self[name] = value


@pytest.fixture
def second(monkeypatch):
    """Makes this process the second of two; returns their store."""
    store = Store()
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(processes, "job_store", lambda: store)
    monkeypatch.setattr(processes, "end_with_parent", lambda: None)
    return store


# ---- the environment -------------------------------------------------------------------------------------------------
def test_without_a_launcher_there_is_one_process():
    assert place() == (0, 1, 0, 1)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK or MASTER_PORT is missing"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=2 does not fit WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2", "RANK": "one", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "or no number"),
    ],
)
def test_a_wrong_environment_is_one_line(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message) as error:
        place()
    assert "\n" not in str(error.value)


def test_a_count_of_restarts_that_is_no_number_is_one_line(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "x")
    with pytest.raises(UserError, match="TORCHELASTIC_RESTART_COUNT=x is no number"):
        attempt()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert attempt() == 2


def rendezvous(monkeypatch, rank, port, timeout):
    for name, value in {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError) as error:
        job_store(timeout)
    return str(error.value)


def test_a_missing_rendezvous_is_one_line(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    message = rendezvous(monkeypatch, rank=1, port=port, timeout=1)
    assert f"127.0.0.1:{port}" in message and "no answer" in message and "\n" not in message


def test_a_port_that_is_in_use_is_one_line(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        message = rendezvous(monkeypatch, rank=0, port=taken.getsockname()[1], timeout=1)
    assert "another program uses the port" in message and "\n" not in message


# ---- the launcher ----------------------------------------------------------------------------------------------------
def failures(**codes):
    return {int(rank[1:]): SimpleNamespace(exitcode=code) for rank, code in codes.items()}


def test_the_status_of_processes_that_ended_by_themselves_is_passed_on():
    with pytest.raises(SystemExit) as end:
        end_as(failures(r0=4, r1=-signal.SIGTERM))
    assert end.value.code == 4


def test_the_process_that_was_killed_is_named_and_not_those_that_the_launcher_ended():
    with pytest.raises(PeerError, match="Process 1 was ended by SIGKILL"):
        end_as(failures(r0=-signal.SIGTERM, r1=-signal.SIGKILL, r2=6))


def test_the_own_command_is_what_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "my.task", "kind", "--lr", "1"])
    assert own_command(None) == ["-m", "my.task", "kind", "--lr", "1"]
    assert own_command(["--lr", "1"]) == ["-m", "my.task", "kind", "--lr", "1"]
    monkeypatch.setattr(sys, "argv", ["task.py"])
    assert own_command(["--lr", "2"]) == ["task.py", "--lr", "2"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list children")
def test_a_signal_wakes_stopped_children():
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            child.send_signal(signal.SIGSTOP)
            os.waitpid(child.pid, os.WUNTRACED)  # until it is stopped
            handler = signal.signal(signal.SIGUSR1, lambda *_: None)
            with children_woken():
                os.kill(os.getpid(), signal.SIGUSR1)
                _, status = os.waitpid(child.pid, os.WCONTINUED)
            signal.signal(signal.SIGUSR1, handler)
            assert os.WIFCONTINUED(status)
        finally:
            child.kill()


# ---- in a process of several -----------------------------------------------------------------------------------------
def test_an_error_says_which_process_had_it(second):
    with pytest.raises(UserError, match=r"^\[process 1\] no room"), reported():
        raise UserError("no room")


def test_an_error_of_a_peer_is_reported_without_asking_the_store(second, monkeypatch):
    monkeypatch.setattr(processes, "job_store", lambda: pytest.fail("it may be gone"))
    with pytest.raises(PeerError, match=r"^no answer"), reported():
        raise PeerError("no answer")


def test_an_error_is_reported_by_one_process(second):
    with pytest.raises(UserError), reported():
        raise DivergedError("the loss is nan")
    with pytest.raises(SystemExit) as end, reported():
        raise DivergedError("the loss is nan")
    assert end.value.code == DivergedError.status


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), 130), (SystemExit(143), 143), (UserError("x"), 2), (DivergedError("x"), 4)],
)
def test_what_would_come_again_is_not_tried_again(second, monkeypatch, error, status):
    with pytest.raises(type(error)), reported():
        raise error
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(SystemExit) as end, reported():
        raise AssertionError("it was tried again")
    assert end.value.code == status


@pytest.mark.parametrize("error", [PeerError("x"), RuntimeError("x")])
def test_what_may_not_come_again_is_tried_again(second, monkeypatch, error):
    with pytest.raises(type(error)), reported():
        raise error
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    tried = []
    with reported():
        tried.append(True)
    assert tried


def test_an_unexpected_error_carries_the_rank(second):
    with pytest.raises(ZeroDivisionError) as error, reported():
        raise ZeroDivisionError
    assert error.value.__notes__ == ["This was in process 1 of 2."]


@pytest.mark.parametrize(("ending", "status"), [(None, 0), (SystemExit(143), 143), (SystemExit("message"), 1)])
def test_one_of_several_processes_ends_without_tidying_up(monkeypatch, ending, status):
    ended = []

    def main():
        if ending is not None:
            raise ending

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes.os, "_exit", ended.append)
    monkeypatch.setattr(processes.logging, "shutdown", lambda: None)
    monkeypatch.setattr(processes, "run_main", lambda main: main())
    monkeypatch.setattr(processes, "reported", contextlib.nullcontext)
    processes.run_one_of_several(main)
    assert ended == [status]
