"""Load image files as tensors of bytes, JPEG by the fastest decoder at hand.

JPEG goes through torchvision's `decode_jpeg`, whose libjpeg-turbo writes straight into a tensor; all other formats,
photos that are to be turned, and files that it refuses, go through Pillow. A file becomes the same tensor either way:

    RGB               the bytes of Pillow's plain decoding, as long as both have libjpeg-turbo
    grey from colour  the JPEG's own luma, as Pillow's `draft("L")` gives it; to make RGB of it first, and grey of that,
                      cuts off and rounds colours on the way, several levels where they are bright
    resized           at most 1 level from Pillow's, which rounds in another place; with `draft` up to tens of levels

`python -m benchmarks.image_loading` measures time and difference.
"""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.image_file import opened, orientation, read_pixels

PLAIN = ("JPEG RGB", "JPEG L", "MPO RGB")  # what torchvision decodes; MPO: several JPEGs, the first counts
LEAST_DRAFT = 2  # JPEG decodes to 1/2, 1/4 or 1/8 of its size


@functools.cache
def jpeg_decoder() -> Callable[[Tensor, int], Tensor] | None:
    """Return a function of a file's bytes, (N,) uint8, and the number of channels; None where torchvision has none."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:  # it is to leave torchvision
        return None
    warnings.filterwarnings("ignore", "The image decoding and encoding capabilities", DeprecationWarning)
    modes = {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB}
    return lambda content, n_channels: decode_jpeg(content, mode=modes[n_channels])


def load_pixels(
    path: str | Path,
    n_channels: int = 3,
    size: tuple[int, int] | None = None,
    draft: bool = False,
    white: int | None = None,
) -> Tensor:
    """Return an image file as uint8 (C, H, W), upright; in memory, the channels of a pixel may stand side by side.

    Args:
        path: an image file of any mode, see `utils.image_file.read_pixels`.
        n_channels: C; 3 for RGB, 1 for grey.
        size: width and height to resize to, averaging over the pixels that fall together; None keeps the size.
        draft: let a JPEG that shrinks to half or less be decoded straight to 1/2, 1/4 or 1/8. Faster the more it
            shrinks, but not the same pixels, see above.
        white: the level of white where a grey level has more than 8 bits, see `utils.image_file.scaled_levels`.

    Raises:
        UserError: the file cannot be read, or not as it is seen, see `utils.image_file`.
    """
    with opened(path) as image:
        is_plain = f"{image.format} {image.mode}" in PLAIN and orientation(image) == 1
        shrinks = size is not None and min(image.width // size[0], image.height // size[1]) >= LEAST_DRAFT
    pixels = decode_jpeg_file(path, n_channels) if is_plain and not (draft and shrinks) else None
    if pixels is None:
        pixels = torch.from_numpy(read_pixels(path, n_channels, size if draft else None, white))
    if size is not None and pixels.shape[-2:] != (size[1], size[0]):
        shape = size[1], size[0]
        pixels = F.interpolate(pixels[None], shape, mode="bilinear", align_corners=False, antialias=True)[0]
    return pixels


def decode_jpeg_file(path: str | Path, n_channels: int) -> Tensor | None:
    """Return a JPEG file as uint8 (C, H, W); None when that cannot be done, so that Pillow says why, or does it."""
    decode = jpeg_decoder()
    if decode is None:
        return None
    try:
        return decode(torch.from_numpy(np.fromfile(path, dtype=np.uint8)), n_channels)
    except (RuntimeError, OSError):
        return None
