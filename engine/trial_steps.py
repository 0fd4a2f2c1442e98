"""Try an optimizer or a schedule on one small weight, before a run begins with it.

torch looks at many of their arguments in the first step only, and at some never.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from engine.options.arguments import told
from utils.errors import UserError
from utils.seed import preserved_random_state

MOST_STEPS = 1000  # of a schedule that are tried


def fault_of_optimizer(
    make: Callable[[list[nn.Parameter]], Optimizer], device: torch.device, is_sparse: bool = False
) -> str:
    """What goes wrong when an optimizer makes its first steps; "" when nothing does.

    Args:
        make: makes it for a list of parameters.
        device: where these are.
        is_sparse: whether their gradients are sparse.

    >>> fault_of_optimizer(lambda weights: SGD(weights, lr=0.1), torch.device("cpu"))
    ''
    """
    weight = nn.Parameter(torch.ones(3, 2, device=device))
    gradient = torch.ones_like(weight)
    with preserved_random_state():
        try:
            optimizer = make([weight])
            for _ in range(3):
                weight.grad = gradient.to_sparse() if is_sparse else gradient.clone()
                optimizer.step()
        except UserError as error:
            return str(error)
        except Exception as error:  # a class of somebody's own may raise anything
            return told(error)
    return ""


def fault_of_schedule(make: Callable[[Optimizer], LRScheduler], groups: list[Mapping[str, Any]], num_steps: int) -> str:
    """What goes wrong when a schedule is stepped, in a run or its first steps; "" when nothing does.

    Args:
        make: makes it for an optimizer.
        groups: the parameter groups whose learning rates it sets; they stay as they are.
        num_steps: of the run.

    >>> fault_of_schedule(lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=-1), [{"lr": 0.1}], num_steps=5)
    'it comes to a learning rate of -0.1'
    """
    stand_in = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    stand_in.param_groups = [{**group, "params": stand_in.param_groups[0]["params"]} for group in groups]
    stand_in.defaults = {**stand_in.defaults, **groups[0]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no step of the optimizer came before
            scheduler = make(stand_in)
            for _ in range(min(num_steps, MOST_STEPS)):
                scheduler.step()
                for rate in (group["lr"] for group in stand_in.param_groups):
                    if not 0 <= rate < math.inf:
                        return f"it comes to a learning rate of {float(rate):g}"
    except UserError as error:
        return str(error)
    except Exception as error:
        return told(error)
    total = getattr(scheduler, "total_steps", None)
    if isinstance(total, int) and total < num_steps:
        return f"it ends after {total} steps, and the run makes {num_steps}"
    return ""
