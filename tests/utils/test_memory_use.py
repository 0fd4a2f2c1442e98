"""The memory of a training is what its tensors hold in this process."""

import re

import pytest
import torch
from torch import nn

from utils.model_summary import memory_of, memory_text

SMALL = ("--train_val_sample_rate", 300, "--n_epoch", 1, "--seed", 0, "--gpu_devices", "cpu", "--dist_timeout", 60)


def test_parameters_gradients_and_the_moments_of_adam_are_counted():
    network = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20))  # 220 + 40 parameters; buffers do not count
    optimizer = torch.optim.AdamW(network.parameters())
    assert memory_of([network], [optimizer]) == {"parameters": 1040, "gradients": 0, "optimizer state": 0}
    network(torch.rand(3, 10)).sum().backward()
    optimizer.step()
    steps = 4 * 4  # a count for each of four tensors
    assert memory_of([network], [optimizer]) == {
        "parameters": 1040, "gradients": 1040, "optimizer state": 2 * 1040 + steps,
    }  # fmt: skip


def test_what_is_shared_counts_once_and_what_is_frozen_has_no_gradient():
    first, second = nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)
    second.weight = first.weight
    frozen = nn.Linear(5, 5, bias=False).requires_grad_(False)
    optimizers = [torch.optim.SGD(first.parameters(), lr=1), torch.optim.SGD(second.parameters(), lr=1)]
    first(torch.rand(1, 10)).sum().backward()
    measured = memory_of([first, second, frozen], optimizers)
    assert measured == {"parameters": 400 + 100, "gradients": 400, "optimizer state": 0}


def test_a_sparse_gradient_counts_as_what_it_holds():
    table = nn.Embedding(1000, 4, sparse=True)
    table(torch.tensor([3, 5])).sum().backward()
    measured = memory_of([table], [torch.optim.SparseAdam(table.parameters())])
    assert measured["gradients"] == 2 * 8 + 2 * 4 * 4  # two indices of 8 bytes, two rows of float32


def test_a_gpu_tells_its_peak(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1_234_500_000)
    text = memory_text({"parameters": 1_000_000}, torch.device("cuda", 1))
    assert text == "Memory of a process: parameters 1.0 MB, at most 1,234.5 MB of cuda:1 in use"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "megabytes"), [((), (2.7, 2.7, 5.4)), (("--nproc", 2, "--parallel", "fsdp"), (1.3, 1.3, 2.7))]
)
def test_a_process_of_two_holds_half_when_the_network_is_cut_up(command, tmp_path, flags, megabytes):
    done = command("trainer_vanilla.py", *SMALL, *flags, "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = re.findall("Memory of a process: .*", done.stdout + done.stderr)
    assert tuple(float(number) for number in re.findall(r"[\d.]+(?= MB)", line)) == megabytes
