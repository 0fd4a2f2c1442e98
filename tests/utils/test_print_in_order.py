"""Several processes print a line once, or in the order of their ranks."""

import os
import socket
import subprocess
import sys

from engine.devices.process_group import Distributed

PROGRAM = """
from extras.several_processes import SeveralProcesses
distributed = SeveralProcesses.join(60)
distributed.print_once("of all", distributed.size)
distributed.print_in_order("I am", distributed.rank)
distributed.leave()
"""


def test_one_process_prints_as_ever(capsys):
    Distributed().print_once("a", 1)
    Distributed().print_in_order("b", 2)
    assert capsys.readouterr().out == "a 1\nb 2\n"


def test_two_processes_print_once_or_in_order(root):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], cwd=root, stdout=subprocess.PIPE, text=True,
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip
    said = [process.communicate(timeout=90)[0] for process in processes]
    assert said == ["of all 2\n[process 0] I am 0\n[process 1] I am 1\n", ""]
