"""Let the fused kernel of SGD step parameters that earlier updates did not reach."""

import torch
from torch.optim import SGD


def make_momentum(optimizer: SGD) -> None:
    """Give each parameter a momentum of 0 before the first update.

    The kernel refuses parameters of which some have a momentum and others none, as when a loss reaches other ones in
    each update. The bits are those of torch's loop, whose first momentum is the gradient: 0 times a factor, plus the
    gradient. With dampening they would not be, so such parameters are stepped without the kernel.
    """
    for group in optimizer.param_groups:
        if group["dampening"]:
            group["fused"] = False
        if group["fused"] and group["momentum"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
