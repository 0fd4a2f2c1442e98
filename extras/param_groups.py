"""Parameters by patterns on their names: which are trained, with which learning rate and weight decay.

In a shell-style pattern `*` stands for any letters, dots included, `?` for one letter, `[ab]` for one of these. Names
are those of `named_parameters()`, without the prefixes of wrappers. With several networks, `NETWORK:PATTERN` is for one
of them, and a pattern without a colon for all. A parameter that two modules share has both names.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    model: nn.Module, rates: Mapping[str, float | str], lr: float | None = None, no_decay: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups for any optimizer of `torch.optim`, those without a pattern first.

    Args:
        model: the network.
        rates: by pattern a learning rate, or "0.1x" for a tenth of `lr`. Of several patterns that match a parameter,
            the last counts.
        lr: the learning rate of all others; None for that of the optimizer.
        no_decay: the parameters without weight decay: patterns, "bias" for all of this name, "norm" for those of
            normalization layers, "1d" for those with at most one dimension, whatever their names.

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
    return groups_of_networks({"model": model}, rates, lr, no_decay)["model"]


def groups_of_networks(
    networks: Mapping[str, nn.Module],
    rates: Mapping[str, float | str] | Iterable[str],
    lr: float | Mapping[str, float] | None,
    no_decay: Iterable[str] = (),
) -> dict[str, list[dict[str, Any]]]:
    """Return the groups of each network, by its name; ``NETWORK:PATTERN`` is for one of them.

    Args:
        networks: by name.
        rates, lr, no_decay: see `param_groups`. A pattern must match a parameter of one of the networks. The rates may
            be texts ``PATTERN=RATE``, and `lr` a rate for each network.
    """
    rates = rates if isinstance(rates, Mapping) else dict(map(parse_rate, rates))
    pattern_of: dict[int, str] = {}
    for pattern in rates:
        pattern_of |= {id(parameter): pattern for parameter in trained(networks, pattern, "--param_lr")}
    without_decay: set[int] = set()
    for pattern in no_decay:
        if pattern in KINDS:
            chosen = [p for network in networks.values() for p in parameters_of_kind(network, pattern)]
        else:
            chosen = trained(networks, pattern, "--no_decay")
        without_decay |= {id(parameter) for parameter in chosen}
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, network in networks.items():
        members = {(pattern, decays): [] for pattern in ("", *rates) for decays in (True, False)}
        for parameter in filter(is_trained, network.parameters()):
            members[pattern_of.get(id(parameter), ""), id(parameter) not in without_decay].append(parameter)
        groups[name] = []
        for (pattern, decays), parameters in members.items():
            group = {"params": parameters, "name": split_pattern(pattern)[1]}
            if pattern:
                group["lr"] = rate_of(rates[pattern], lr[name] if isinstance(lr, Mapping) else lr)
            if not decays:
                group["weight_decay"] = 0.0
            if parameters:
                groups[name].append(group)
    return groups


def trained(networks: Mapping[str, nn.Module], pattern: str, option: str) -> list[nn.Parameter]:
    """Return the parameters that match a pattern; UserError when all of them are frozen."""
    matches = matching_parameters(networks, pattern, option)
    if not any(map(is_trained, matches)):
        raise UserError(f"{option} {pattern!r} matches only parameters that are frozen.")
    return matches


def parameters_of_kind(network: nn.Module, kind: str) -> list[nn.Parameter]:
    """Return the parameters of a network that one of the words in `KINDS` stands for."""
    if kind == "bias":
        return [parameter for name, parameter in named_parameters(network) if name.split(".")[-1] == "bias"]
    if kind == "norm":
        layers = [module for module in network.modules() if isinstance(module, NORMALIZATION)]
        return [parameter for layer in layers for parameter in layer.parameters()]
    return [parameter for parameter in network.parameters() if parameter.ndim <= 1]


def limits_of(networks: Mapping[str, nn.Module], texts: Iterable[str]) -> list[tuple[list[nn.Parameter], float]]:
    """Return the parameters and the limit of their gradients' norm that each text ``PATTERN=NORM`` stands for."""
    limits = []
    for text in texts:
        pattern, _, limit = text.rpartition("=")
        limits.append((matching_parameters(networks, pattern, "--param_clip"), float(limit)))
    return limits


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


def table(
    networks: Mapping[str, nn.Module], in_eval_mode: Mapping[str, Iterable[str]], optimizers: Mapping[str, Optimizer]
) -> str:
    """Return a description of what is frozen and of the parameter groups, for a log; see the next two functions."""
    return "\n".join(filter(None, (frozen_table(networks, in_eval_mode), group_table(optimizers))))


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
                numbers = f"{count:>12,} {len(group['params']):>8} {lr:>10.4g} {group.get('weight_decay', 0):>8.4g}"
                lines.append(f"  {label:<30} {numbers}")
    return "\n".join(lines)


