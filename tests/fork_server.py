"""Run Python programs in processes that are forked off one which has imported torch and this project.

To start Python with torch takes two seconds. A forked process starts in 50 milliseconds: multiprocessing's `forkserver`
has imported everything once, and has done nothing else. When such a program starts another one of this Python, as
launchers and sweeps do, that one is forked off it in its turn. Whatever tests the start of Python itself, or what a
program imports, starts a fresh interpreter instead (the fixture `fresh_python`).
"""

import atexit
import contextlib
import importlib
import inspect
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
from multiprocessing import connection, forkserver, resource_tracker
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


# ---- what a program starts -------------------------------------------------------------------------------------------
PLAIN_FLAGS = ("-u", "-B")  # of the interpreter: nothing that a forked process would have to do
EXECUTE_CHILD = subprocess.Popen._execute_child
NAMES = tuple(inspect.signature(EXECUTE_CHILD).parameters)[1:]


def execute_child(self: subprocess.Popen, *arguments: Any) -> None:
    """Do as subprocess.Popen does, but fork a program of this Python off the process that starts it."""
    plan = dict(zip(NAMES, arguments, strict=True))
    words = words_of(plan)
    if words is None:
        EXECUTE_CHILD(self, *arguments)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    ready, is_ready = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until the handlers are Python's own
    self.pid = os.fork()
    if self.pid == 0:
        try:
            become_child(plan)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os._exit(finish(words))  # `is_ready` is closed by now
        finally:
            os._exit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(is_ready)
    os.read(ready, 1)  # as Popen returns when the program has been loaded
    os.close(ready)
    self._child_created = True
    pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
    self._close_pipe_fds(*(plan[name] for name in pipes))


def words_of(plan: dict[str, Any]) -> list[str] | None:
    """Return what stands after `python` in the plan of a process; None for another program, or an unusual start."""
    args = plan["args"]
    if isinstance(args, str | bytes | os.PathLike) or plan["shell"]:
        return None
    first, *words = map(os.fsdecode, args)
    while words and words[0] in PLAIN_FLAGS:
        words.pop(0)
    is_program = words and (words[0] in ("-m", "-c") or not words[0].startswith("-"))
    return words if first == sys.executable and is_program else None


def descriptors_of_multiprocessing() -> set[int]:
    """Those by which a process reaches the one that it was forked off, and multiprocessing's tracker."""
    server, tracker = forkserver._forkserver, resource_tracker._resource_tracker
    return {number for number in (server._forkserver_alive_fd, tracker._fd) if number is not None}


def become_child(plan: dict[str, Any]) -> None:
    """Give this forked process the streams, signals and variables that a started program would have."""
    for number, name in enumerate(("p2cread", "c2pwrite", "errwrite")):
        if plan[name] not in (-1, number):
            os.dup2(plan[name], number)
    kept = {*plan["pass_fds"], *descriptors_of_multiprocessing()}
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number not in kept:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(number)
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    atexit._clear()
    if plan["start_new_session"]:
        os.setsid()
    if plan["process_group"] >= 0:
        os.setpgid(0, plan["process_group"])
    if plan["preexec_fn"] is not None:
        plan["preexec_fn"]()
    if plan["env"] is not None:
        os.environ.clear()
        os.environ.update({os.fsdecode(name): os.fsdecode(value) for name, value in plan["env"].items()})
    if plan["cwd"] is not None:
        os.chdir(plan["cwd"])
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (open to the end)
    open_outputs()
    start_clean()


# ---- in the new process ----------------------------------------------------------------------------------------------
def become(
    words: list[str], cwd: str, environment: dict[str, str], outputs: list[Path], method: str, new_session: bool
) -> None:
    """Go on as the program, to its end. `method` is how it starts loading processes."""
    multiprocessing.set_start_method(method, force=True)  # not as this process was started
    if new_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(cwd)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    open_outputs()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start_clean()
    subprocess.Popen._execute_child = execute_child
    status = finish(words)
    os._exit(status)


def start_clean() -> None:
    """Set what a program has at its start and a forked process has not."""
    import torch

    from engine.runs import signals

    torch.set_num_threads(1)
    signals.STARTED = time.monotonic()  # --max_time counts from the start of a program


def open_outputs() -> None:
    """Give Python's streams the descriptors that this process has."""
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (open to the end)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115


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


if __name__ == "__main__":  # python -m tests.fork_server -m MODULE ...: forks off itself what the program starts
    importlib.import_module("trainer_vanilla")
    subprocess.Popen._execute_child = execute_child
    sys.exit(finish(sys.argv[1:]))
