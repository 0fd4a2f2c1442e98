"""Run Python programs in processes that are forked off one which has imported torch and this project.

To start Python with torch takes two seconds. A forked process starts in 50 milliseconds: multiprocessing's `forkserver`
has imported everything once, and has done nothing else. Whatever tests the start of Python itself, or what a program
imports, starts a fresh interpreter instead (the fixture `fresh_python`).
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing import connection
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = (
    "trainer_vanilla", "trainer_seg_on_carvana", "tests.small_tasks",
    "torch.distributed.fsdp", "torch.distributed.launcher.api", "torch.utils.tensorboard",
    "torchvision", "torchmetrics",
)  # fmt: skip
LOCK = threading.Lock()  # multiprocessing reads the exit status of every process when one is started


def context() -> Any:
    """Return the context of multiprocessing whose processes are forked off the preloaded one."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(PRELOADED))
    return found


class Program:
    """A running program, with the methods of subprocess.Popen that tests use.

    Args:
        arguments: what stands after `python`: a file, `-m MODULE` or `-c CODE`, and its own arguments.
        cwd: its working directory.
        environment: all of its environment variables; None for those of this process.
        new_session: whether it leads a session of its own, as `start_new_session` of subprocess.
    """

    def __init__(
        self, arguments: Sequence[Any], cwd: Path | str = ROOT, environment: dict[str, str] | None = None,
        new_session: bool = False,
    ):  # fmt: skip
        words = [str(word) for word in arguments]
        self.args = [sys.executable, *words]
        self._outputs = tempfile.TemporaryDirectory(prefix="program_")
        self.paths = [Path(self._outputs.name, name) for name in ("stdout", "stderr")]
        method = multiprocessing.get_start_method()
        plan = (words, str(cwd), dict(environment or os.environ), self.paths, method, new_session)
        with LOCK:
            self._process = context().Process(target=become, args=plan)
            self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """Return the exit status, None while the program runs; the negative number of the signal that ended it."""
        with LOCK:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status."""
        if not connection.wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def read(self) -> tuple[str, str]:
        """Return the text of standard output and of standard error so far."""
        stdout, stderr = (
            path.read_text(encoding="utf-8", errors="replace") if path.exists() else "" for path in self.paths
        )
        return stdout, stderr

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return what it wrote to standard output and to standard error."""
        self.wait(timeout)
        return self.read()


def run(
    arguments: Sequence[Any], cwd: Path | str = ROOT, environment: dict[str, str] | None = None, timeout: float = 180
) -> subprocess.CompletedProcess:
    """Run a program to its end, as subprocess.run does; what takes longer than `timeout` seconds is killed."""
    program = Program(arguments, cwd, environment)
    try:
        stdout, stderr = program.communicate(timeout)
    finally:
        program.kill()
    return subprocess.CompletedProcess(program.args, program.returncode, stdout, stderr)


# ---- in the new process ----------------------------------------------------------------------------------------------
def become(
    words: list[str], cwd: str, environment: dict[str, str], outputs: list[Path], method: str, new_session: bool
) -> None:
    """Go on as the program, to its end. `method` is how it starts loading processes."""
    import torch

    from engine.runs import signals

    multiprocessing.set_start_method(method, force=True)  # not as this process was started
    if new_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(cwd)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (open to the end)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signals.STARTED = time.monotonic()  # --max_time counts from the start of a program
    status = finish(words)
    os._exit(status)


def finish(words: list[str]) -> int:
    """Run the program in this process as Python would, tidy up as Python does, and return the exit status."""
    status = 0
    try:
        execute(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120  # as Python does
    return status


def execute(words: list[str]) -> None:
    """Run what stands after `python`."""
    sys.orig_argv = [sys.executable, *words]
    first = words[0]
    if first == "-m":
        sys.argv = words[1:]
        set_path(os.getcwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = ["-c", *words[2:]] if first == "-c" else list(words)
    set_path("" if first == "-c" else str(Path(first).resolve().parent))
    main = ModuleType("__main__")
    if first != "-c":
        main.__file__ = first
    sys.modules["__main__"] = main
    code = compile(words[1], "<string>", "exec") if first == "-c" else compile(Path(first).read_bytes(), first, "exec")
    exec(code, main.__dict__)


def set_path(first: str) -> None:
    """Set the import path to that of a new interpreter, whose first entry depends on how the program was started."""
    given = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    installed = [path for path in sys.path if path and not Path(path).is_relative_to(ROOT)]
    sys.path[:] = [first, *given, *installed]
