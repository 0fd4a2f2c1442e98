"""Train only some of the weights, and keep the rest as they are."""

from collections.abc import Iterable, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from utils.errors import UserError
from utils.patterns import matching, plain_name


class Freezing:
    """Freezes parameters, in place: they get no gradient, and belong in no optimizer.

    Normalization that keeps running statistics would go on to change them, and so change what a frozen layer computes.
    So it stays in eval mode where all of its parameters are frozen; without parameters of its own, where all of the
    module around it are.

    Args:
        networks: by name.
        freeze: patterns of parameters to be frozen, see utils/patterns.py.
        train_only: patterns of those to be trained; all others are frozen. What `freeze` matches, too, is frozen.

    Raises:
        UserError: when a pattern matches nothing, or nothing of a network is left to be trained.

    Attributes:
        still: by network, the names of the normalization layers that stay in eval mode.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    >>> Freezing({"model": network}, freeze=["0.*", "1.*"]).still
    {'model': ['1']}
    """

    def __init__(self, networks: Mapping[str, nn.Module], freeze: Iterable[str] = (), train_only: Iterable[str] = ()):
        freeze, train_only = list(freeze or ()), list(train_only or ())
        self.still: dict[str, list[str]] = {}
        frozen = [parameter for pattern in freeze for parameter in matching(networks, pattern, "--freeze")]
        if train_only:
            chosen = {id(p) for pattern in train_only for p in matching(networks, pattern, "--train_only")}
            frozen += [p for network in networks.values() for p in network.parameters() if id(p) not in chosen]
        if not frozen:
            return
        before = [name for name, network in networks.items() if is_trained(network)]
        for parameter in frozen:
            parameter.requires_grad_(False)
        given = (("--freeze", freeze), ("--train_only", train_only))
        flags = " and ".join(f"{flag} {' '.join(patterns)}" for flag, patterns in given if patterns)
        for name in before:
            if not is_trained(networks[name]):
                raise UserError(f"{flags}: nothing is left to be trained in the network {name!r}.")
        self.still = {name: frozen_normalization(network) for name, network in networks.items()}

    def set_train_mode(self, networks: Mapping[str, nn.Module]) -> None:
        """Put networks in train mode, except for frozen normalization. By name, since wrapping may exchange modules."""
        for name, network in networks.items():
            network.train()
            for of_module in self.still.get(name, ()):
                network.get_submodule(of_module).eval()

    def note(self, networks: Mapping[str, nn.Module]) -> str:
        """What is frozen, for a log; "" when nothing is."""
        lines = []
        for name, still in self.still.items():
            frozen = [parameter for parameter in networks[name].parameters() if not parameter.requires_grad]
            layers = f"; in eval mode stay {', '.join(map(plain_name, still))}" if still else ""
            count = sum(parameter.numel() for parameter in frozen)
            lines.append(f"Frozen in {name!r}: {count:,} parameters in {len(frozen)} tensors{layers}")
        return "\n".join(lines)


def is_trained(network: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in network.parameters())


def frozen_normalization(network: nn.Module) -> list[str]:
    """The names of the layers with running statistics of which, or of the module around which, all is frozen."""
    layers = [name for name, module in network.named_modules() if isinstance(module, _NormBase)]
    return [name for name in layers if not is_trained(nearest_with_parameters(network, name))]


def nearest_with_parameters(network: nn.Module, name: str) -> nn.Module:
    """The module of this name, or if it has no parameters the innermost around it that has."""
    while name and not any(True for _ in network.get_submodule(name).parameters()):
        name = name.rpartition(".")[0]
    return network.get_submodule(name)
