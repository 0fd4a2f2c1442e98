"""Parameters by patterns on their names: which are trained, with which learning rate and weight decay.

In a shell-style pattern `*` stands for any letters, dots included, `?` for one letter, `[ab]` for one of these. Names
are those of `named_parameters()`, without the prefixes of wrappers. With several networks, `NETWORK:PATTERN` is for one
of them, and a pattern without a colon for all. A parameter that two modules share has both names.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from utils.errors import UserError, nearest

NORMALIZATION = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
KINDS = ("bias", "norm", "1d")  # of parameters, that need no pattern
RATE = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?(x?)")
INSERTED = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")  # into names, by wrappers
SHOWN = 8  # names in a message


# ---- patterns --------------------------------------------------------------------------------------------------------
def plain_name(name: str) -> str:
    """Return the name that a parameter has in its network, without the wrappers around its modules.

    >>> plain_name("layers._checkpoint_wrapped_module.0.weight")
    'layers.0.weight'
    """
    for inserted in INSERTED:
        name = name.replace(inserted, "")
    return name


def named_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every parameter with its plain name, a shared one with each of its names."""
    for name, parameter in network.named_parameters(remove_duplicate=False):
        yield plain_name(name), parameter


def split_pattern(pattern: str) -> tuple[str | None, str]:
    """Return the name of the network that a pattern is for, None for all, and the pattern itself.

    >>> split_pattern("critic:head.*"), split_pattern("head.*")
    (('critic', 'head.*'), (None, 'head.*'))
    """
    network, colon, rest = pattern.partition(":")
    return (network, rest) if colon else (None, pattern)


def matching_parameters(networks: Mapping[str, nn.Module], pattern: str, option: str) -> list[nn.Parameter]:
    """Return the parameters whose names match a pattern, each once.

    Args:
        networks: by name.
        pattern: see the top of this file.
        option: the option that has the pattern, such as "--freeze", for messages.

    Raises:
        UserError: when nothing matches, or there is no network of the pattern's name.
    """
    wanted, rest = split_pattern(pattern)
    if wanted is not None and wanted not in networks:
        raise UserError(f"{option} {pattern!r}: there is no network {wanted!r}, only {', '.join(networks)}.")
    chosen = [network for name, network in networks.items() if wanted in (None, name)]
    named = [entry for network in chosen for entry in named_parameters(network)]
    matches = {id(parameter): parameter for name, parameter in named if fnmatchcase(name, rest)}
    if not matches:
        names = list(dict.fromkeys(name for name, _ in named))
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise UserError(
            f"{option} {pattern!r} matches no parameter{nearest(rest, names)}. "
            f"There are {', '.join(names[:SHOWN]) or 'none'}{more}."
        )
    return list(matches.values())


