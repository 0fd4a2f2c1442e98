"""Devices are chosen among the visible ones, and options without effect are logged."""

import pytest
import torch
from torch import nn

from engine.devices.setup import place_network, select_devices
from utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """A function that pretends a machine with so many GPUs."""

    def machine(num_gpus: int = 0, has_mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Model {index}")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)

    return machine


@pytest.mark.parametrize(
    ("gpu_devices", "ids"), [("0", [0]), ("1", [1]), ("0,1", [0, 1]), ("2, 0", [2, 0])]
)
def test_gpus_are_taken_in_the_order_given(machine, gpu_devices, ids):
    machine(num_gpus=3)
    devices, line = select_devices(gpu_devices)
    assert devices == [torch.device("cuda", index) for index in ids]
    assert all(f"cuda:{index} Model {index}" in line for index in ids)


def test_gpu_that_is_not_there_is_refused_with_those_that_are(machine):
    machine(num_gpus=2)
    with pytest.raises(UserError, match=r"no GPU 2\. Visible GPUs: 0 \(Model 0\), 1 \(Model 1\)"):
        select_devices("0,2")
    with pytest.raises(UserError, match="no GPU -1"):
        select_devices("-1")


@pytest.mark.parametrize("num_gpus", [0, 2])
def test_gpu_that_is_named_twice_is_refused(machine, num_gpus):
    machine(num_gpus)
    with pytest.raises(UserError, match="twice"):
        select_devices("1,1")


def test_cpu_may_be_asked_for_where_there_are_gpus(machine):
    machine(num_gpus=2, has_mps=True)
    assert select_devices(" CPU ") == ([CPU], "Device: CPU, as asked for.")


def test_without_gpus_the_log_says_that_the_ids_have_no_effect(machine):
    machine()
    devices, line = select_devices("0,1")
    assert devices == [CPU] and "--gpu_devices 0,1 has no effect" in line
    machine(has_mps=True)
    devices, line = select_devices("0")
    assert devices == [torch.device("mps")] and "MPS" in line


def test_placed_network_is_the_same_network_with_the_same_names():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    names = list(network.state_dict())
    placed = place_network(network, CPU, channels_last=True, compile=False)
    assert placed is network and network[0].weight.is_contiguous(memory_format=torch.channels_last)
    compiled = place_network(network, CPU, channels_last=False, compile=True)
    assert compiled is network and list(network.state_dict()) == names
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)  # preserved, when not asked for
