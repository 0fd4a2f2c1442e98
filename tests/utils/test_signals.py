"""The first signal waits for the end of an update, the second does not, and the handlers before come back."""

import signal
import threading

import pytest

from utils.signals import StopSignal, Terminated

KINDS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]


@pytest.mark.parametrize(("signum", "raised"), KINDS)
def test_first_signal_is_only_noted(signum, raised):
    with StopSignal() as stop_signal:
        stop_signal.raise_if_set()
        signal.raise_signal(signum)
        update_is_finished = True
        with pytest.raises(raised):
            stop_signal.raise_if_set()
    assert update_is_finished


@pytest.mark.parametrize(("second", "raised"), KINDS)
def test_second_signal_acts_at_once(second, raised):
    with StopSignal():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(raised):
            signal.raise_signal(second)


def test_sigterm_ends_with_the_status_of_a_shell():
    assert Terminated().code == 143
    assert not issubclass(Terminated, Exception)  # so that no `except Exception` swallows it


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
