"""Load image files as tensors of bytes, JPEG by the fastest decoder at hand.

JPEG goes through torchvision's `decode_jpeg`, whose libjpeg-turbo writes straight into a tensor; all other formats, and
files that it refuses, go through Pillow. A file becomes the same tensor either way:

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
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.masks import read_pixels, refuse_bomb, unreadable

ORIENTATION = 0x0112  # the tag of EXIF
# By orientation: whether rows become columns, and which dimensions of (C, H, W) are then flipped.
TURNS = {
    2: (False, (-1,)), 3: (False, (-2, -1)), 4: (False, (-2,)),
    5: (True, ()), 6: (True, (-1,)), 7: (True, (-2, -1)), 8: (True, (-2,)),
}  # fmt: skip
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


def read_header(path: str | Path, upright: bool) -> tuple[str, tuple[int, int], int]:
    """Return format and mode as one text, width and height as they are stored, and the orientation, 1 to 8.

    Raises:
        UserError: the file is missing, is no image, or is too large (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    try:
        with Image.open(path) as image:
            refuse_bomb(image)
            turn = image.getexif().get(ORIENTATION, 1) if upright else 1
            return f"{image.format} {image.mode}", image.size, turn
    except MemoryError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error


def size_of(path: str | Path, upright: bool = False) -> tuple[int, int]:
    """Return the width and height that `load_pixels` gives without `size`, from the header of the file."""
    _, (width, height), turn = read_header(path, upright)
    return (height, width) if TURNS.get(turn, (False,))[0] else (width, height)


def load_pixels(
    path: str | Path,
    n_channels: int = 3,
    size: tuple[int, int] | None = None,
    draft: bool = False,
    upright: bool = False,
) -> Tensor:
    """Return an image file as uint8 (C, H, W); in memory, the channels of a pixel may stand side by side.

    Args:
        path: an image file of any mode; transparency is dropped.
        n_channels: C; 3 for RGB, 1 for grey.
        size: width and height to resize to, averaging over the pixels that fall together; None keeps the size.
        draft: let a JPEG that shrinks to half or less be decoded straight to 1/2, 1/4 or 1/8. Faster the more it
            shrinks, but not the same pixels, see above.
        upright: turn the image as the orientation in its EXIF data says. Otherwise the pixels come as they are stored,
            which is what Pillow and torchvision do.

    Raises:
        UserError: the file is missing, is no image, is truncated, or is too large (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    kind, stored, turn = read_header(path, upright)
    is_turned, flipped = TURNS.get(turn, (False, ()))
    if size is not None and is_turned:
        size = size[1], size[0]
    shrinks = size is not None and min(stored[0] // size[0], stored[1] // size[1]) >= LEAST_DRAFT
    pixels = None
    if kind in ("JPEG RGB", "JPEG L", "MPO RGB") and not (draft and shrinks):  # MPO: several JPEGs, the first counts
        pixels = decode_jpeg_file(path, n_channels)
    if pixels is None:
        pixels = torch.from_numpy(read_pixels(path, n_channels, size if draft else None))
    if size is not None and pixels.shape[-2:] != (size[1], size[0]):
        shape = size[1], size[0]
        pixels = F.interpolate(pixels[None], shape, mode="bilinear", align_corners=False, antialias=True)[0]
    if is_turned:
        pixels = pixels.transpose(-2, -1)
    return pixels.flip(flipped) if flipped else pixels


def decode_jpeg_file(path: str | Path, n_channels: int) -> Tensor | None:
    """Return a JPEG file as uint8 (C, H, W); None when that cannot be done, so that Pillow says why, or does it."""
    decode = jpeg_decoder()
    if decode is None:
        return None
    try:
        return decode(torch.from_numpy(np.fromfile(path, dtype=np.uint8)), n_channels)
    except (RuntimeError, OSError):
        return None