# ---- groups ----------------------------------------------------------------------------------------------------------
def param_groups(
    model: nn.Module,
    rates: Mapping[str, float | str],
    lr: float | None = None,
    no_decay: Iterable[str] = (),
    strict: bool = True,
) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups for any optimizer of `torch.optim`, those without a pattern first.

    Args:
        model: the network.
        rates: by pattern a learning rate, or "0.1x" for a tenth of `lr`. Of several patterns that match a parameter,
            the last counts.
        lr: the learning rate of all others; None for that of the optimizer.
        no_decay: the parameters without weight decay: patterns, "bias" for all of this name, "norm" for those of
            normalization layers, "1d" for those with at most one dimension, whatever their names.
        strict: whether a pattern must match a trainable parameter.

    Returns:
        Groups with "params" and "name", which is the pattern, or "" for the rest. They have an "lr" or a "weight_decay"
        where it differs from the optimizer's. Groups without parameters are left out.

    Raises:
        UserError: when a pattern matches nothing, or only frozen parameters, or a rate is not one.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> groups = param_groups(model, {"0.*": "0.1x"}, lr=1e-3, no_decay=["bias"])
    >>> [(group["name"], len(group["params"]), group.get("lr"), group.get("weight_decay")) for group in groups]
    [('', 1, None, None), ('', 1, None, 0.0), ('0.*', 1, 0.0001, None), ('0.*', 1, 0.0001, 0.0)]
    """
    patterns = [pattern for pattern in no_decay if pattern not in KINDS]
    if strict:
        check_trainable({"model": model}, rates, "rates")
        check_trainable({"model": model}, patterns, "no_decay")
    pattern_of: dict[int, str] = {}
    without_decay = kinds_without_decay(model, no_decay)
    for name, parameter in named_parameters(model):
        if matches := [pattern for pattern in rates if fnmatchcase(name, pattern)]:
            pattern_of[id(parameter)] = matches[-1]
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            without_decay.add(id(parameter))
    members = {(pattern, decays): [] for pattern in ("", *rates) for decays in (True, False)}
    for parameter in model.parameters():
        if parameter.requires_grad:
            members[pattern_of.get(id(parameter), ""), id(parameter) not in without_decay].append(parameter)
    groups = []
    for (pattern, decays), parameters in members.items():
        group = {"params": parameters, "name": pattern}
        if pattern:
            group["lr"] = rate_of(rates[pattern], lr)
        if not decays:
            group["weight_decay"] = 0.0
        if parameters:
            groups.append(group)
    return groups


def groups_of_networks(
    networks: Mapping[str, nn.Module], rates: Mapping[str, float | str], lr: float, no_decay: Iterable[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Return the groups of each network, by its name; ``NETWORK:PATTERN`` is for one of them.

    Args:
        networks: by name.
        rates, lr, no_decay: see `param_groups`. A pattern must match a parameter of one of the networks.
    """
    no_decay = list(no_decay)
    check_trainable(networks, rates, "--param_lr")
    check_trainable(networks, [pattern for pattern in no_decay if pattern not in KINDS], "--no_decay")
    groups = {}
    for name, network in networks.items():
        own_rates = {rest: rates[pattern] for pattern, rest in patterns_for(name, rates)}
        without_decay = [rest for _, rest in patterns_for(name, no_decay)]
        groups[name] = param_groups(network, own_rates, lr, without_decay, strict=False)
    return groups


def patterns_for(network: str, patterns: Iterable[str]) -> list[tuple[str, str]]:
    """Return the patterns that are for a network, each with the part after the colon."""
    split = [(pattern, *split_pattern(pattern)) for pattern in patterns]
    return [(pattern, rest) for pattern, wanted, rest in split if wanted in (None, network)]


def check_trainable(networks: Mapping[str, nn.Module], patterns: Iterable[str], option: str) -> None:
    """Raise UserError when a pattern matches no parameter, or only frozen ones."""
    for pattern in patterns:
        if not any(parameter.requires_grad for parameter in matching_parameters(networks, pattern, option)):
            raise UserError(f"{option} {pattern!r} matches only parameters that are frozen.")


def kinds_without_decay(model: nn.Module, no_decay: Iterable[str]) -> set[int]:
    """Return the ids of the parameters that the words of `KINDS` in `no_decay` stand for."""
    ids = set()
    if "bias" in no_decay:
        ids |= {id(parameter) for name, parameter in named_parameters(model) if name.split(".")[-1] == "bias"}
    if "norm" in no_decay:
        layers = [module for module in model.modules() if isinstance(module, NORMALIZATION)]
        ids |= {id(parameter) for layer in layers for parameter in layer.parameters()}
    if "1d" in no_decay:
        ids |= {id(parameter) for parameter in model.parameters() if parameter.ndim <= 1}
    return ids


def parse_rate(text: str) -> tuple[str, float | str]:
    """Split ``PATTERN=RATE`` into the pattern and the rate: a number above 0, or a multiple such as "0.1x".

    >>> parse_rate("backbone.*=0.1x"), parse_rate("head.weight=1e-3")
    (('backbone.*', '0.1x'), ('head.weight', 0.001))

    Raises:
        UserError: when it is neither.
    """
    pattern, _, rate = text.rpartition("=")
    if not pattern.strip():
        raise UserError(f"{text[:60]!r} is not PATTERN=RATE, such as 'backbone.*=0.1x' or head.weight=1e-3")
    value = rate_of(rate, 1.0)
    return pattern, rate if rate.endswith("x") else value


def rate_of(rate: float | str, lr: float | None) -> float:
    """Return the learning rate that a number, or a multiple of `lr` such as "0.1x", stands for."""
    match = RATE.fullmatch(str(rate))
    number = float(match[0].removesuffix("x")) if match else math.nan
    if not (0 < number < math.inf):
        raise UserError(f"{str(rate)[:60]!r} is no learning rate: give a finite number above 0, or a multiple as 0.1x")
    if match[3] and lr is None:
        raise UserError(f"the learning rate {rate} is a multiple, of which lr must be given")
    return number * lr if match[3] else number


