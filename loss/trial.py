"""Try a loss with the arguments that a person gives it on small batches, before a run begins with it.

torch looks at most arguments of its losses only when they are called, and at some not at all: with "reduction": "sum" a
loss depends on the size of the micro-batches.
"""

import copy
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from engine.options.arguments import told
from utils.errors import UserError
from utils.seed import preserved_random_state

SAMPLES, FIRST = 7, 3  # of a batch, and of its first part: a list of weights cannot fit both by chance


def examples(n_classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of outputs and targets such as tasks have: of classification, segmentation, and generation."""
    generator = torch.Generator().manual_seed(0)

    def logits(*shape: int) -> Tensor:
        return torch.randn(SAMPLES, *shape, generator=generator)

    def labels(high: int, *shape: int) -> Tensor:
        return torch.randint(high, (SAMPLES, *shape), generator=generator)

    yield logits(n_classes), labels(n_classes)
    yield logits(n_classes, 2, 2), labels(max(2, n_classes), 2, 2)
    yield logits(), labels(2).float()


def fault(criterion: nn.Module, outputs: Tensor, targets: Tensor) -> str:
    """What is wrong with a loss, tried on a batch: "" when it is finite, a scalar, learned from, and a mean."""
    outputs = outputs.clone().requires_grad_()
    try:
        loss = criterion(outputs, targets)
        if not isinstance(loss, Tensor) or loss.dim():
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            return f"it makes {what} of a batch, and not a scalar"
        if not loss.isfinite():
            return f"it is {loss.item()} on a batch of random numbers"
        loss.backward()
        if outputs.grad is None or not outputs.grad.isfinite().all() or not outputs.grad.any():
            return "its gradient is 0 or not finite on a batch of random numbers"
        parts = [(criterion(outputs[rows], targets[rows]), len(targets[rows])) for rows in
                 (slice(0, FIRST), slice(FIRST, None))]  # fmt: skip
    except UserError as error:
        return str(error)
    except Exception as error:  # a loss of somebody's own may raise anything
        return told(error)
    if not torch.isclose(sum(part * size for part, size in parts) / len(targets), loss, rtol=1e-3, atol=1e-5):
        return "it is not the mean over the samples of a batch, so micro-batches would change the result"
    return ""


def fault_of_arguments(criterion: nn.Module, make_plain: Callable[[], nn.Module], n_classes: int) -> str:
    """What is wrong with a loss that would be right without its arguments; "" when that cannot be said.

    Args:
        criterion: the loss.
        make_plain: makes the same without the arguments; may raise.
        n_classes: number of classes.

    >>> fault_of_arguments(nn.MSELoss(reduction="none"), nn.MSELoss, n_classes=2)
    'it makes a tensor of shape (7,) of a batch, and not a scalar'
    """
    with preserved_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            plain = make_plain().eval()
        except Exception:  # then there is nothing to compare with
            return ""
        batch = next((each for each in examples(n_classes) if not fault(plain, *each)), None)
        return fault(copy.deepcopy(criterion).eval(), *batch) if batch else ""
