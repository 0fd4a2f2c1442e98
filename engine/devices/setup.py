"""Set up the devices and processes of a run, and place its networks, as the options ask for."""

from argparse import Namespace
from collections.abc import Mapping

import torch
from torch import nn

from engine.devices.device import place_network, select_devices
from engine.devices.job import place
from engine.devices.process_group import Distributed
from engine.options.parser import changed
from engine.registry import load


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
    seed, resume = distributed.broadcast((opt.seed, opt.resume))
    notes = opt.resume_notes if distributed.is_main else []
    if opt.pretrained and not resume:
        opt = load("extras.pretrained:with_mask_values", "pretrained")(opt)
    return changed(opt, seed=seed, resume=resume, resume_notes=notes)


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
