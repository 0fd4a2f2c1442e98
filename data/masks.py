"""Read segmentation masks from files of any encoding.

A mask may hold 0 and 1, 0 and 255, a palette, or colours. The colour of a pixel is its class: `scan_masks` finds the
distinct colours of a data set, and in sorted order they become the classes 0, 1, 2, ... So black is class 0 and white
is class 1, whatever their places in a palette. Where all masks share a palette with colours, its places are the order.

Inside this file a colour is one integer, its code: 0xRRGGBB, which makes the grey level g the code g * 0x010101. Codes
sort as grey levels do, and 16-bit grey levels fit the same rule.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.pairs import shorten
from engine.registry import load
from utils.errors import UserError
from utils.image_file import read_image
from utils.meter import IGNORED

GREY = 0x010101
MAX_VALUES = 256  # distinct colours in one file, above which it is no mask
HALF = 128  # where the masks that went through JPEG are cut
SCAN_THREADS = 4
UNKNOWN = -1  # in place of a class
PIXELS_VERSION = 2  # to be raised with each change that gives other pixels or classes, since they are kept in caches


@dataclass(frozen=True)
class ClassMap:
    """Which colour is which class: `codes[k]` is class k, and those in `ignored` are `utils.meter.IGNORED`."""

    codes: tuple[int, ...]
    threshold_jpeg: bool = False  # cut JPEG masks at half, because JPEG changes the values
    ignored: tuple[int, ...] = ()

    @property
    def values(self) -> list[int | str]:
        """The codes as people know them, see `code_of`; beside colours, grey levels are colours, too."""
        if any(code % GREY for code in self.codes):
            return [f"#{code:06x}" for code in self.codes]
        return [code // GREY for code in self.codes]

    def classes(self, codes: np.ndarray) -> np.ndarray:
        """Return the class of each code, same shape; `UNKNOWN` for a code that is not in the map."""
        known = np.array(self.codes + self.ignored)
        classes = np.array([*range(len(self.codes)), *[IGNORED] * len(self.ignored)])
        ascending = known.argsort()
        index = ascending[np.searchsorted(known, codes, sorter=ascending).clip(max=len(known) - 1)]
        return np.where(known[index] == codes, classes[index], UNKNOWN)


def read_classes(path: str | Path, class_map: ClassMap, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a mask file as classes, int64 (H, W).

    Args:
        path: a mask file.
        class_map: which colour is which class, see `scan_masks`.
        size: width and height to resize to, taking the nearest pixel; None keeps the size.

    Raises:
        UserError: the file cannot be read, or holds a colour that is not in the map.
    """
    image, _ = read_mask(path, class_map.threshold_jpeg)
    if size is not None:
        image = image.resize(size, Image.Resampling.NEAREST)
    pixels = np.asarray(image)  # (H, W), for RGB (H, W, 3)
    if image.mode in ("L", "P"):  # look up 256 values instead of every pixel
        classes = class_map.classes(value_codes(np.arange(256), image))[pixels]
    else:
        classes = class_map.classes(value_codes(pixels, image))
    is_unknown = classes == UNKNOWN
    if is_unknown.any():
        raise unknown_value(path, value_codes(pixels[is_unknown], image)[0], class_map.codes)
    return classes


def unknown_value(path: str | Path, code: int, codes: Sequence[int]) -> UserError:
    """Return the error for a mask that holds a code of no class."""
    return UserError(
        f"{path} holds the value {code_text(code)}, but the classes are {codes_text(codes, len(codes))}: those of the "
        f"checkpoint, of --mask_values, or of the masks that were scanned. Mend the file, or name all values in the "
        f"order of their classes: --mask_values, with as many --n_classes."
    )


def load_mask(path: str | Path, class_map: ClassMap, size: tuple[int, int] | None = None) -> Tensor:
    """Return a mask file as classes, int64 (H, W); see `read_classes`."""
    return torch.from_numpy(read_classes(path, class_map, size))


