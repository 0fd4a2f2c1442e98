"""Losses of classification. Each is a mean over the samples of a batch, or over those that are not ignored."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import UserError

NEVER = -(2**62)  # an ignore_index that is no label; torch's default of -100 would ignore such labels in silence


def check_targets(logits: Tensor, targets: Any, ignored: int | None = None) -> None:
    """Raise UserError unless targets are classes of logits (N, C, ...): int64 (N, ...), from 0 to C - 1, or `ignored`.

    One logit (C = 1) is that of class 1, beside class 0.
    """
    check_logits(logits)
    num_classes, shape = max(logits.shape[1], 2), logits.shape[:1] + logits.shape[2:]
    if not isinstance(targets, Tensor) or targets.dtype != torch.int64 or targets.shape != shape:
        kind = f"{targets.dtype} of shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets)
        raise UserError(
            f"The loss got targets that are {kind}: with logits of shape {tuple(logits.shape)} they are the numbers of "
            f"the classes, torch.int64 of shape {tuple(shape)}. Convert them in the data set."
        )
    lowest, highest = targets.aminmax()
    if lowest >= 0 and highest < num_classes:
        return
    wrong = targets[(targets < 0) | (targets >= num_classes)].unique().tolist()
    if wrong := [value for value in wrong if value != ignored]:
        raise UserError(
            f"The loss got the targets {', '.join(map(str, wrong[:5]))}, but {num_classes} classes are numbered from 0 "
            f"to {num_classes - 1}. Number them so in the data set, give another --n_classes, or leave out a value by "
            f"--set loss_args.ignore_index={wrong[0]}."
        )


def check_logits(logits: Any) -> None:
    """Raise UserError unless the output of the network is a tensor."""
    if not isinstance(logits, Tensor):
        keys = f" with the keys {', '.join(map(str, logits))}" if isinstance(logits, Mapping) else ""
        raise UserError(
            f"The loss got a {type(logits).__name__}{keys} from the network: it takes the tensor of the logits. Let "
            f"the network return it, or take it out in compute_loss and eval_step of the task."
        )


@contextlib.contextmanager
def targets_explained(logits: Tensor, targets: Any, ignored: int | None = None) -> Iterator[None]:
    """Turn an error of torch in the block into that of `check_targets`, if the targets are its cause.

    On a CPU torch checks the targets itself. A GPU stops at a wrong one, and names none.
    """
    try:
        yield
    except (AttributeError, IndexError, RuntimeError, TypeError):
        check_targets(logits, targets, ignored)
        raise


class CrossEntropyLoss(nn.Module):
    """Cross-entropy, as a mean over all samples even with weights for the classes.

    torch's own divides by the sum of the weights in the batch. Then the mean over a batch is not that of its
    micro-batches, and their size would change the result. With weights that are 1 in the mean over the samples, the
    loss is about as large as without.

    Args:
        n_classes: number of classes.
        weight: a number for each class, at least 0; None for 1 each.
        ignore_index: the label of samples that are left out. The loss is the mean over the others, 0 if there are none.
        label_smoothing: share of each label that is spread evenly over all classes, 0 to 1.

    Raises:
        UserError: when there is not a weight for each class, or a number is out of range.
    """

    def __init__(
        self,
        n_classes: int,
        weight: Sequence[float] | Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise UserError(f"label_smoothing={label_smoothing:g} is out of range: it must be from 0 to 1.")
        self.register_buffer("weight", checked_weight(weight, n_classes))
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits (N, C, ...) and labels (N, ...), a scalar of at least 0."""
        ignored = NEVER if self.ignore_index is None else self.ignore_index
        settings = {"ignore_index": ignored, "label_smoothing": self.label_smoothing}
        with targets_explained(logits, labels, self.ignore_index):
            if self.weight is None and self.ignore_index is None:  # torch's mean is that over all samples
                return F.cross_entropy(logits, labels, **settings)
            losses = F.cross_entropy(logits, labels, self.weight, reduction="none", **settings)
        return losses.mean() if self.ignore_index is None else losses.sum() / (labels.long() != ignored).sum().clamp(1)


def checked_weight(weight: Sequence[float] | Tensor | None, n_classes: int) -> Tensor | None:
    """Return the weights of the classes (C,); UserError unless there is one for each, at least 0."""
    weight = None if weight is None else torch.as_tensor(weight, dtype=torch.float)
    if weight is not None and weight.shape != (n_classes,):
        raise UserError(f"The cross-entropy needs a list of {n_classes} weights, one for each class.")
    if weight is not None and not ((weight >= 0).all() and weight.any()):
        raise UserError("The weights of the cross-entropy must be at least 0, and not all 0.")
    return weight
