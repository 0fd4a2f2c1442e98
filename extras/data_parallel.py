"""Share each batch among the GPUs of one process: --parallel dp."""

from collections.abc import Sequence

import torch
from torch import nn

from engine.devices.process_group import Distributed


class SeveralGPUs(Distributed):
    """One process with several GPUs; the network is copied to each of them in every step: simple rather than fast.

    Args:
        devices: the GPUs.
    """

    def __init__(self, devices: Sequence[torch.device]):
        self.ids = [device.index for device in devices]

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        return nn.DataParallel(network, self.ids)  # without ids it would take all that are visible
