"""Set up the devices and processes of a run, and place its networks, as the options ask for."""

from argparse import Namespace
from collections.abc import Mapping

import torch
from torch import nn

from engine.devices.job import place
from engine.devices.process_group import Distributed
from engine.options.parser import changed
from engine.registry import load
from utils.errors import UserError

MOST_RECORDED = 5_000_000  # parameters of a network that may be recorded as CUDA graphs


def join_processes(opt: Namespace) -> tuple[Distributed, list[torch.device], str]:
    """Meet the other processes, if there are any.

    Returns:
        The processes, the devices of this one, and a line about both for the log.
    """
    here = place()
    devices, note = select_devices(opt.gpu_devices, here.local_rank, here.local_size)
    if here.size > 1:
        distributed = load("extras.several_processes:join", "nproc")(opt, devices[0])
        return distributed, devices, f"{note} {distributed.describe(opt.batch_size)}"
    if opt.parallel == "dp" and devices[0].type == "cuda":
        return load("extras.data_parallel:SeveralGPUs", "parallel")(devices), devices, note
    return Distributed(), devices, note


def agree_on_options(opt: Namespace, distributed: Distributed) -> Namespace:
    """Return the options with what process 0 has drawn or found for itself: the seed, and the checkpoint to resume.

    Masks mean the same classes as in the run that --pretrained starts from, unless the options say otherwise.
    """
    if distributed.size > 1:
        seed, resume = distributed.broadcast((opt.seed, opt.resume))
        notes = opt.resume_notes if distributed.is_main else []
        opt = changed(opt, seed=seed, resume=resume, resume_notes=notes)
    if opt.pretrained and not opt.resume:
        opt = load("extras.pretrained:with_mask_values", "pretrained")(opt)
    return opt


def place_networks(
    opt: Namespace, networks: Mapping[str, nn.Module], device: torch.device, distributed: Distributed
) -> dict[str, nn.Module]:
    """Return the networks, initialized, on their device, and compiled if --compile asks for it."""
    if opt.input_mean or opt.input_std:
        load("extras.input_scale:check_put_on", "input_mean")(networks)
    is_cut = opt.micro_batch_size == "auto" or (opt.micro_batch_size or opt.batch_size) < opt.batch_size
    records_graphs = distributed.size == 1 and not is_cut
    placed = {}
    for name, network in networks.items():
        if opt.init != "default":
            network = load("extras.initialize:initialize", "init")(network, opt.init)
        if opt.activation_checkpointing:
            reference = "extras.activation_checkpointing:checkpoint_activations"
            network = load(reference, "activation_checkpointing")(network)
        placed[name] = place_network(network, device, opt.channels_last, opt.compile, records_graphs)
    return placed


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
