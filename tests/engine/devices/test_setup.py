"""Contradictions are refused early: among options for several processes, and among the parts of a task."""

import pytest
import torch
from torch import nn

from engine.devices import setup
from engine.devices.job import Place
from engine.devices.setup import agree_on_options, join_processes
from engine.options.parser import Options
from extras import several_processes as several
from extras.several_processes import SeveralProcesses
from utils.errors import UserError

OPTIONS = {"gpu_devices": "cpu", "dist_timeout": 9, "parallel": "none", "amp": "no", "batch_size": 8, "seed": 3,
           "sync_bn": False, "find_unused": False, "pretrained": False, "resume": None,
           "resume_notes": ["note"]}  # fmt: skip


class Apart(SeveralProcesses):
    """One of several processes, without any other."""

    def broadcast(self, value, source=0):
        return value


@pytest.fixture
def join(monkeypatch):
    """A function that joins as process `rank` of `size`, without any other."""

    def join(size, rank=0, **options):
        monkeypatch.setattr(setup, "place", lambda: Place(rank, size, rank, size))
        monkeypatch.setattr(several, "place", lambda: Place(rank, size, rank, size))
        monkeypatch.setattr(several, "SeveralProcesses", Apart)
        monkeypatch.setattr(several, "load", lambda *reference: type("Sharded", (Apart,), {"kind": "fsdp"}))
        monkeypatch.setattr(Apart, "join", classmethod(lambda cls, timeout, device: cls(rank, size)))
        opt = Options(**OPTIONS | options)
        distributed, devices, line = join_processes(opt)
        return devices, line, agree_on_options(opt, distributed)

    return join


@pytest.mark.parametrize(
    ("options", "said"),
    [({"parallel": "dp"}, "--parallel dp is for one process: with several, give --parallel ddp or fsdp"),
     ({"parallel": "fsdp", "amp": "fp16"}, "--parallel fsdp does not scale the loss of --amp fp16"),
     ({"batch_size": 2}, "--batch_size 2 leaves some of 3 processes without a sample")],
)  # fmt: skip
def test_what_does_not_fit_several_processes_is_refused(join, options, said):
    with pytest.raises(UserError, match=said):
        join(3, **options)
    join(1, **options)


def test_what_fits(join):
    for options in ({"parallel": "ddp", "amp": "fp16"}, {"parallel": "fsdp", "amp": "bf16"}, {"batch_size": 3}):
        join(3, **options)


def test_only_process_0_tells_what_was_found_on_resume(join):
    assert [join(2, rank)[2].resume_notes for rank in range(2)] == [["note"], []]


def test_the_line_on_the_processes_tells_the_shares(join):
    devices, line, _ = join(3, parallel="fsdp")
    assert devices == [torch.device("cpu")]
    assert line.endswith("3 processes (fsdp), each with 2 or 3 of the 8 samples of an update.")
    assert Apart(0, 3).describe(9) == "3 processes (ddp), each with 3 of the 9 samples of an update."


def test_data_parallel_shares_a_batch_only_among_the_chosen_gpus(monkeypatch):
    network, given = nn.Linear(2, 2), []
    monkeypatch.setattr(nn, "DataParallel", lambda module, ids: given.append((module, ids)))
    gpus = [torch.device("cuda", 2), torch.device("cuda", 0)]
    monkeypatch.setattr(setup, "select_devices", lambda *arguments: (gpus, "note"))
    distributed, _, _ = join_processes(Options(**OPTIONS | {"parallel": "dp"}))
    distributed.wrap(network, gpus[0])
    assert given == [(network, [2, 0])] and distributed.size == 1
