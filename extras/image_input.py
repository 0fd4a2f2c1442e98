"""Read an image file of a user for a network, as its training data was read."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.Carvana import check_options
from extras.own_data.images import check_colour, read_input
from utils.errors import UserError
from utils.image_file import read_pixels, to_float

SIZES = {"FashionMNIST": 28, "FashionMNISTSample": 28}  # of the images of a data set, where no option says it


def read_image(path: str | Path, opt: Namespace) -> Tensor:
    """Return an image for a classifier, float32 (C, H, W) in [0, 1].

    Args:
        path: an image file.
        opt: the options of the checkpoint: `n_channels`, `image_size`, and white and background in `data_args`.

    Raises:
        UserError: the file cannot be read, see `extras.own_data.images.read_input`; or the options tell no size.
    """
    size = side_of(opt)
    if size is None:
        raise UserError("The checkpoint does not say the size of its images: give --image_size N, in pixels.")
    return read_input(path, opt.n_channels or 1, size, **reading_of(opt))


def side_of(opt: Namespace) -> int | None:
    """Return the side of the square images that a network was trained on, in pixels; None where nothing says it."""
    if hasattr(opt, "patch_size"):
        return opt.patch_size
    return getattr(opt, "image_size", None) or SIZES.get(opt.data_type)


def reading_of(opt: Namespace) -> dict[str, Any]:
    """Return the arguments of the data that say how a file is read, checked: a checkpoint may be from elsewhere."""
    reading = {name: (opt.data_args or {}).get(name) for name in ("white", "background")}
    check_options(opt.n_channels or 1, "direct", reading["white"])
    check_colour(reading["background"])
    return reading


def read_for_masks(path: str | Path, opt: Namespace) -> Tensor:
    """Return an image for a segmentation network, float32 (C, H, W) in [0, 1]; of its own size with --mode padding."""
    white = reading_of(opt)["white"]
    size = (opt.patch_size, opt.patch_size) if opt.mode == "direct" else None
    return to_float(torch.from_numpy(read_pixels(path, opt.n_channels, size, white)))
