"""Choose where to compute: CUDA, then MPS, then CPU."""

import torch
from torch import nn

from utils.errors import UserError

MOST_RECORDED = 5_000_000  # parameters of a network that may be recorded as CUDA graphs


def select_devices(
    gpu_devices: str = "0", local_rank: int = 0, local_size: int = 1
) -> tuple[list[torch.device], str]:
    """Turn ``--gpu_devices`` into devices.

    Args:
        gpu_devices: ids separated by commas, counted among the GPUs that ``CUDA_VISIBLE_DEVICES`` leaves visible, or
            "cpu".
        local_rank: rank on this machine.
        local_size: number of processes on this machine. Each of several gets one device: in the order of
            `gpu_devices`, or, if that names one for all, in the order of ids.

    Returns:
        The devices, the first being the main one, and a line for the log.

    Raises:
        UserError: an id occurs twice, or is not that of a visible GPU on a machine that has some.
    """
    if gpu_devices.strip().lower() == "cpu":
        return [torch.device("cpu")], "Device: CPU, as asked for."
    ids = [int(part) for part in gpu_devices.split(",")]
    if len(set(ids)) < len(ids):
        raise UserError(f"--gpu_devices {gpu_devices!r} names a GPU twice.")

    if local_size > 1:
        if len(ids) not in (1, local_size):
            raise UserError(f"--gpu_devices {gpu_devices} names {len(ids)} GPUs for {local_size} processes.")
        ids = [local_rank if len(ids) == 1 else ids[local_rank]]
    if torch.cuda.is_available():
        available = range(torch.cuda.device_count())
        for device_id in ids:
            if device_id not in available:
                there = ", ".join(f"{i} ({torch.cuda.get_device_name(i)})" for i in available)
                raise UserError(f"--gpu_devices {gpu_devices}: there is no GPU {device_id}. Visible GPUs: {there}.")
        names = ", ".join(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in ids)
        return [torch.device("cuda", i) for i in ids], f"Device: {names}."
    if torch.backends.mps.is_available() and local_size == 1:  # torch cannot add up between processes there
        return [torch.device("mps")], "Device: Apple GPU (MPS); there is no CUDA GPU."
    return [torch.device("cpu")], f"No GPU found, so --gpu_devices {gpu_devices} has no effect. Device: CPU."


def place_network(
    network: nn.Module, device: torch.device, channels_last: bool = False, compile: bool = False, record: bool = False
) -> nn.Module:
    """Move a network or a loss to its device, and compile it in place, so that its weights keep their names.

    A small network on a GPU is also recorded as CUDA graphs, because launching its kernels one by one takes longer
    than running them. A recorded graph has memory of its own, which a large network cannot afford. Its next run
    overwrites the outputs and gradients of the last one, so `record` must be false where the gradients of several
    runs are added up, and for a loss, of which many values are kept.
    """
    network = network.to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format)
    if compile:
        is_small = sum(parameter.numel() for parameter in network.parameters()) <= MOST_RECORDED
        network.compile(mode="reduce-overhead" if record and device.type == "cuda" and is_small else None)
    return network
