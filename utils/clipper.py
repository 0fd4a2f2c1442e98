"""Limit the gradients before an update."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

CLIP_TYPES = ("norm", "value")


class Clipper:
    """Measure the gradients and limit them, in place.

    Called after the backward pass and, with a gradient scaler, after the gradients are unscaled; before the optimizer
    steps.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> Clipper(clip=1.0)([weight]), weight.grad
    (tensor(5.), tensor([0.6000, 0.8000]))

    Args:
        clip: the limit, above 0. None or 0: only measure.
        clip_type: "norm" scales all gradients together so that their norm is at most `clip`, and keeps their direction
            (Pascanu, Mikolov and Bengio 2013). "value" cuts every number of a gradient to [-clip, clip], of
            a complex one both of its parts.
        limits: pairs of parameters and the norm, above 0, that their gradients may have together. Each of these groups
            is scaled by itself, in this order, before all gradients are limited.
    """

    def __init__(
        self, clip: float | None = None, clip_type: str = "norm", limits: Iterable[tuple[Iterable[Tensor], float]] = ()
    ):
        assert clip_type in CLIP_TYPES, clip_type
        self.clip = clip
        self.clip_type = clip_type
        self.limits = [({id(parameter) for parameter in parameters}, limit) for parameters, limit in limits]

    def __call__(self, parameters: Iterable[Tensor]) -> Tensor:
        """Limit the gradients and return their total L2 norm before clipping.

        Parameters without a gradient do not count. The norm is a scalar on the device of the gradients, and is not
        waited for. When it is infinite or NaN, so are gradients, and clipping cannot mend them.
        """
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [gradient_values(parameter) for parameter in parameters]
        if not self.clip and not self.limits:
            return measure(gradients)
        total_norm = whole_norm(gradients)
        self.limit_groups(parameters)
        if not self.clip:
            return total_norm
        if self.clip_type == "norm":
            left = whole_norm(gradients) if self.limits else total_norm
            clip_grads_with_norm_(parameters, self.clip, left)
            return total_norm
        with torch.no_grad():
            for gradient in gradients:
                parts = torch.view_as_real(gradient) if gradient.is_complex() else gradient
                parts.clamp_(-self.clip, self.clip)
        return total_norm

    def limit_groups(self, parameters: list[Tensor]) -> None:
        """Scale the gradients of each group down to its limit; parameters of another optimizer are left out."""
        for ids, limit in self.limits:
            if group := [parameter for parameter in parameters if id(parameter) in ids]:
                clip_grads_with_norm_(group, limit, whole_norm([gradient_values(parameter) for parameter in group]))


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a `DTensor` of FSDP; asked in every update, so without importing that class."""
    return hasattr(tensor, "full_tensor")


def measure(gradients: list[Tensor]) -> Tensor:
    """Return the total L2 norm of gradients, a scalar, equal to that of `get_total_norm` up to rounding.

    On a CPU a dot product of each with itself takes half the time, which in a small network is 7 % of an update. On a
    GPU `get_total_norm` spends time on sorting the gradients by device.
    """
    # A dot product rounds differently at another place in memory. The gradients of several processes are views into
    # buckets, whose layout changes after the first update, and so after a resume: the norm would differ.
    if any(is_sharded(gradient) or gradient._is_view() for gradient in gradients):
        return whole_norm(gradients)
    kinds = {(gradient.device.type, gradient.dtype) for gradient in gradients}
    if kinds == {("cuda", torch.float32)} and len({gradient.device for gradient in gradients}) == 1:
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if kinds != {("cpu", torch.float32)}:
        return get_total_norm(gradients)
    flat = [gradient.flatten() for gradient in gradients]  # without a copy, where the memory is in order
    return torch.stack([torch.dot(gradient, gradient) for gradient in flat]).sum().sqrt()


def whole_norm(gradients: list[Tensor]) -> Tensor:
    """Return the total L2 norm, of sharded gradients that of the whole."""
    total_norm = get_total_norm(gradients)
    return total_norm.full_tensor() if is_sharded(total_norm) else total_norm


def gradient_values(parameter: Tensor) -> Tensor:
    """Return the gradient, or the values of a sparse one, which share its memory and its norm."""
    if not parameter.grad.is_sparse:
        return parameter.grad
    parameter.grad = parameter.grad.coalesce()  # sum what falls on the same row, or the norm is not that of the sum
    return parameter.grad.values()
