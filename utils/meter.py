"""Meters: sums and lists that are updated with each batch and read at the end of an epoch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

IGNORED = -100  # in place of a class: counts neither in a metric nor, as `ignore_index`, in a loss of torch


class Meter:
    """Accumulates batches (`update`), returns one value for all of them (`compute`), and starts again (`reset`).

    A subclass declares its state in `__init__`, and defines `update` and `compute`. The base moves it between devices,
    saves and loads it. There are two kinds of state: a sum, which `update` replaces by a larger one, and rows, a list
    to which `update` appends one tensor of shape (n, ...) per batch.

    Three habits keep a meter cheap and exact. `update` never reads a number back from the device (no `.item()`), so
    the device does not wait for it. Sums are replaced rather than changed in place, so that a meter may be reset under
    `torch.inference_mode()` and used outside of it. Randomness is never drawn from the global generators.

    >>> class Largest(Meter):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.declare_rows("values", (), torch.float32)
    ...     def update(self, values):
    ...         self.values.append(values.detach())
    ...     def compute(self):
    ...         return torch.cat(self.values).max().item()
    >>> meter = Largest()
    >>> meter.update(torch.tensor([1.0, 5.0]))
    >>> meter.update(torch.tensor([3.0]))
    >>> meter.compute()
    5.0
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self._initial: dict[str, Tensor] = {}  # the state after reset(), by the name of the attribute
        self._row_names: set[str] = set()

    def declare_sum(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Make the attribute `name`: a tensor of zeros."""
        self._initial[name] = torch.zeros(shape, dtype=dtype)
        self._assign(name, self._initial[name])

    def declare_rows(self, name: str, row_shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Make the attribute `name`: a list of tensors (n, *row_shape).

        Its first entry has no rows (n = 0), so that ``torch.cat`` works before the first update.
        """
        self._row_names.add(name)
        self._initial[name] = torch.zeros((0, *row_shape), dtype=dtype)
        self._assign(name, self._initial[name])

    def update(self, *args, **kwargs) -> None:
        """Add one batch."""
        raise NotImplementedError

    def compute(self):
        """Return the value for all batches since the last `reset`; NaN without any."""
        raise NotImplementedError

    def reset(self) -> None:
        """Return to the initial state, on the same device."""
        for name, initial in self._initial.items():
            self._assign(name, initial)

    def to(self, device: torch.device | str) -> "Meter":
        """Move to `device`, where the tensors given to `update` must be, and return the meter itself."""
        self.device = torch.device(device)
        for name, value in self.state_dict().items():
            self._assign(name, value)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return a snapshot that later updates do not change: one tensor per declared name, rows joined."""
        return {
            name: torch.cat(getattr(self, name)) if name in self._row_names else getattr(self, name).clone()
            for name in self._initial
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue, bit for bit, from what `state_dict` returned. The meter stays on its own device.

        Raises:
            ValueError: when a name is missing, or a shape is that of another meter.
        """
        for name, initial in self._initial.items():
            first = 1 if name in self._row_names else 0  # the number of rows is free
            if name not in state or state[name].shape[first:] != initial.shape[first:]:
                raise ValueError(f"{type(self).__name__} cannot load {name!r}: it is missing, or of another shape")
        for name in self._initial:
            self._assign(name, state[name])

    def merge(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Join the states of several meters, in their order, as if this meter had seen all of their batches."""
        join = {name: torch.cat if name in self._row_names else sum for name in self._initial}
        self.load_state_dict({name: join[name]([state[name] for state in states]) for name in self._initial})

    def _assign(self, name: str, value: Tensor) -> None:
        dtype = self._initial[name].dtype
        if self.device.type == "mps" and dtype == torch.float64:
            dtype = torch.float32  # Apple's GPUs have no float64
        value = value.to(self.device, dtype, copy=True)  # a copy: the caller's tensor stays the caller's
        setattr(self, name, [value] if name in self._row_names else value)


class AvgMeter(Meter):
    """The mean over samples of a value that is given as a mean over each batch, such as a loss.

    Each batch is weighted by its number of samples, so a small last batch does not count too much. The sum is kept in
    float64 (float32 on MPS), whatever the precision of the values.

    >>> meter = AvgMeter()
    >>> meter.update(1.0, n=3)
    >>> meter.update(torch.tensor(5.0), n=1)
    >>> meter.compute()
    2.0
    """

    def __init__(self) -> None:
        super().__init__()
        self.declare_sum("total", (), torch.float64)
        self.declare_sum("count", (), torch.int64)

    def update(self, value: float | Tensor, n: int = 1) -> None:
        """Add a batch of `n` samples whose mean is `value`, a number or a scalar tensor on the meter's device."""
        if n == 0:
            return  # the mean of no samples is NaN, and NaN × 0 would stay for the whole epoch
        if isinstance(value, Tensor):
            assert value.ndim == 0, f"AvgMeter takes one number, the mean of a batch, not shape {tuple(value.shape)}"
            value = value.detach().to(self.total.dtype)  # before the product, which bfloat16 would round
        self.total = self.total + value * n
        self.count = self.count + n

    def compute(self) -> float:
        """Return the mean over samples, NaN when there were none."""
        return (self.total / self.count).item()


def predicted_classes(logits: Tensor) -> Tensor:
    """Turn logits (N, C, ...) into class indices (N, ...), int64.

    With C >= 2 it is the class of the largest logit. With C == 1 the one logit belongs to class 1 ("yes"), which is
    predicted where the logit is above 0, that is, where its sigmoid is above one half.
    """
    return logits.argmax(dim=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
