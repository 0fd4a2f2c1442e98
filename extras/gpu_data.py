"""Hold data on the GPU that trains on it (--data_device)."""

import torch
from torch.utils.data import Dataset

from utils.errors import UserError

SHARE_OF_DEVICE = 0.25  # of the free memory of a GPU may hold data


def place_data(dataset: Dataset, data_device: str, device: torch.device) -> Dataset:
    """Return the data set on the device that is to hold it.

    Args:
        dataset: in memory.
        data_device: "cpu"; "cuda" for the device that trains; or "auto" for that device if a quarter of its free
            memory is enough, else for the CPU.
        device: the one that trains.

    Raises:
        UserError: for "cuda", when training runs elsewhere, or there is no room.
    """
    if data_device == "cpu" or (data_device == "auto" and device.type != "cuda"):
        return dataset
    if device.type != "cuda":
        raise UserError(f"--data_device cuda: the run computes on {device.type}. Give --data_device auto.")
    free, _ = torch.cuda.mem_get_info(device)
    if dataset.num_bytes <= SHARE_OF_DEVICE * free:
        return dataset.to(device)
    if data_device == "auto":
        return dataset
    raise UserError(
        f"--data_device cuda: {dataset.num_bytes:,} bytes of data are more than a quarter of the {free:,} that are "
        f"free on {device}. Give --data_device auto."
    )
