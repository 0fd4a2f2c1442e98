"""The first training samples as the network gets them, after augmentation, mixing, resizing and normalization."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from data.sampler import sample_names
from trainer import TrainerBase
from utils.batch import move_to
from utils.seed import preserved_random_state


class Seen(Exception):
    """Ends the call of a network whose input is known."""


class Samples:
    """Samples of the first updates.

    Attributes:
        names: of the samples; empty where some could not be loaded.
        inputs: what the network gets, a tensor of each batch; whatever the batch has in the place of its inputs, if no
            network is called with a tensor.
        targets: of each batch; None where a batch is no pair.
    """

    def __init__(self, trainer: TrainerBase, num_samples: int):
        self.names: list[str] = []
        self.inputs: list[Any] = []
        self.targets: list[Any] = []
        self.num = 0
        is_complete = True
        known = sample_names(trainer.train_loader.dataset)
        for update in trainer.train_loader.updates(0):
            is_complete &= update.num_local == len(update.indices)
            self.names += [known[index] for index in update.indices]
            for batch, size in zip(update.micro_batches, update.sizes, strict=True):
                self.add(trainer, batch, size)
            if self.num >= num_samples:
                break
        self.names = self.names if is_complete and not isinstance(known, range) else []

    def add(self, trainer: TrainerBase, batch: Any, size: int) -> None:
        """Add a batch of `size` samples."""
        if not size:
            return
        is_pair = isinstance(batch, tuple | list) and len(batch) >= 2
        self.inputs.append(input_of(trainer, batch))
        self.targets.append(batch[1] if is_pair else None)
        self.num += size

    @property
    def scale(self) -> tuple[float, float] | None:
        """The least and the largest number of the inputs; None if they are no tensors."""
        tensors = [inputs for inputs in self.inputs if isinstance(inputs, Tensor)]
        if not tensors or len(tensors) < len(self.inputs):
            return None
        return min(each.min().item() for each in tensors), max(each.max().item() for each in tensors)


def input_of(trainer: TrainerBase, batch: Any) -> Any:
    """Return the first argument of the first network that the loss of a batch calls, behind the network's hooks."""
    own = batch[0] if isinstance(batch, tuple | list) and batch else batch
    seen: list[Any] = []
    with watched(trainer.networks.values(), seen), torch.no_grad(), preserved_random_state():
        trainer.compute_loss(move_to(batch, trainer.device))
    if seen and isinstance(seen[0], Tensor) and (not isinstance(own, Tensor) or len(seen[0]) == len(own)):
        return seen[0].detach().cpu()
    return own


@contextmanager
def watched(networks: Iterable[nn.Module], seen: list[Any]) -> Iterator[None]:
    """Add the first argument of the networks' first call to `seen`, and end the block there."""

    def see(network: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.extend(arguments[:1])
        raise Seen

    handles = [network.register_forward_pre_hook(see) for network in networks]
    try:
        with suppress(Seen, NotImplementedError):  # a task with a step of its own may have no such loss
            yield
    finally:
        for handle in handles:
            handle.remove()


def to_show(inputs: Tensor, scale: tuple[float, float], network: nn.Module) -> Tensor:
    """Return pictures (N, C, H, W) in [0, 1]: the normalization taken back; else stretched if they leave that range.

    Args:
        inputs: as the network gets them.
        scale: the least and the largest number of all inputs.
        network: may have the buffers of extras/input_scale.py.
    """
    if hasattr(network, "input_mean"):
        return inputs * network.input_std.cpu() + network.input_mean.cpu()
    low, high = scale
    return inputs if (low >= 0 and high <= 1) or high == low else (inputs - low) / (high - low)


def description(samples: Samples) -> list[str]:
    """Return lines on the shapes and numbers of the inputs."""
    first = samples.inputs[0]
    if not isinstance(first, Tensor):
        return [f"the network gets {kind_of(first)}"]
    shapes = sorted({tuple(each.shape[1:]) for each in samples.inputs})
    of_shapes = ", ".join(" x ".join(map(str, shape)) or "one number" for shape in shapes[:4])
    kind = str(first.dtype).removeprefix("torch.")
    lines = [f"the network gets {kind} of {of_shapes} for each of {samples.num} samples"]
    if first.ndim == 4 and len({each.shape[1] for each in samples.inputs}) == 1:
        channels = torch.cat([each.float().transpose(0, 1).flatten(1) for each in samples.inputs], dim=1)  # (C, M)
        for number, values in enumerate(channels[:4]):
            lines.append(
                f"  channel {number}: {values.min():.3g} to {values.max():.3g}, mean {values.mean():.3g}, "
                f"standard deviation {values.std():.3g}"
            )
    return lines


def kind_of(value: Any) -> str:
    """Return what a batch holds, in words.

    >>> kind_of({"tokens": torch.zeros(4, 7, dtype=torch.int64), "length": 3})
    'tokens: int64 4 x 7, length: int'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {' x '.join(map(str, value.shape))}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {kind_of(each)}" for name, each in value.items())
    if isinstance(value, tuple | list):
        return "; ".join(map(kind_of, value[:4]))
    return type(value).__name__


def rows(samples: Samples, caption: Any, classes: list[str], most: int = 5) -> list[str]:
    """Return a line for each of the first samples that are no pictures: its name, its target and its first numbers."""
    inputs, targets = samples.inputs[0], samples.targets[0]
    lines = []
    for place in range(min(most, samples.num, len(inputs) if isinstance(inputs, Tensor) else 0)):
        name = f"{samples.names[place]}: " if samples.names else ""
        target = f"{caption(targets[place], classes)}; ".replace("\n", ", ") if isinstance(targets, Tensor) else ""
        numbers = inputs[place].flatten()
        more = ", ..." if len(numbers) > 8 else ""
        lines.append(f"  {name}{target}{', '.join(f'{value:.4g}' for value in numbers[:8].tolist())}{more}")
    return lines
