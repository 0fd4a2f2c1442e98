"""The processes of one machine meet where no other machine can reach them."""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from extras.job_store import job_store
from extras.one_machine import INTERFACE_VARIABLES, OneMachine, keep_to_one_machine
from extras.several_processes import SeveralProcesses
from tests.processes import in_processes
from utils.errors import UserError

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def listening() -> set[str]:
    """The addresses, in hexadecimal, at which this process listens for connections."""
    own = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists() or path.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
            _, address, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in own:
                found.add(address.partition(":")[0])
    return found


def addresses(port: int) -> set[str]:
    """Meet the others at a store that is there, and return the addresses at which this process listens then."""
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    keep_to_one_machine()
    joined = SeveralProcesses.join(30)
    assert joined.sum(torch.ones(1)).item() == 2 and job_store().get("from the launcher") == b"hello"
    return listening()


@ON_LINUX
def test_neither_the_launcher_nor_its_processes_listen_on_other_addresses(monkeypatch):
    for name in INTERFACE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = listening()
    launcher = OneMachine("a job")
    launcher.store.set("from the launcher", "hello")
    of_processes = in_processes(2, addresses, launcher.port)
    assert listening() - before <= {"0100007F"}  # 127.0.0.1
    assert of_processes == [{"0100007F"}] * 2


def test_an_interface_that_the_user_has_chosen_stays(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    assert keep_to_one_machine() == keep_to_one_machine() == "one_machine"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)


def test_a_store_that_cannot_be_opened_is_one_line(monkeypatch):
    def fail(*arguments, **settings):
        raise dist.DistStoreError("Failed to init\nuv loop")

    monkeypatch.setattr("extras.one_machine.TCPStore", fail)
    with pytest.raises(UserError, match=r"cannot meet on this machine: Failed to init uv loop\. .*ulimit -n"):
        OneMachine("a job")
