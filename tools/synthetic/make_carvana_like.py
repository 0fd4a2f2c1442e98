"""Make a synthetic data set in the layout of Carvana: cars on a turntable, and their exact masks.

    python -m tools.synthetic.make_carvana_like --data_dir DIR --cars 32 --views 16 --size 480x320

writes `DIR/train/<car>_<view>.jpg` and `DIR/train_masks/<car>_<view>_mask.gif`. A toy car (toy_car.py) turns
from view to view, and each view has its own scene and light. The scenes hold objects of the car's own colour, so
colour alone does not find the car.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from engine.options.parser import OptionParser, file_path, number
from tools.synthetic.toy_car import BODY, Camera, Canvas, Car, Painter, design_car, disc
from utils.errors import UserError, shown

CACHE = ".cache"  # made by a training, see extras/pixel_cache.py
LAYOUT = (("train", ".jpg"), ("train_masks", "_mask.gif"))


def gradient(top: np.ndarray, bottom: np.ndarray, width: int, height: int) -> Image.Image:
    share = np.linspace(0, 1, height)[:, None]  # (H, 1)
    rows = (1 - share) * top + share * bottom  # (H, 3)
    return Image.fromarray(np.clip(rows, 0, 255).astype(np.uint8)[:, None]).resize((width, height))


def upright(x: float, y: float, width: float, height: float, base: float = 0.0) -> np.ndarray:
    """The corners (4, 3) of an upright rectangle that faces the camera."""
    return np.array([(x, y, base), (x + width, y, base), (x + width, y, base + height), (x, y, base + height)])


def paint_scene(canvas: Canvas, paint: np.ndarray, rng: np.random.Generator) -> None:
    """Paint the wall, the floor, the turntable and clutter, nearly half of it in the car's own colour."""
    width, height = canvas.size
    wall = rng.uniform(4, 9)  # metres behind the car
    foot = int(np.clip(canvas.camera.project(np.array([[0, wall, 0]]))[0, 1], 1, height - 1))
    light, dark = rng.uniform(40, 70, 3) + rng.uniform(90, 165), np.full(3, rng.uniform(60, 150))
    canvas.image.paste(gradient(light * rng.uniform(0.7, 1.1), light, width, foot), (0, 0))
    canvas.image.paste(gradient(dark, dark * rng.uniform(0.8, 1.5), width, height - foot), (0, foot))
    own = paint * rng.uniform(0.6, 1.1, (10, 1))
    colours = np.concatenate([own, rng.uniform(30, 210, (12, 1)) + rng.uniform(-45, 45, (12, 3))])  # (22, 3)

    for _ in range(rng.integers(3, 9)):  # panels and windows on the wall
        panel = upright(rng.uniform(-7, 6), wall, rng.uniform(0.5, 3.0), rng.uniform(0.4, 2.0), rng.uniform(0.2, 2.2))
        canvas.polygon(panel, rng.choice(colours))
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=1)
    canvas.polygon(circle * 3.3, dark * 0.75)
    canvas.polygon(circle * 3.2, dark * rng.uniform(0.9, 1.3))
    for _ in range(rng.integers(2, 9)):  # stains and paint on the floor
        place = np.array([rng.uniform(-4, 4), rng.uniform(-3.2, 3.2), 0])
        canvas.polygon(place + circle * rng.uniform(0.1, 0.8, 3), rng.choice(colours))
    paint_clutter(canvas, wall, colours, rng)


def paint_clutter(canvas: Canvas, wall: float, colours: np.ndarray, rng: np.random.Generator) -> None:
    """Stand crates, posts and tyres on the floor between the turntable and the wall, the far ones first."""
    for y in sorted(rng.uniform(3.4, wall, rng.integers(4, 12)), reverse=True):
        x, kind, colour = rng.uniform(-7, 7), rng.choice(["crate", "post", "tyre"]), rng.choice(colours)
        if kind == "crate":
            front = upright(x, y, rng.uniform(0.5, 1.8), rng.uniform(0.5, 1.6))
            lid = np.concatenate([front[2:], front[3:1:-1] + np.array([0, 0.6, 0])])
            canvas.polygon(front, colour)
            canvas.polygon(lid, colour * 1.2)
        elif kind == "post":
            canvas.polygon(upright(x, y, rng.uniform(0.06, 0.25), rng.uniform(1.2, 4.0)), colour)
        else:
            radius = rng.uniform(0.25, 0.45)
            canvas.polygon(disc((x, y, radius), radius), (32, 32, 34))
            canvas.polygon(disc((x, y, radius), 0.6 * radius), colour)


