"""How fast Carvana's images are loaded: from the cache, and by Pillow; and how fast the cache is filled.

    python -m benchmarks.carvana_loading --write
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import MEMORY, Benchmark, Case, Column, Mark, main
from engine.options.parser import OptionParser, file_path, number

PATCH_SIZE = 256
BATCH_SIZE = 8
EPOCHS = {"Pillow each time": 1, "cache": 20}  # that are timed: so many that each takes a second or more


def make_data(opt: argparse.Namespace) -> str:
    """Draw the images, once for all runs; return their directory."""
    from tools.synthetic.make_carvana_like import make_carvana_like

    size, cars = ((96, 64), 3) if opt.quick else ((1918, 1280), opt.cars)
    directory = Path(opt.data_dir or Path(tempfile.gettempdir(), "plainloop_benchmark"), f"{cars}_{size[0]}x{size[1]}")
    if not (directory / "train_masks").exists() or len(list((directory / "train_masks").iterdir())) < 16 * cars:
        make_carvana_like(directory, cars=cars, views=16, size=size)
    return str(directory)


def build(opt: argparse.Namespace, **more: Any) -> Any:
    from data.Carvana import build_carvana

    shares = {"train_val_sample_rate": 1, "test_sample_rate": 1 / 3, "val_split": 16}
    return build_carvana(make_data(opt), patch_size=PATCH_SIZE, **shares, **more)["train"]


def load(opt: argparse.Namespace, variant: str, augment: bool) -> dict[str, Any]:
    """Time epochs of training data from the second one on, in the main process."""
    from data.loader import UpdateLoader

    dataset = build(opt, augment=augment, cache=variant == "cache").open_cache()
    loader = UpdateLoader(dataset, BATCH_SIZE)
    num_epochs = 1 if opt.quick else EPOCHS[variant]
    for _ in loader.updates(0):
        pass
    started = time.perf_counter()
    for epoch in range(1, 1 + num_epochs):
        for _ in loader.updates(epoch):
            pass
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "milliseconds": 1000 * seconds / num_epochs / len(dataset)}


def first_pass(opt: argparse.Namespace) -> dict[str, Any]:
    """Fill the cache on one core."""
    import extras.pixel_cache

    extras.pixel_cache.num_cores = lambda: 1
    with tempfile.TemporaryDirectory(dir=Path(make_data(opt)).parent) as directory:
        dataset = build(opt, cache_dir=directory)
        started = time.perf_counter()
        dataset.open_cache()
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "milliseconds": 1000 * seconds / len(dataset)}


def plain_pillow(opt: argparse.Namespace) -> dict[str, Any]:
    """Open and resize images and masks as one writes it by hand; nothing is kept."""
    dataset = build(opt, cache=False)
    started = time.perf_counter()
    for image_path, mask_path in dataset.pairs:
        image = np.asarray(Image.open(image_path).convert("RGB").resize((PATCH_SIZE, PATCH_SIZE)))
        mask = np.asarray(Image.open(mask_path).resize((PATCH_SIZE, PATCH_SIZE), Image.Resampling.NEAREST))
        assert image.shape[:2] == mask.shape
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "milliseconds": 1000 * seconds / len(dataset)}


def photos_alone(opt: argparse.Namespace, is_scaled: bool) -> dict[str, Any]:
    """Decode and resize the photos alone, plainly or as the first pass does."""
    from utils.image_file import read_pixels

    dataset = build(opt, cache=False)
    started = time.perf_counter()
    for image_path, _ in dataset.pairs:
        if is_scaled:
            read_pixels(image_path, 3, (PATCH_SIZE, PATCH_SIZE))
        else:
            np.asarray(Image.open(image_path).convert("RGB").resize((PATCH_SIZE, PATCH_SIZE)))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "milliseconds": 1000 * seconds / len(dataset)}


ABOUT = (
    f"Drawn images of 1918 x 1280 pixels and their masks, resized to {PATCH_SIZE} x {PATCH_SIZE}, in updates of "
    f"{BATCH_SIZE}, loaded in the main process. "
)
COLUMNS = (Column("seconds", "seconds"), Column("milliseconds", "ms per image", "{:.2f}"), MEMORY)


def loading_case(name: str, augment: bool, title: str) -> Case:
    return Case(
        name,
        title,
        ABOUT + "The first epoch is not counted: it fills the cache, and the page cache of the files.",
        {variant: lambda opt, variant=variant: load(opt, variant, augment) for variant in EPOCHS},
        [Mark("Pillow each time / cache", "Pillow each time", "cache", "milliseconds", at_least=20)],
        COLUMNS,
    )


def add_options(parser: OptionParser) -> None:
    parser.add_argument(
        "--data_dir",
        type=file_path,
        default=None,
        metavar="DIR",
        help="where to draw the images (default: the directory for temporary files)",
    )
    parser.add_argument(
        "--cars",
        type=number(int, low=3, high=1000),
        default=9,
        metavar="N",
        help="cars to draw, with 16 views each (default: 9)",
    )


BENCHMARK = Benchmark(
    "carvana_loading",
    __doc__,
    [
        loading_case("loading", False, "Loading Carvana from the second epoch on"),
        loading_case("augmented", True, "Loading Carvana from the second epoch on, with --augment"),
        Case(
            "first_pass",
            "Filling the cache, per core",
            ABOUT + "One thread fills the cache. Plain Pillow opens, converts and resizes each file, without the "
            "scaled decoding of JPEG, and keeps nothing.",
            {
                "plain Pillow": plain_pillow,
                "first pass": first_pass,
                "plain Pillow, photos alone": lambda opt: photos_alone(opt, False),
                "scaled decoding, photos alone": lambda opt: photos_alone(opt, True),
            },
            [
                Mark("plain Pillow / first pass", "plain Pillow", "first pass", "milliseconds", at_least=1.6),
                Mark(
                    "of it, the photos alone",
                    "plain Pillow, photos alone",
                    "scaled decoding, photos alone",
                    "milliseconds",
                ),
            ],
            COLUMNS,
        ),
    ],
    add_options,
)

if __name__ == "__main__":
    main(BENCHMARK)
