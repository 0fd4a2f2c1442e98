"""How fast an image file becomes a tensor: by extras/image_loader.py, and by Pillow; and how far the pixels are apart.

    python -m benchmarks.image_loading --write
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.carvana_loading import make_data
from benchmarks.harness import Benchmark, Case, Column, Mark, main
from engine.options.parser import OptionParser, file_path, number

SMALL = (640, 427)  # pixels of the smaller photos, as in many data sets
PHOTOS = 16  # that are loaded
PASSES = 2  # over all of them, that are timed
SIDES = (512, 256, 64)  # pixels that the large photos are shrunk to


def photos(opt: argparse.Namespace, is_large: bool) -> list[Path]:
    """Draw the photos, once for all runs: of 1918 x 1280 pixels, or the same ones made smaller."""
    large = sorted(Path(make_data(opt), "train").iterdir())[:PHOTOS]
    if is_large:
        return large
    directory = large[0].parent.parent / f"small_{SMALL[0]}x{SMALL[1]}"
    directory.mkdir(exist_ok=True)
    for path in large:
        if not (directory / path.name).exists():
            with Image.open(path) as image:
                image.resize(SMALL, Image.Resampling.LANCZOS).save(directory / path.name, quality=90)
    return [directory / path.name for path in large]


def by_pillow(path: Path, size: tuple[int, int] | None) -> torch.Tensor:
    """As one writes it by hand: open, convert, resize, and put the channels first, which moves nothing in memory."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        image = image if size is None else image.resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def by_loader(path: Path, size: tuple[int, int] | None, draft: bool = False) -> torch.Tensor:
    from extras.image_loader import load_pixels

    return load_pixels(path, 3, size, draft)


def load(
    opt: argparse.Namespace, read: Callable[..., torch.Tensor], is_large: bool = True, side: int | None = None
) -> dict[str, Any]:
    """Time passes over all photos from the second one on, on one thread; compare the pixels with Pillow's."""
    torch.set_num_threads(1)
    paths = photos(opt, is_large)
    size = None if side is None else (side, side)
    largest, total = 0, 0.0
    for path in paths:
        difference = (read(path, size).int() - by_pillow(path, size).int()).abs()
        largest, total = max(largest, int(difference.max())), total + float(difference.float().mean())
    num_passes = 1 if opt.quick else PASSES
    started = time.perf_counter()
    for path in paths * num_passes:
        read(path, size)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "milliseconds": 1000 * seconds / num_passes / len(paths),
        "largest": largest,
        "mean": total / len(paths),
    }


ABOUT = (
    "Drawn JPEG photos become uint8 tensors (3, H, W), on one thread, from the page cache of the files. **Pillow** "
    "opens, converts and resizes as one writes it by hand; **load_pixels** is extras/image_loader.py, through "
    "torchvision's `decode_jpeg`. "
)
COLUMNS = (
    Column("milliseconds", "ms per image", "{:.2f}"), Column("largest", "largest difference to Pillow", "{:.0f}"),
    Column("mean", "mean difference", "{:.3f}"),
)  # fmt: skip


def shrinking_case(side: int) -> Case:
    variants = {"Pillow": by_pillow, "load_pixels": by_loader, "load_pixels, draft": partial(by_loader, draft=True)}
    return Case(
        f"to_{side}",
        f"Loading a JPEG at {side} x {side} pixels",
        f"{ABOUT}Photos of 1918 x 1280 pixels. With **draft**, Pillow decodes them straight to 1/2, 1/4 or 1/8 of "
        "their size. The differences are in levels of 255.",
        {name: partial(load, read=read, side=side) for name, read in variants.items()},
        [
            Mark("Pillow / load_pixels", "Pillow", "load_pixels", "milliseconds", at_least=1.5),
            Mark("Pillow / load_pixels, draft", "Pillow", "load_pixels, draft", "milliseconds"),
            Mark("load_pixels / load_pixels, draft", "load_pixels", "load_pixels, draft", "milliseconds"),
        ],
        COLUMNS,
    )


def whole_case(name: str, is_large: bool, pixels: str) -> Case:
    variants = {"Pillow": by_pillow, "load_pixels": by_loader}
    return Case(
        name,
        f"Loading a JPEG of {pixels} pixels",
        f"{ABOUT}The differences are in levels of 255.",
        {variant: partial(load, read=read, is_large=is_large) for variant, read in variants.items()},
        [Mark("Pillow / load_pixels", "Pillow", "load_pixels", "milliseconds", at_least=1.5)],
        COLUMNS,
    )


def add_options(parser: OptionParser) -> None:
    parser.add_argument(
        "--data_dir",
        type=file_path,
        default=None,
        metavar="DIR",
        help="where to draw the photos (default: the directory for temporary files)",
    )
    parser.add_argument(
        "--cars",
        type=number(int, low=3, high=1000),
        default=3,
        metavar="N",
        help="cars to draw, with 16 views each (default: 3)",
    )


BENCHMARK = Benchmark(
    "image_loading",
    __doc__,
    [
        whole_case("large", True, "1918 x 1280"),
        whole_case("small", False, f"{SMALL[0]} x {SMALL[1]}"),
        *map(shrinking_case, SIDES),
    ],
    add_options,
)

if __name__ == "__main__":
    main(BENCHMARK)
