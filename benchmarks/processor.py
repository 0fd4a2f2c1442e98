"""The name of the processor, for a line below a table."""

import contextlib
import os
import platform
from pathlib import Path


def processor() -> str:
    """The name of the processor, the number of cores that this process may use, and that of torch's threads."""
    import torch

    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {num_cores()} cores, {torch.get_num_threads()} threads"


def num_cores() -> int:
    if os.environ.get("OMP_PROC_BIND"):  # then this thread may use one of them, and the others the rest
        return os.cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
