"""Record what a run was made from: the command, the code, the versions, the machine and the data."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torchvision", "numpy", "pillow", "tensorboard", "matplotlib")


def git(*arguments: str) -> str | None:
    """Return the output of a git command in this repository; None without git or a repository."""
    command = ["git", "-C", str(Path(__file__).parents[2]), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode(errors="replace").removesuffix("\n")  # a diff shows files of any encoding


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
