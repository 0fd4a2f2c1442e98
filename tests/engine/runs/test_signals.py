"""The first signal waits for the end of an update, the second for 1.5 seconds."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from engine.runs import signals
from engine.runs.signals import SIGNALS, StopSignal, Terminated, TimeIsUp

pytestmark = pytest.mark.clock

KINDS = [
    (signal.SIGINT, KeyboardInterrupt, None),
    (signal.SIGTERM, Terminated, 143),
    (signal.SIGHUP, Terminated, 129),
    (signal.SIGUSR1, Terminated, 143),
]


# ---- the first signal ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("signum", "raised", "status"), KINDS)
def test_first_signal_is_only_noted(signum, raised, status):
    with StopSignal() as stop_signal:
        stop_signal.raise_if_set()
        signal.raise_signal(signum)
        update_is_finished = True
        with pytest.raises(raised) as caught:
            stop_signal.raise_if_set()
    assert update_is_finished
    if status:
        assert (caught.value.code, caught.value.signum) == (status, signum)


def test_what_ends_a_program_is_not_swallowed_as_an_exception():
    assert Terminated().code == 143 and TimeIsUp().code == 75
    assert not issubclass(Terminated, Exception) and not issubclass(TimeIsUp, Exception)


def test_handlers_before_come_back_also_after_an_error():
    def mine(signum, frame): ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(ZeroDivisionError), StopSignal():
            assert signal.getsignal(signal.SIGTERM) is not mine
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopSignal() as stop_signal:
            for _ in range(3):
                signal.raise_signal(signal.SIGHUP)
            stop_signal.raise_if_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_it_does_nothing():
    errors = []

    def work():
        try:
            with StopSignal() as stop_signal:
                stop_signal.raise_if_set()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []


def test_one_within_the_other_and_one_after_the_other():
    outer, inner = StopSignal(), StopSignal()
    for _ in range(3):
        with outer:
            with inner:
                signal.raise_signal(signal.SIGTERM)
                with pytest.raises(Terminated):
                    inner.raise_if_set()
            outer.raise_if_set()
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                outer.raise_if_set()
        with outer:
            outer.raise_if_set()  # what came the last time is over


def test_thread_and_descriptors_are_given_back():
    mine, other = socket.socketpair()
    mine.setblocking(False)
    before = signal.set_wakeup_fd(mine.fileno())
    num_threads, num_open = threading.active_count(), len(os.listdir("/proc/self/fd"))
    try:
        for _ in range(5):
            with StopSignal(), StopSignal():
                assert threading.active_count() == num_threads + 2
        assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (num_threads, num_open)
        assert signal.set_wakeup_fd(before) == mine.fileno()
    finally:
        signal.set_wakeup_fd(before)
        mine.close(), other.close()


def test_only_a_person_at_a_terminal_is_told(capfd, monkeypatch):
    for is_terminal, message in ((False, ""), (True, signals.TERMINAL_MESSAGE.decode())):
        monkeypatch.setattr(os, "isatty", lambda descriptor, answer=is_terminal: answer)
        with StopSignal():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        assert capfd.readouterr() == ("", message)


# ---- the second signal -----------------------------------------------------------------------------------------------
def test_only_our_signals_count_and_the_second_one_ends(monkeypatch):
    ended = threading.Event()
    statuses = []
    monkeypatch.setattr(signals, "end_now", lambda status: (statuses.append(status), ended.set()))
    monkeypatch.setattr(signals, "GRACE", 0.0)
    before = signal.signal(signal.SIGCHLD, lambda signum, frame: None)  # torch has a handler for it
    try:
        with StopSignal() as stop_signal:
            for signum in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGCHLD, signal.SIGCHLD):
                signal.raise_signal(signum)
            assert not ended.wait(0.2)
            signal.raise_signal(signal.SIGTERM)
            assert ended.wait(5)
            assert (statuses, stop_signal.signum) == ([143], signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGCHLD, before)


IN_C = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # minutes in one call that lets other threads run
PROGRAM = """
import hashlib, multiprocessing, os, signal, sys, time
from engine.runs.signals import StopSignal
with StopSignal() as stop_signal:
    try:
        print("ready", flush=True)
        {body}
    except BaseException:
        {end}
        print("saved", flush=True)
        raise