# ---- freezing --------------------------------------------------------------------------------------------------------
def freeze_parameters(
    networks: Mapping[str, nn.Module], freeze: Sequence[str] = (), train_only: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Freeze parameters, in place: they have no gradient, and belong in no optimizer.

    Normalization with running statistics would go on to update them, and so change the output of a frozen layer. So it
    stays in eval mode where all of its parameters are frozen. Without parameters of its own, those of the module around
    it decide. Modules that the user has put in eval mode stay there, see `chosen_eval_mode`.

    Args:
        networks: by name.
        freeze: patterns of the parameters to freeze.
        train_only: patterns of the parameters to train; all others are frozen. `freeze` wins over it.

    Returns:
        By network, the names of the modules that stay in eval mode, with all that is in them; "" is the network.

    Raises:
        UserError: when a pattern matches nothing, or no parameter of a network is left to train.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    >>> freeze_parameters({"model": network}, freeze=["0.*", "1.*"])
    {'model': ['1']}
    """
    chosen = {name: chosen_eval_mode(network) for name, network in networks.items()}
    frozen = [parameter for pattern in freeze for parameter in matching_parameters(networks, pattern, "--freeze")]
    if train_only:
        kept = {id(p) for pattern in train_only for p in matching_parameters(networks, pattern, "--train_only")}
        frozen += [p for network in networks.values() for p in network.parameters() if id(p) not in kept]
    trained_before = [name for name, network in networks.items() if has_trained(network)]
    for parameter in frozen:
        parameter.requires_grad_(False)
    for name in trained_before:
        if not has_trained(networks[name]):
            options = {"--freeze": freeze, "--train_only": train_only}
            flags = " and ".join(f"{flag} {' '.join(patterns)}" for flag, patterns in options.items() if patterns)
            raise UserError(f"{flags}: nothing is left to be trained in the network {name!r}.")
    for name, network in networks.items() if frozen else ():
        chosen[name] += [layer for layer in frozen_normalization(network) if layer not in chosen[name]]
    return {name: layers for name, layers in chosen.items() if layers or frozen}


def frozen_table(networks: Mapping[str, nn.Module], in_eval_mode: Mapping[str, Iterable[str]]) -> str:
    """Describe the frozen parameters, for a log; "" when there are none.

    Args:
        networks: by name.
        in_eval_mode: see `freeze_parameters`.
    """
    lines = []
    for name, layers in in_eval_mode.items():
        frozen = [parameter for parameter in networks[name].parameters() if not is_trained(parameter)]
        names = ", ".join(plain_name(layer) or "all of it" for layer in layers)
        more = f"; in eval mode: {names}" if layers else ""
        count = sum(parameter.numel() for parameter in frozen)
        lines.append(f"Frozen in {name!r}: {count:,} parameters in {len(frozen)} tensors{more}")
    return "\n".join(lines)


def is_trained(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad


def has_trained(network: nn.Module) -> bool:
    """Return whether any parameter of a network is trained."""
    return any(map(is_trained, network.parameters()))


def chosen_eval_mode(network: nn.Module) -> list[str]:
    """Return the names of the outermost modules that the user has frozen and put in eval mode.

    In a network that is in train mode itself, batch normalization in eval mode counts, whether frozen or not.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> network[1].requires_grad_(False).eval()
    BatchNorm1d(2, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
    >>> chosen_eval_mode(network)
    ['1']
    """
    names: list[str] = []
    for name, module in network.named_modules():  # the outer ones first
        is_inside = any(outer == "" or name.startswith(f"{outer}.") for outer in names)
        if module.training or is_inside:
            continue
        is_frozen = not has_trained(nearest_with_parameters(network, name))
        if is_frozen or (isinstance(module, _NormBase) and network.training):
            names.append(name)
    return names


def frozen_normalization(network: nn.Module) -> list[str]:
    """Return the names of the layers with running statistics that are frozen, or are in a module that is."""
    layers = [name for name, module in network.named_modules() if isinstance(module, _NormBase)]
    return [name for name in layers if not has_trained(nearest_with_parameters(network, name))]


def nearest_with_parameters(network: nn.Module, name: str) -> nn.Module:
    """Return the module of this name, or if it has no parameters the innermost around it that has."""
    while name and not any(True for _ in network.get_submodule(name).parameters()):
        name = name.rpartition(".")[0]
    return network.get_submodule(name)
