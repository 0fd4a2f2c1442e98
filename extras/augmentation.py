"""Change training images at random by transforms of torchvision: --augment light, trivial, randaugment, MODULE:NAME.

https://docs.pytorch.org/vision/stable/transforms.html
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from engine.registry import BUILT_INS, call, find, name_of
from utils.errors import UserError

ROUNDING = 1e-3  # by which an image may leave [0, 1], as after it was resized


def light() -> Callable[[Tensor], Tensor]:
    """Return a transform that mirrors, shifts by up to an eighth, and changes the light by up to a fifth."""
    from torchvision.transforms import v2  # here and below, as it takes half a second to import

    shift = v2.RandomAffine(degrees=0, translate=(0.125, 0.125))
    return v2.Compose([v2.RandomHorizontalFlip(), shift, v2.ColorJitter(brightness=0.2, contrast=0.2)])


def trivial() -> Callable[[Tensor], Tensor]:
    """Return one random change of any strength; Müller and Hutter, "TrivialAugment", ICCV 2021."""
    from torchvision.transforms import v2

    return v2.TrivialAugmentWide()


def randaugment() -> Callable[[Tensor], Tensor]:
    """Return two random changes of middle strength; Cubuk et al., "RandAugment", NeurIPS 2020."""
    from torchvision.transforms import v2

    return v2.RandAugment()


def build_augmentation(name: str) -> "Augmentation":
    """Return the change of samples that --augment names; UserError when what it names makes no transform."""
    transform = call(find("augmentation", name), {}, {}, f"--augment {name}")
    if not callable(transform):
        raise UserError(
            f"--augment {name} makes {type(transform).__name__}: name a class or a function without arguments that "
            f"makes a transform of an image, a function of a tensor."
        )
    return Augmentation(transform, name)


class Augmentation:
    """Changes the image of a sample (image, label, ...).

    Args:
        transform: gets the image, float32 (C, H, W) in [0, 1], and draws from the global generators.
        name: for messages.
    """

    def __init__(self, transform: Callable[[Tensor], Tensor], name: str):
        self.transform = transform
        self.name = name

    def __call__(self, sample: Any) -> Any:
        image, *others = sample if isinstance(sample, (tuple, list)) else [None]
        if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
            raise UserError(
                f"--augment {self.name} changes images: each sample must be (image, label), the image of "
                f"float32 (C, H, W). This data has others."
            )
        if any(isinstance(other, Tensor) and other.ndim > 1 for other in others):
            raise UserError(
                f"--augment {self.name} would change an image without its mask. For segmentation give --augment alone."
            )
        if self.name in BUILT_INS["augmentation"]:
            self.check_range(image)
        with one_thread():
            changed = self.transform(image)
        if not isinstance(changed, Tensor):
            raise UserError(f"--augment {self.name} makes {name_of(type(changed))} of an image: it must make a tensor.")
        return (changed, *others)

    def check_range(self, image: Tensor) -> None:
        """Raise UserError for an image outside [0, 1], of which the transform would cut off the rest in silence."""
        lowest, highest = map(float, image.aminmax())
        if not (lowest >= -ROUNDING and highest <= 1 + ROUNDING):
            raise UserError(
                f"--augment {self.name} changes images in [0, 1], and this one goes from {lowest:.4g} to "
                f"{highest:.4g}. If it is normalized, leave that to --input_mean and --input_std, or name a transform "
                f"of such images: --augment MODULE:NAME."
            )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, as loading processes do: the sum of a large image depends on their number."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