def read_mask(path: str | Path, threshold_jpeg: bool = False) -> tuple[Image.Image, str]:
    """Return a mask in mode L, P, RGB, or I for 16-bit grey, and the kind of file, for the report."""
    image = read_image(path, is_mask=True)
    if threshold_jpeg and image.format == "JPEG":
        return image.convert("L").point([0] * HALF + [255] * (256 - HALF)), f"JPEG cut at {HALF}"
    if image.mode == "F":
        raise UserError(f"The mask {path} holds floating-point values. Save it with whole numbers, as PNG.")
    kind = f"mode {image.mode}"
    if image.mode in ("L", "P", "RGB", "I"):
        return image, kind
    if image.mode in ("1", "LA", "La"):
        return image.convert("L"), kind
    return image.convert("I" if image.mode.startswith("I;") else "RGB"), kind


def value_codes(values: np.ndarray, image: Image.Image) -> np.ndarray:
    """Return the codes of pixel values of `image`: (...) for one channel, (..., 3) for RGB -> int64 (...)."""
    values = values.astype(np.int64)
    if image.mode == "P":
        palette = np.zeros((256, 3), dtype=np.int64)
        colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
        palette[: len(colours)] = colours
        values = palette[values]
    elif image.mode != "RGB":
        return values * GREY
    return values @ np.array([1 << 16, 1 << 8, 1])


def scan_file(path: str | Path, threshold_jpeg: bool) -> tuple[str, dict[int, tuple[int | None, int]]]:
    """Return the kind of a mask file, such as "mode P", and its codes: place in the palette, and number of pixels."""
    image, kind = read_mask(path, threshold_jpeg)
    counted = image.getcolors(MAX_VALUES)
    if counted is None:
        raise UserError(
            f"{path} holds more than {MAX_VALUES} values, so it is no mask of classes. Is it a photo, or was it "
            f"compressed or smoothed? Masks keep their values as PNG or GIF."
        )
    values = np.array([value for _, value in counted])
    places = [(value if image.mode == "P" else None, count) for count, value in counted]
    return kind, dict(zip(value_codes(values, image).tolist(), places, strict=True))


