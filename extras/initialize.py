"""Initial weights, by name."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

INITS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "default": None,  # those of each layer, or of the network
    "kaiming": partial(nn.init.kaiming_normal_, nonlinearity="relu"),  # He et al., ICCV 2015
    "xavier": nn.init.xavier_uniform_,  # Glorot and Bengio, AISTATS 2010
    "xavier_normal": nn.init.xavier_normal_,  # the same variance, drawn from a normal distribution
    "orthogonal": nn.init.orthogonal_,  # Saxe, McClelland and Ganguli, ICLR 2014
    "normal": partial(nn.init.normal_, std=0.02),  # as DCGAN (Radford et al., ICLR 2016) and GPT do
}


def initialize(network: nn.Module, init: str = "default") -> nn.Module:
    """Draw new weights for linear layers and convolutions, set their biases to 0, and return the network.

    It works in place. Normalization, embeddings and frozen parameters keep their values. The numbers come from the
    global generators.

    Args:
        network: on the CPU, so that the weights are the same for all devices.
        init: a name in `INITS`; "default" changes nothing and draws nothing.

    >>> initialize(nn.Linear(2, 1), "kaiming").bias
    Parameter containing:
    tensor([0.], requires_grad=True)
    """
    draw = INITS[init]
    for module in network.modules():
        if draw is not None and isinstance(module, LAYERS) and module.weight.requires_grad:
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
