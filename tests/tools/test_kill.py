"""A process that kills itself dies at once, after the update that was asked for or the first one beyond it."""

import signal
from types import SimpleNamespace

import pytest

from tools.kill import Kill

PROGRAM = """
from types import SimpleNamespace
from tools.kill import Kill
kill = Kill(3)
for update in range({first}, 9):
    print(update, flush=True)
    kill.on_update_end(SimpleNamespace(progress=SimpleNamespace(update=update)), {{}})
"""


@pytest.mark.parametrize(("first", "made"), [(1, "1 2 3"), (3, "3"), (5, "5")])
def test_the_process_is_killed_after_the_update(command, first, made):
    done = command("-c", PROGRAM.format(first=first))
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == made.split() and done.stderr == ""


def test_nothing_happens_before_it(monkeypatch):
    monkeypatch.setattr("os.kill", lambda pid, signum: pytest.fail("killed"))
    Kill(3).on_update_end(SimpleNamespace(progress=SimpleNamespace(update=2)), {})