def scan_masks(
    paths: Sequence[str | Path],
    n_classes: int = 2,
    max_scan: int = 512,
    max_bad: int = 0,
    values: Sequence[int | str] | None = None,
    ignored: Sequence[int | str] | None = None,
) -> tuple[ClassMap, str]:
    """Find the distinct values of all masks and make them the classes 0 to K - 1, in ascending order, or the palette's.

    Above `max_scan` masks an evenly spaced sample is scanned, and only if it lacks a class, all of them. For two
    classes, masks that are stored as JPEG are cut at half, because JPEG blurs the values.

    Args:
        paths: all masks of the data set, so that the map does not depend on a split.
        n_classes: the most values that may occur; 1 and 2 both mean background and object.
        max_scan: how many masks to scan.
        max_bad: 0 refuses a mask that cannot be used. Above 0 all such masks are skipped, with a warning. Loading them
            raises again, and counts those that a run uses.
        values: the values in the order of the classes, such as those that a checkpoint was trained on; then no mask may
            hold another one, and not all of them need occur.
        ignored: values of pixels that count neither in the loss nor in the metrics, such as 255.

    Returns:
        The map, and a line for the log.

    Raises:
        UserError: there are more values than classes, or just one value in all masks, or a file that cannot be used.
    """
    allowed = max(n_classes, 2)
    cut = allowed == 2 and not ignored
    needed = allowed + len(ignored or ())  # values that tell all classes
    chosen = [paths[i * len(paths) // max_scan] for i in range(max_scan)] if len(paths) > max_scan else paths
    found, bad = scan_files(chosen, cut, max_bad)
    if len(chosen) < len(paths) and len(set().union(*(codes for _, codes in found.values()))) < needed:
        chosen, (found, bad) = paths, scan_files(paths, cut, max_bad)
    palette = shared_palette(found)
    left_out = tuple(code_of(value, palette) for value in ignored or ())
    files_with = Counter(code for _, codes in found.values() for code in codes if code not in left_out)
    codes = tuple(code for _, code in sorted(palette.items()) if code in files_with) or tuple(sorted(files_with))
    if values:
        codes = tuple(code_of(value, palette) for value in values)
    kinds = ", ".join(sorted({kind for kind, _ in found.values()}))
    if values:
        check_known(found, codes, n_classes, left_out)
    elif len(codes) > allowed:
        raise load("extras.file_advice:surplus_values", "n_classes")(found, files_with, n_classes)
    elif len(codes) < 2:
        raise UserError(f"All {len(paths):,} masks ({kinds}) hold one value, {codes_text(codes)}: nothing to segment.")
    scanned = f"{len(paths):,} files" if len(chosen) == len(paths) else f"{len(chosen):,} of {len(paths):,} files"
    classes = ", ".join(map(str, range(len(codes))))
    report = f"masks: {scanned} scanned, {kinds}, values {codes_text(codes, len(codes))} -> classes {classes}"
    report += load("extras.file_advice:shares_of_classes", "mask_values")(found, codes)
    if left_out:
        report += f", ignored {codes_text(left_out, len(left_out))}"
    if bad:
        names = shorten(list(map(str, bad)))
        report += f"; skipped {names}"
        logging.getLogger(__name__).warning(f"{len(bad):,} of {len(chosen):,} masks cannot be used: {names}")
    return ClassMap(codes, cut, left_out), report


def shared_palette(found: Mapping[str | Path, tuple[str, dict[int, tuple[int | None, int]]]]) -> dict[int, int]:
    """Return the code at each place of the palette that all scanned masks share; {} if there is none, or no colour."""
    pairs = {(place, code) for _, held in found.values() for code, (place, _) in held.items()}
    palette = dict(pairs)
    is_shared = None not in palette and len(pairs) == len(palette) == len(set(palette.values()))
    return palette if is_shared and any(code % GREY for code in palette.values()) else {}


def check_known(
    found: Mapping[str | Path, tuple[str, Iterable[int]]],
    codes: Sequence[int],
    n_classes: int,
    ignored: Sequence[int] = (),
) -> None:
    """Raise UserError when masks hold another value than those of the classes, or these are too many.

    Args:
        found: see `scan_files`.
        codes: of the classes, in their order.
        n_classes: see `scan_masks`.
        ignored: codes of no class, which masks may hold.
    """
    if len(codes) != len(set(codes)) or len(codes) > max(n_classes, 2):
        text = codes_text(codes, len(codes))
        raise UserError(f"--mask_values {text}: give different values, and at most as many as --n_classes {n_classes}.")
    for path, (_, held) in found.items():
        if unknown := sorted(set(held).difference(codes, ignored)):
            raise unknown_value(path, unknown[0], codes)


def scan_files(
    paths: Sequence[str | Path], threshold_jpeg: bool, max_bad: int
) -> tuple[dict[str | Path, tuple[str, dict[int, tuple[int | None, int]]]], list[str | Path]]:
    """Return what `scan_file` returns by path, and the paths of those that cannot be used, if `max_bad` is above 0."""
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        tasks = {path: pool.submit(scan_file, path, threshold_jpeg) for path in paths}
        errors = {path: error for path, task in tasks.items() if (error := task.exception())}
    for error in errors.values():
        if max_bad == 0 or len(errors) == len(tasks) or not isinstance(error, UserError):
            raise error
    return {path: task.result() for path, task in tasks.items() if path not in errors}, list(errors)


def code_of(value: int | str, palette: Mapping[int, int] | None = None) -> int:
    """Return the code of a colour such as '#ff8000', or of a number: a place in the palette, else a grey level.

    >>> hex(code_of(255)), hex(code_of("#ff8000"))
    ('0xffffff', '0xff8000')
    """
    if isinstance(value, str):
        return int(value[1:], 16)
    return (palette or {}).get(value, value * GREY)


def code_text(code: int) -> str:
    """Write a code as people know it: a grey level as a number, a colour as '#ff8000'."""
    return str(code // GREY) if code % GREY == 0 else f"#{code:06x}"


def codes_text(codes: Sequence[int], most: int = 8) -> str:
    texts = [code_text(code) for code in codes]
    return ", ".join(texts if len(texts) <= most else [*texts[: most - 1], "...", texts[-1]])
