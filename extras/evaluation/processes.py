"""Set up the processes of an evaluation: devices, the directory of the results, and who logs."""

import logging
from argparse import Namespace
from pathlib import Path

import torch

from engine.devices.job import place
from engine.devices.process_group import Distributed
from engine.devices.setup import select_devices
from utils.logger import build_logger, build_stderr_logger
from utils.timestamp import make_timestamped_dir


def join(opt: Namespace) -> tuple[Distributed, torch.device, str]:
    """Meet the other processes, if there are any; return them, the device of this one, and a line about it."""
    here = place()
    (device, *_), note = select_devices(opt.gpu_devices, here.local_rank, here.local_size)
    if here.size == 1:
        return Distributed(), device, note
    from extras.several_processes import SeveralProcesses  # it takes a while to import

    return SeveralProcesses.join(device=device), device, f"{note} {here.size} processes share the samples."


def open_output(opt: Namespace, distributed: Distributed) -> tuple[Path, logging.Logger]:
    """Return the new directory of the results, and the logger of this process; process 0 makes and writes them."""
    directory = distributed.broadcast(make_timestamped_dir(opt.save_path) if distributed.is_main else None)
    if distributed.is_main:
        return directory, build_logger(opt.proj_name, directory / "eval_log.txt")
    return directory, build_stderr_logger(opt.proj_name, f"[process {distributed.rank}] ")
