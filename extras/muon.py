"""Optimizers that take a part of a network's parameters, as one: Muon for matrices, AdamW for all others.

Muon (Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) orthogonalizes the update of a matrix, so
torch's takes parameters with two dimensions only.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from extras.param_groups import matching_parameters
from utils.errors import UserError
from utils.optimizer import eager


class Several(Optimizer):
    """Several optimizers, each with its own parameters, as one: with one schedule, and one state in a checkpoint.

    >>> weight, bias = nn.Linear(2, 2).parameters()
    >>> several = Several([torch.optim.SGD([weight], lr=0.1), torch.optim.AdamW([bias], lr=0.01)])
    >>> [group["lr"] for group in several.param_groups]
    [0.1, 0.01]

    Args:
        optimizers: without a state so far, for other parameters each. Their groups are those of this one, in this
            order; a group with a "name" has its rate in the log.

    Raises:
        ValueError: a parameter belongs to two of them.
    """

    def __init__(self, optimizers: Sequence[Optimizer]):
        self.optimizers = list(optimizers)
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})

    def step(self, closure: None = None) -> None:
        """Step each optimizer."""
        groups = iter(self.param_groups)  # other objects after a state was loaded
        for optimizer in self.optimizers:
            optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]
            optimizer.state = self.state
            optimizer.step()


def muon(
    params: Iterable[Any],
    network: nn.Module,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    momentum: float = 0.95,
    adamw: Sequence[str] = (),
    adamw_lr: float | None = None,
    adamw_betas: Sequence[float] = (0.9, 0.999),
    adjust_lr_fn: str = "match_rms_adamw",
    **more: Any,
) -> Optimizer:
    """Return Muon for the matrices of a network, and AdamW for its other parameters and its embeddings.

    Args:
        params: of the network, or groups of them.
        network: whose embeddings are looked for, and whose names the patterns are on.
        lr, weight_decay: of both; without another `adjust_lr_fn` a rate that is good for AdamW is good for Muon.
        momentum, adjust_lr_fn, more: of torch.optim.Muon.
        adamw: patterns on the names of matrices that AdamW steps, such as those of the last layer.
        adamw_lr: another rate of AdamW.
        adamw_betas: of AdamW.

    Raises:
        UserError: a pattern matches nothing, or nothing is left for Muon.
    """
    embeddings = [module.weight for module in network.modules() if isinstance(module, nn.Embedding)]
    named = [p for pattern in adamw for p in matching_parameters({"model": network}, pattern, "--optim_args adamw:")]
    others = {id(parameter) for parameter in (*embeddings, *named)}
    groups = [group if isinstance(group, Mapping) else {"params": [group]} for group in params]
    if not any("name" in group for group in groups):
        groups = [{"params": [parameter for group in groups for parameter in group["params"]]}]
    of_muon, of_adamw = [], []
    for group in groups:
        matrices = [p for p in group["params"] if p.ndim == 2 and id(p) not in others]
        rest = [p for p in group["params"] if p.ndim != 2 or id(p) in others]
        name = group.get("name", "")
        if matrices:
            of_muon.append({**group, "params": matrices, "name": name})
        if rest:
            more_of_group = {} if adamw_lr is None or "lr" in group else {"lr": adamw_lr}
            of_adamw.append({**group, **more_of_group, "params": rest, "name": f"{name} AdamW".strip()})
    if not of_muon:
        raise UserError("--optim Muon: the network has no matrix for it. Take adamW.")
    settings = {"momentum": momentum, "adjust_lr_fn": adjust_lr_fn, **more}
    optimizers = [eager(torch.optim.Muon)(of_muon, lr=lr, weight_decay=weight_decay, **settings)]
    if of_adamw:
        betas = tuple(adamw_betas)
        optimizers.append(eager(torch.optim.AdamW)(of_adamw, lr=lr, weight_decay=weight_decay, betas=betas))
    return Several(optimizers)