def group_table(optimizers: Mapping[str, Optimizer]) -> str:
    """Return a table of the parameter groups, for a log; "" where no group has a name, as by default."""
    lines = []
    for name, optimizer in optimizers.items():
        if any("name" in group for group in optimizer.param_groups):
            lines.append(f"{f'groups of {name!r}':<32} {'parameters':>12} {'tensors':>8} {'lr':>10} {'decay':>8}")
            rest = "all others" if any(group.get("name") for group in optimizer.param_groups) else "all"
            for group in optimizer.param_groups:
                count, lr = sum(p.numel() for p in group["params"]), group.get("initial_lr", group["lr"])
                label = group.get("name") or rest
                numbers = f"{count:>12,} {len(group['params']):>8} {lr:>10.4g} {group['weight_decay']:>8.4g}"
                lines.append(f"  {label:<30} {numbers}")
    return "\n".join(lines)


# ---- freezing --------------------------------------------------------------------------------------------------------
class Freezing:
    """Freezes parameters, in place: they have no gradient, and belong in no optimizer.

    Normalization with running statistics would go on to update them, and so change the output of a frozen layer. So it
    stays in eval mode where all of its parameters are frozen. Without parameters of its own, those of the module around
    it decide.

    Args:
        networks: by name.
        freeze: patterns of the parameters to freeze.
        train_only: patterns of the parameters to train; all others are frozen. `freeze` wins over it.

    Raises:
        UserError: when a pattern matches nothing, or no parameter of a network is left to train.

    Attributes:
        in_eval_mode: by network, the names of the normalization layers that stay in eval mode.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    >>> Freezing({"model": network}, freeze=["0.*", "1.*"]).in_eval_mode
    {'model': ['1']}
    """

    def __init__(self, networks: Mapping[str, nn.Module], freeze: Iterable[str] = (), train_only: Iterable[str] = ()):
        freeze, train_only = list(freeze or ()), list(train_only or ())
        self.in_eval_mode: dict[str, list[str]] = {}
        frozen = [parameter for pattern in freeze for parameter in matching_parameters(networks, pattern, "--freeze")]
        if train_only:
            chosen = {id(p) for pattern in train_only for p in matching_parameters(networks, pattern, "--train_only")}
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
        self.in_eval_mode = {name: frozen_normalization(network) for name, network in networks.items()}

    def set_train_mode(self, networks: Mapping[str, nn.Module]) -> None:
        """Put networks in train mode, except for frozen normalization."""
        for name, network in networks.items():
            network.train()
            for layer in self.in_eval_mode.get(name, ()):  # by name, since wrapping may replace modules
                network.get_submodule(layer).eval()

    def note(self, networks: Mapping[str, nn.Module]) -> str:
        """Describe the frozen parameters, for a log; "" when there are none."""
        lines = []
        for name, layers in self.in_eval_mode.items():
            frozen = [parameter for parameter in networks[name].parameters() if not parameter.requires_grad]
            more = f"; in eval mode stay {', '.join(map(plain_name, layers))}" if layers else ""
            count = sum(parameter.numel() for parameter in frozen)
            lines.append(f"Frozen in {name!r}: {count:,} parameters in {len(frozen)} tensors{more}")
        return "\n".join(lines)


def is_trained(network: nn.Module) -> bool:
    """Whether any parameter of a network is trainable."""
    return any(parameter.requires_grad for parameter in network.parameters())


def frozen_normalization(network: nn.Module) -> list[str]:
    """Return the names of the layers with running statistics that are frozen, or are in a module that is."""
    layers = [name for name, module in network.named_modules() if isinstance(module, _NormBase)]
    return [name for name in layers if not is_trained(nearest_with_parameters(network, name))]


def nearest_with_parameters(network: nn.Module, name: str) -> nn.Module:
    """Return the module of this name, or if it has no parameters the innermost around it that has."""
    while name and not any(True for _ in network.get_submodule(name).parameters()):
        name = name.rpartition(".")[0]
    return network.get_submodule(name)
