"""Record what a run was made from: the command, the code, the versions, the machine and the data."""

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]  # of the project
MAX_SIZE = 2**17  # bytes of a file that is recorded; a larger one is hardly code
PACKAGES = ("torchvision", "numpy", "pillow", "tensorboard", "matplotlib")


def git(*arguments: str) -> str | None:
    """Return the output of a git command in this repository; None without git or a repository."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode(errors="replace").removesuffix("\n")  # a diff shows files of any encoding


def loaded_files() -> list[Path]:
    """Return the Python files that this process has loaded, without those of Python and installed packages."""
    installed = re.compile(re.escape(sysconfig.get_path("stdlib")) + "/|.*/(site|dist)-packages/")
    names = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    own = {name for name in names if name.endswith(".py") and not installed.match(name)}
    return sorted(Path(name).resolve() for name in own if os.path.isfile(name))


def new_code() -> dict[str, str]:
    """Return by name the text of the loaded files that git does not track, such as those of a new task."""
    loaded = loaded_files()
    inside = [str(path.relative_to(ROOT)) for path in loaded if path.is_relative_to(ROOT)]
    tracked = git("ls-files", "-z", "--", *inside)
    known = {ROOT / name for name in (inside if tracked is None else tracked.split("\0"))}
    new = [path for path in loaded if path not in known and path.stat().st_size <= MAX_SIZE]
    return {os.path.relpath(path, ROOT): path.read_text(encoding="utf-8", errors="replace") for path in new}


def version(name: str) -> str | None:
    """Return the version of an installed package; None if it is not installed under this name."""
    try:
        return importlib.metadata.version(name)  # quicker than importing it
    except importlib.metadata.PackageNotFoundError:
        return None


def command_line() -> str:
    """Return the command that started this process, as one would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # None unless it was started by `python -m`
    program = ["-m", spec.name] if spec else sys.argv[:1]
    return shlex.join(["python", *program, *sys.argv[1:]])


def name_of_class(kind: type) -> str:
    """Return ``MODULE:CLASS``; of a class in the program that runs, with the module or the file that was started."""
    module = sys.modules[kind.__module__]
    is_program = kind.__module__ == "__main__"
    name = module.__spec__.name if module.__spec__ else os.path.abspath(getattr(module, "__file__", "-"))
    return f"{name if is_program else kind.__module__}:{kind.__qualname__}"


def provenance(devices: list[torch.device], data: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that is needed to repeat a run.

    Args:
        devices: of the run.
        data: a fingerprint for each part of the data.
    """
    return {
        "command": command_line(),
        "git_commit": git("rev-parse", "HEAD"),
        "git_diff": git("diff", "HEAD"),
        "new_code": new_code(),  # in no commit
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version(name) for name in PACKAGES},
        },
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "torch_threads": torch.get_num_threads(),
            "devices": [torch.cuda.get_device_name(d) if d.type == "cuda" else d.type for d in devices],
        },
        "data": dict(data),
    }
