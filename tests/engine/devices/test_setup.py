"""Contradictions are refused early: among options for several processes, and among the parts of a task."""

from argparse import Namespace

import pytest
import torch

from engine.devices.process_group import Distributed
from engine.devices.setup import agree_on_options, join_processes, share_text
from engine.options.parser import Options
from utils.errors import UserError

OPTIONS = {"gpu_devices": "cpu", "dist_timeout": 9, "parallel": "none", "amp": "no", "batch_size": 8, "seed": 3,
           "resume": None, "resume_notes": ["note"]}  # fmt: skip


@pytest.fixture
def join(monkeypatch):
    """A function that joins as process `rank` of `size`, without any other."""

    def join(size, rank=0, **options):
        distributed = Distributed(rank, size)
        distributed.broadcast = lambda value: value
        monkeypatch.setattr(Distributed, "join", lambda timeout, device: distributed)
        opt = Options(**OPTIONS | options)
        return join_processes(opt), agree_on_options(opt, distributed)

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
    assert [join(2, rank)[1].resume_notes for rank in range(2)] == [["note"], []]


def test_the_line_on_the_processes_tells_the_shares(join):
    (_, devices, line), _ = join(3, parallel="fsdp")
    assert devices == [torch.device("cpu")]
    assert line.endswith("3 processes (fsdp), each with 2 or 3 of the 8 samples of an update.")
    assert share_text(Namespace(batch_size=9), 3) == "each with 3 of the 9 samples of an update"