def develop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Soften the edges as a lens does, then add uneven light and the noise of a sensor."""
    width, height = image.size
    image = image.filter(ImageFilter.GaussianBlur(0.4 + width / 3000))
    field = Image.fromarray(rng.uniform(0.8, 1.15, (4, 6)).astype(np.float32))
    field = field.resize(image.size, Image.Resampling.BICUBIC)
    tile = rng.normal(0, rng.uniform(1.5, 5), (256, 256)).astype(np.float32)
    noise = np.tile(tile, (height // 256 + 1, width // 256 + 1))[:height, :width]  # repeated: noise is slow to draw
    pixels = np.asarray(image, dtype=np.float32)  # (H, W, 3)
    pixels = pixels * np.asarray(field)[:, :, None] + noise[:, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def render_view(
    car: Car, angle: float, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """Return the image (RGB) and the parts (L: 0 background, then BODY, GLASS, WHEEL) of one view.

    Args:
        car: see `design_car`.
        angle: how far the turntable has turned, in radians.
        size: width and height in pixels.
        rng: draws all that differs between the views of a car.
    """
    width, height = size
    distance = rng.uniform(7.0, 8.5)
    focal = rng.uniform(0.60, 0.72) * min(width, 1.5 * height) * distance / 4.8
    eye_height = rng.uniform(1.3, 1.9)
    column = width * rng.uniform(0.46, 0.54)
    row = height * rng.uniform(0.52, 0.58) + focal * (0.75 - eye_height) / distance  # the car stands in the middle
    canvas = Canvas(size, Camera(focal, distance, eye_height, (column, row)))
    paint_scene(canvas, car.paint, rng)
    light = np.array([rng.uniform(-0.8, 0.8), rng.uniform(-0.8, -0.2), rng.uniform(0.5, 1.0)])
    Painter(canvas, car, angle + rng.uniform(-0.06, 0.06), light).paint()
    return develop(canvas.image, rng), canvas.parts


def encode_mask(parts: Image.Image, n_classes: int) -> Image.Image:
    """Turn parts into a palette image of classes, class 0 black and the last one white, greys between."""
    classes = np.asarray(parts)
    classes = np.where(classes < n_classes, classes, BODY).astype(np.uint8)  # other parts belong to the body
    mask = Image.fromarray(classes).convert("P")
    mask.putpalette([level * 255 // (n_classes - 1) for level in range(n_classes) for _ in range(3)])
    return mask


def check_arguments(cars: int, views: int, size: tuple[int, int], seed: int, n_classes: int) -> None:
    checks = (("--cars", cars, 1, 100_000), ("--views", views, 1, 99), ("--n_classes", n_classes, 2, 4))
    checks += (("--size", min(size), 32, 10_000), ("--size", max(size), 32, 10_000), ("--seed", seed, 0, 2**63 - 1))
    for option, value, least, most in checks:
        if not least <= value <= most:
            raise UserError(f"{option} {value} is out of range: give {least} to {most}.")


def make_carvana_like(
    data_dir: str | Path,
    cars: int,
    views: int = 16,
    size: tuple[int, int] = (1918, 1280),
    seed: int = 0,
    n_classes: int = 2,
) -> None:
    """Write `cars` x `views` images and masks. Each is a function of (seed, car, view), whatever else is made.

    Args:
        data_dir: a directory that is new, empty, or holds the same files of an earlier call, which are made again.
        cars: number of cars, from 1.
        views: number of views of a car, 1 to 99, evenly spaced around it.
        size: width and height in pixels, from 32.
        seed: from 0.
        n_classes: 2 for background and car; 3 adds the windows, 4 the wheels.

    Raises:
        UserError: a value out of range, a directory with other content, or one that cannot be written.
    """
    check_arguments(cars, views, size, seed, n_classes)
    data_dir = Path(data_dir)
    jobs = []
    for car in (design_car(seed, index) for index in range(cars)):
        jobs += [(car, view, f"{car.name}_{view:02d}") for view in range(1, views + 1)]
    expected = {Path(folder, name + end) for _, _, name in jobs for folder, end in LAYOUT}
    try:
        for path in sorted(data_dir.rglob("*")):
            inside = path.relative_to(data_dir)
            if path.is_file() and inside not in expected and inside.parts[0] != CACHE:
                raise UserError(f"--data_dir {data_dir} holds other files, such as {path}. Give a new directory.")
        for folder, _ in LAYOUT:
            (data_dir / folder).mkdir(parents=True, exist_ok=True)
        for index, (car, view, name) in enumerate(tqdm(jobs, desc="making views", unit="view", disable=None)):
            rng = np.random.default_rng([seed, index // views, view])
            image, parts = render_view(car, 2 * np.pi * (view - 1) / views, size, rng)
            image.save(data_dir / "train" / f"{name}.jpg", quality=90)
            encode_mask(parts, n_classes).save(data_dir / "train_masks" / f"{name}_mask.gif")
    except OSError as error:
        raise UserError(f"--data_dir {data_dir} cannot be written: {error}.") from error


def image_size(text: str) -> tuple[int, int]:
    """Read a size such as '1918x1280'."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and text.isascii()):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no size: give WIDTHxHEIGHT in pixels, such as 480x320")
    return int(width), int(height)


def main(arguments: list[str] | None = None) -> None:
    parser = OptionParser(prog="make_carvana_like", description="Make a synthetic data set in the layout of Carvana.")
    add, integer = parser.add_argument, number(int)
    add("--data_dir", type=file_path, required=True, help="where to write train/ and train_masks/")
    add("--cars", type=integer, required=True, help="number of cars")
    add("--views", type=integer, default=16, help="views of each car")
    add("--size", type=image_size, default=(1918, 1280), help="WIDTHxHEIGHT in pixels")
    add("--seed", type=integer, default=0, help="another seed makes other cars")
    add("--n_classes", type=integer, default=2, help="2: background, car; 3: and windows; 4: and wheels")
    opt = parser.parse_args(arguments)
    try:
        make_carvana_like(opt.data_dir, opt.cars, opt.views, opt.size, opt.seed, opt.n_classes)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
