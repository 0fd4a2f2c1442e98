"""Read an image file as it is seen: upright, opaque, one picture, each grey level at its place between black and white.

A file that would give other pixels is refused in one line: several pictures, transparency, levels of unknown range.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from utils.errors import UserError

ORIENTATION = 0x0112  # the tag of EXIF, from 1 to 8
SIDEWAYS = (5, 6, 7, 8)  # the orientations in which the rows of the file become columns
HALF_WHITE = 1 << 15  # of 16 bits
Size = tuple[int, int]  # width, height


def unreadable(path: str | Path, error: Exception) -> UserError:
    """Return the error for an image file that raised when it was read."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return UserError(f"{path} is too large: {error} Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS.")
    return UserError(f"{path} cannot be read as an image ({error}). Replace or remove it, with its mask if it has one.")


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file, of which only the header is read.

    An image of too many pixels is refused before it is decoded: a file of a few kilobytes may hold gigabytes. The bound
    is Pillow's own, 89 million. Pillow only warns of it, and raises above twice as many.

    Raises:
        UserError: the file is missing, is no image, is too large (`PIL.Image.MAX_IMAGE_PIXELS`), or the block raises.
    """
    try:
        with Image.open(path) as image:
            limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
            if limit is not None and pixels > limit:
                raise Image.DecompressionBombError(f"it has {pixels:,} pixels, and {limit:,} are allowed.")
            yield image
    except (MemoryError, UserError):  # no memory is not the file's fault: it is small enough
        raise
    except Exception as error:  # the decoders raise nearly anything on damaged files
        raise unreadable(path, error) from error


def orientation(image: Image.Image) -> int:
    """Return how an opened image is still to be turned, as EXIF numbers it; 1 is upright."""
    try:
        return 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1)  # Pillow turns a TIFF by itself
    except Exception:  # the block is damaged, and the pixels need not be
        return 1


def image_size(path: str | Path) -> tuple[int, int]:
    """Return width and height of the upright image from the header of its file, without decoding it."""
    with opened(path) as image:
        return image.size[::-1] if orientation(image) in SIDEWAYS else image.size


def read_image(
    path: str | Path, mode: str | None = None, size: Size | None = None, is_mask: bool = False, white: int | None = None
) -> Image.Image:
    """Return the decoded image, turned upright as its EXIF data says.

    Args:
        path: an image file.
        mode, size: a hint. A JPEG may be decoded straight to this mode ("RGB" or "L"), and smaller, though no smaller
            than `size` (width, height), which is several times faster. The caller still converts and resizes.
        is_mask: whether its colours stand for classes.
        white: 65535 if colours of 16 bits are as dark as they look.

    Raises:
        UserError: see `opened`; and the file is truncated, holds several pictures or transparent pixels, or 16 bits
            per colour of which only the lower ones are used.
    """
    with opened(path) as image:
        if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a photo, and previews of it
            raise UserError(f"{path} holds several pictures, of which none is chosen. Save each in a file of its own.")
        has_deep_colours = not image.mode.startswith("I") and ";16" in str(image.tile)  # Pillow reads the upper 8 bits
        image.draft(mode, size[::-1] if size and orientation(image) in SIDEWAYS else size)
        if image.format == "TIFF":
            image.filename = ""  # a grey one that Pillow maps into memory gets wrong pixels when Pillow turns it
        image.load()
        if orientation(image) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        # In a mask, the one transparent colour of a palette, or of a file without an alpha channel, is still a class.
        may_be_transparent = image.has_transparency_data and not (is_mask and "transparency" in image.info)
        if may_be_transparent and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
            raise UserError(
                f"{path} has transparent pixels, whose colours are not what is seen. Save it without transparency: on "
                f"a background, or, if the alpha channel is the mask, the channel alone."
            )
        image.info.pop("transparency", None)  # Pillow warns of some kinds when it converts
        if has_deep_colours and white != 65535 and 0 < np.asarray(image.convert("RGB")).max() < HALF_WHITE >> 8:
            raise UserError(
                f"{path} has 16 bits per colour, and uses the lower ones only, which are not read. Save it with 8 "
                f"bits. Or if it is only dark, --set data_args.white=65535; another white is for grey images only."
            )
        return image


def read_pixels(
    path: str | Path, n_channels: int = 3, size: Size | None = None, white: int | None = None
) -> np.ndarray:
    """Return an image file of any mode as uint8 (C, H, W).

    Args:
        path: an image file: grey, colour, palette, CMYK, grey of more than 8 bits.
        n_channels: C; 3 for RGB, 1 for grey.
        size: width and height to resize to, averaging over the pixels that fall together; None keeps the size.
        white: the level of white where a grey level has more than 8 bits, see `scaled_levels`; of colours `read_image`.

    Raises:
        UserError: see `read_image`; and the file holds floating-point values, or levels whose range is unknown.
    """
    mode = {1: "L", 3: "RGB"}[n_channels]
    image = read_image(path, mode, size, white=white)
    if image.mode == "F":
        raise UserError(f"{path} holds floating-point values, whose range is unknown. Save it with 8 or 16 bits.")
    if image.mode.startswith("I"):  # Pillow would clip the levels instead of scaling them
        image = Image.fromarray(scaled_levels(np.asarray(image), path, white))
    image = image.convert(mode)
    if size is not None:
        image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(image.height, image.width, n_channels)  # (H, W, C)
    return np.array(pixels.transpose(2, 0, 1), order="C")  # (C, H, W)


def scaled_levels(levels: np.ndarray, path: str | Path, white: int | None = None) -> np.ndarray:
    """Return grey levels of more than 8 bits as uint8.

    Args:
        levels: of any whole numbers.
        path: where they are from, for messages.
        white: the level of white, such as 4095 for 12 bits. None: 65,535, if the upper half below it is used. Else the
            levels may as well be of fewer bits, which would turn nearly black.

    Raises:
        UserError: a level is not from 0 to `white`, or the range is unknown.
    """
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > (white or (1 << 16) - 1) or (white is None and 0 < high < HALF_WHITE):
        known = "white is not known" if white is None else f"white is {white:,}"
        raise UserError(
            f"{path} holds levels from {low:,} to {high:,}, and {known}: say which level is white by --set "
            f"data_args.white=N, such as 4095 for 12 bits or 65535 for 16."
        )
    return (levels.astype(np.int64) * 256 // ((white or (1 << 16) - 1) + 1)).astype(np.uint8)


def to_float(pixels: Tensor) -> Tensor:
    """Turn uint8 into float32 in [0, 1]."""
    return pixels.float().div_(255)
