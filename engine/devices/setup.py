"""Set up the devices and processes of a run, and place and wrap its networks, as the options ask for."""

from argparse import Namespace
from collections.abc import Mapping

import torch
from torch import nn

from engine.devices.device import place_network, select_devices
from engine.devices.job import local_place
from engine.devices.process_group import Distributed
from engine.options.parser import changed
from utils.errors import UserError


def join_processes(opt: Namespace) -> tuple[Distributed, list[torch.device], str]:
    """Meet the other processes, if there are any.

    Returns:
        The processes, the devices of this one, and a line about both for the log.

    Raises:
        UserError: the options do not fit several processes.
    """
    devices, line = select_devices(opt.gpu_devices, local_place())
    distributed = Distributed.join(opt.dist_timeout, devices[0])
    if distributed.size == 1:
        return distributed, devices, line
    if opt.parallel == "dp":
        raise UserError("--parallel dp is for one process: with several, give --parallel ddp or fsdp.")
    if opt.parallel == "fsdp" and opt.amp == "fp16":
        raise UserError("--parallel fsdp does not scale the loss of --amp fp16. Give --amp bf16, or --parallel ddp.")
    if opt.batch_size < distributed.size:
        raise UserError(f"--batch_size {opt.batch_size} leaves some of {distributed.size} processes without a sample.")
    how = "fsdp" if opt.parallel == "fsdp" else "ddp"
    return distributed, devices, f"{line} {distributed.size} processes ({how}), {share_text(opt, distributed.size)}."


def agree_on_options(opt: Namespace, distributed: Distributed) -> Namespace:
    """Return the options with what process 0 has drawn or found for itself: the seed, and the checkpoint to resume."""
    if distributed.size == 1:
        return opt
    seed, resume = distributed.broadcast((opt.seed, opt.resume))
    notes = opt.resume_notes if distributed.is_main else []
    return changed(opt, seed=seed, resume=resume, resume_notes=notes)


def share_text(opt: Namespace, size: int) -> str:
    each, more = divmod(opt.batch_size, size)
    counts = f"{each} or {each + 1}" if more else f"{each}"
    return f"each with {counts} of the {opt.batch_size} samples of an update"


def place_networks(
    opt: Namespace, networks: Mapping[str, nn.Module], device: torch.device, distributed: Distributed
) -> dict[str, nn.Module]:
    """Return the networks, initialized, on their device, and compiled if --compile asks for it."""
    is_cut = opt.micro_batch_size == "auto" or (opt.micro_batch_size or opt.batch_size) < opt.batch_size
    records_graphs = distributed.size == 1 and not is_cut
    placed = {}
    for name, network in networks.items():
        if opt.init != "default":
            from utils.initialize import initialize

            network = initialize(network, opt.init)
        if opt.activation_checkpointing:
            from engine.devices.wrap import checkpoint_activations

            network = checkpoint_activations(network)
        placed[name] = place_network(network, device, opt.channels_last, opt.compile, records_graphs)
    return placed


def wrap_networks(
    opt: Namespace, networks: Mapping[str, nn.Module], devices: list[torch.device], distributed: Distributed
) -> dict[str, nn.Module]:
    """Return the modules that are called in training, by the names of the networks."""
    if distributed.size == 1 and opt.parallel != "dp":
        return dict(networks)
    from engine.devices.wrap import wrap_network

    mode = "ddp" if opt.parallel == "none" else opt.parallel
    return {name: wrap_network(network, devices, mode, distributed, opt.sync_bn) for name, network in networks.items()}
