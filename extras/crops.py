"""Train a segmentation on random pieces of the images at their own size: --crop."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.Carvana import CarvanaDataset, augment_pair
from utils.errors import UserError
from utils.image_file import to_float


def random_crop(pixels: np.ndarray, classes: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a random square of an image and its mask; a smaller image is continued by its last row and column.

    Args:
        pixels: (C, H, W).
        classes: (H, W).
        side: of the square, in pixels.
    """
    height, width = classes.shape
    below, right = max(0, side - height), max(0, side - width)
    if below or right:  # as validation continues an image to what the network divides
        pixels = np.pad(pixels, ((0, 0), (0, below), (0, right)), mode="edge")
        classes = np.pad(classes, ((0, below), (0, right)), mode="edge")
    top, left = (int(torch.randint(size + 1, ())) for size in (height + below - side, width + right - side))
    square = (slice(top, top + side), slice(left, left + side))
    return pixels[:, *square], classes[square]


class Crops(Dataset):
    """A random square of each image with its mask, another one in each epoch.

    Args:
        source: images at their own size.
        side: of the square, in pixels.
        mode: of the validation.

    Raises:
        UserError: the validation would resize images, whose scale the network has not seen.
    """

    is_random = True

    def __init__(self, source: CarvanaDataset, side: int, mode: str):
        if mode != "padding":
            raise UserError(
                f"--crop {side} trains on images at their own size, but --mode {mode} validates on resized ones: add "
                f"--mode padding."
            )
        self.source = source
        self.side = side
        self.names = source.names

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a piece of an image, float32 (C, side, side) in [0, 1], and of its mask, int64 (side, side)."""
        pixels, classes = random_crop(*self.source.read(index), self.side)
        image = to_float(torch.from_numpy(np.ascontiguousarray(pixels)))
        mask = torch.from_numpy(np.ascontiguousarray(classes))
        return augment_pair(image, mask) if self.source.augment else (image, mask)
