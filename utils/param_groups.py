"""Learning rates and weight decay by parameter: the groups that an optimizer takes."""

import math
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from utils.errors import UserError
from utils.patterns import for_network, matching, named_parameters

NORMALIZATION = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
KINDS = ("bias", "norm", "1d")  # of parameters, that need no pattern
RATE = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?(x?)")


def param_groups(
    model: nn.Module,
    rates: Mapping[str, float | str],
    lr: float | None = None,
    no_decay: Iterable[str] = (),
    strict: bool = True,
) -> list[dict[str, Any]]:
    """Return the parameters that are trained as groups for any optimizer of `torch.optim`, the rest of them first.

    Args:
        model: the network.
        rates: by pattern (see utils/patterns.py) a learning rate, or "0.1x" for a tenth of `lr`. Of several patterns
            that match a parameter, the last counts.
        lr: the learning rate of all others; None for that of the optimizer.
        no_decay: what has no weight decay: patterns, "bias" for all parameters of this name, "norm" for those of
            normalization layers, "1d" for those with one dimension or none, whatever their names.
        strict: a pattern must match a parameter that is trained.

    Returns:
        Groups with "params" and "name", which is the pattern, or "" for the rest. Where they differ from the
        optimizer's own, they have an "lr" or a "weight_decay". Groups without parameters are left out.

    Raises:
        UserError: when a pattern matches nothing, or only what is frozen, or a rate is none.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> groups = param_groups(model, {"0.*": "0.1x"}, lr=1e-3, no_decay=["bias"])
    >>> [(group["name"], len(group["params"]), group.get("lr"), group.get("weight_decay")) for group in groups]
    [('', 1, None, None), ('', 1, None, 0.0), ('0.*', 1, 0.0001, None), ('0.*', 1, 0.0001, 0.0)]
    """
    patterns = [pattern for pattern in no_decay if pattern not in KINDS]
    if strict:
        check_trained({"model": model}, rates, "rates")
        check_trained({"model": model}, patterns, "no_decay")
    of_pattern: dict[int, str] = {}
    without_decay = kinds_without_decay(model, no_decay)
    for name, parameter in named_parameters(model):
        if found := [pattern for pattern in rates if fnmatchcase(name, pattern)]:
            of_pattern[id(parameter)] = found[-1]
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            without_decay.add(id(parameter))
    groups = {(pattern, decays): [] for pattern in ("", *rates) for decays in (True, False)}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[of_pattern.get(id(parameter), ""), id(parameter) not in without_decay].append(parameter)
    return [
        {"params": parameters, "name": pattern}
        | ({"lr": rate_of(rates[pattern], lr)} if pattern else {})
        | ({} if decays else {"weight_decay": 0.0})
        for (pattern, decays), parameters in groups.items() if parameters
    ]  # fmt: skip


def groups_of_networks(
    networks: Mapping[str, nn.Module], rates: Mapping[str, float | str], lr: float, no_decay: Iterable[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Return the groups of each network, by its name; a pattern is for all of them, or for one: ``NETWORK:PATTERN``.

    Args:
        networks: by name.
        rates, lr, no_decay: see `param_groups`. A pattern must match something in one of the networks.
    """
    no_decay = list(no_decay)
    check_trained(networks, rates, "--param_lr")
    check_trained(networks, [pattern for pattern in no_decay if pattern not in KINDS], "--no_decay")
    groups = {}
    for name, network in networks.items():
        own = {rest: rates[pattern] for pattern in rates for rest in for_network(pattern, name)}
        without = [rest for pattern in no_decay for rest in for_network(pattern, name)]
        groups[name] = param_groups(network, own, lr, without, strict=False)
    return groups


def check_trained(networks: Mapping[str, nn.Module], patterns: Iterable[str], option: str) -> None:
    """Raise UserError when a pattern matches no parameter, or only frozen ones."""
    for pattern in patterns:
        if not any(parameter.requires_grad for parameter in matching(networks, pattern, option)):
            raise UserError(f"{option} {pattern!r} matches only parameters that are frozen.")


def kinds_without_decay(model: nn.Module, no_decay: Iterable[str]) -> set[int]:
    """The ids of the parameters that the words among `no_decay` mean."""
    found = set()
    if "bias" in no_decay:
        found |= {id(parameter) for name, parameter in named_parameters(model) if name.split(".")[-1] == "bias"}
    if "norm" in no_decay:
        layers = [module for module in model.modules() if isinstance(module, NORMALIZATION)]
        found |= {id(parameter) for layer in layers for parameter in layer.parameters()}
    if "1d" in no_decay:
        found |= {id(parameter) for parameter in model.parameters() if parameter.ndim <= 1}
    return found


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
    """The learning rate that a number, or a multiple of `lr` such as "0.1x", stands for."""
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
