"""A job goes back into the queue when its time is up, and only then."""

import logging
import signal

import pytest

from engine.runs.signals import Terminated, TimeIsUp
from extras.callbacks import requeue as module
from extras.callbacks.requeue import Requeue


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeIsUp(), 1), (Terminated(signal.SIGUSR1), 1), (Terminated(signal.SIGTERM), 0),
        (Terminated(signal.SIGHUP), 0), (KeyboardInterrupt(), 0), (RuntimeError("out of memory"), 0), (SystemExit(), 0),
    ],
)  # fmt: skip
def test_requeued_when_the_time_is_up(monkeypatch, error, expected):
    loggers = []
    monkeypatch.setattr(module, "requeue", loggers.append)
    logger = logging.getLogger("test")
    Requeue(logger).on_exception(None, error)
    assert loggers == [logger] * expected
