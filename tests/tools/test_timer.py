"""Blocks are timed under the names that they have, wherever they end."""

import threading

import pytest

from tools.timer import Timers


class Clock:
    """Moves on by a second each time it is read."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_blocks_are_added_up_and_nest():
    timers = Timers(clock=Clock())
    for _ in range(2):
        with timers("epoch"), timers("step"):
            pass
    with timers("step"):
        pass
    assert timers.totals == {"epoch": (6.0, 2), "epoch/step": (2.0, 2), "step": (1.0, 1)}
    assert timers.mean("epoch") == 3.0
    lines = timers.table().splitlines()
    assert lines[1].split() == ["epoch", "6.000", "2", "3000.000"]
    assert lines[2].startswith("  step") and lines[3].startswith("step")
    timers.clear()
    assert timers.names == []


def test_a_function_is_timed_also_within_itself_and_when_it_raises():
    timers = Timers(clock=Clock())

    @timers("fall")
    def fall(depth):
        """Its docstring stays."""
        if depth:
            return fall(depth - 1)
        raise KeyError

    with pytest.raises(KeyError):
        fall(1)
    assert fall.__doc__ == "Its docstring stays."
    assert timers.totals == {"fall": (3.0, 1), "fall/fall": (1.0, 1)}
    with timers("after"):  # nothing is left open
        pass
    assert "after" in timers.names


def test_threads_nest_for_themselves():
    timers = Timers()
    with timers("main"):
        thread = threading.Thread(target=timers("other")(lambda: None))
        thread.start()
        thread.join()
    assert timers.names == ["main", "other"]


@pytest.mark.parametrize("name", ["", "a/b"])
def test_a_name_that_cannot_be_shown_is_refused(name):
    with pytest.raises(ValueError, match="cannot name a block"):
        Timers()(name)


def test_a_gpu_is_waited_for_when_that_is_asked_for(monkeypatch):
    waited = []
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: waited.append(1))
    with Timers()("a"):
        pass
    assert waited == []
    with Timers(synchronize=True)("a"):
        pass
    assert len(waited) == 2