"""
WAIT = "while True: time.sleep(0.01); stop_signal.raise_if_set()"


@pytest.fixture
def start(root):
    """A function that starts `PROGRAM` with a body and an end, and waits until it is ready for signals."""
    processes = []

    def start(body, end="pass", program=PROGRAM, **options):
        process = subprocess.Popen(
            [sys.executable, "-c", program.format(body=body, end=end)], cwd=root, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_second_signal_ends_within_two_seconds_whatever_goes_on(start):
    INT, TERM, HUP, USR1 = (signal.Signals[f"SIG{name}"] for name in ("INT", "TERM", "HUP", "USR1"))
    reader, writer = os.pipe()  # nobody reads
    tried = [
        (start(IN_C), (TERM, TERM), 143),
        (start(IN_C), (INT, INT), 130),
        (start(IN_C), (USR1, USR1), 143),
        (start("while True: pass"), (HUP, HUP), 129),
        (start(WAIT, end="time.sleep(60)"), (TERM, INT), 130),
        (start(WAIT, end="time.sleep(60)"), (USR1, TERM), 143),
        (start(f"while True: os.write({writer}, bytes(10**6))", pass_fds=[writer]), (TERM, TERM), 143),
    ]
    one_is_not_enough = start(IN_C)
    one_is_not_enough.terminate()
    for process, (first, _), _ in tried:
        process.send_signal(first)
    time.sleep(0.3)
    assert [process.poll() for process, _, _ in tried] == [None] * len(tried)
    sent = time.monotonic()
    for process, (_, second), _ in tried:
        process.send_signal(second)
    for process, _, status in tried:
        assert process.wait(timeout=5) == status
    assert 1 <= time.monotonic() - sent < 2
    assert [process.stdout.read() for process, _, _ in tried] == [""] * len(tried)
    assert one_is_not_enough.poll() is None
    os.close(reader), os.close(writer)


def test_end_under_way_wins_over_a_second_signal_at_once(start):
    process = start(WAIT, end="time.sleep(1)")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=5)[0] == "saved\n"
    assert process.returncode in (-signal.SIGINT, 143)  # by the first that was delivered
    process = start(WAIT, end="time.sleep(1)")
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=5)[0], process.returncode) == ("saved\n", 143)  # not 130


def test_processes_that_load_data_end_with_it(start):
    body = (
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "        child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        f"        child.start(); print(child.pid, flush=True); {IN_C}"
    )
    process = start(body)
    child = int(process.stdout.readline())
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert process.wait(timeout=5) == 143
    deadline = time.monotonic() + 2
    while os.path.exists(f"/proc/{child}") and time.monotonic() < deadline and not is_zombie(child):
        time.sleep(0.01)
    assert is_zombie(child) or not os.path.exists(f"/proc/{child}")


def is_zombie(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"
    return False


FORKING = """
import os, signal, time
from engine.runs.signals import StopSignal
with StopSignal() as stop_signal:
    children = []
    for _ in range(3):
        children.append(os.fork())
        if children[-1] == 0:
            time.sleep(60)
            os._exit(0)
    print("ready", flush=True)
    time.sleep(0.2)
    for child in children:
        os.kill(child, signal.SIGTERM)
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)
    time.sleep(1.7)
    print(stop_signal.signum, flush=True)
"""


def test_signal_to_a_forked_process_ends_that_one_alone(start):
    process = start("", program=FORKING)
    assert process.communicate(timeout=10)[0] == "[-15, -15, -15]\nNone\n"
    assert process.returncode == 0


def test_signals_are_those_of_the_system():
    assert set(SIGNALS) == {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
