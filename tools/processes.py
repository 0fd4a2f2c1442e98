"""Programs that a tool starts, such as the runs of a sweep."""

import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

from engine.registry import load


def start(
    command: Sequence[str], output: IO | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """Start a program that ends with this one, on Linux even if this one is killed, and that reads no input.

    Args:
        command: the program and its arguments.
        output: where it prints, its errors too; None for where this program prints.
        environment: None for that of this program.
    """
    end_with_parent = load("extras.launch:end_with_parent", "nproc")  # now, not in a process just forked
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        env=environment,
        process_group=0,  # Ctrl-C reaches this process alone, which passes it on once
        preexec_fn=end_with_parent,
    )
