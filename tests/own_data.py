"""Make data sets that the repository does not hold, as users bring them: odd files, real sizes, nothing tuned.

python -m tests.own_data DIRECTORY [--seed N]

    images/   three classes of pictures in a folder each, in the modes that cameras, scanners and editors write
    table/    patients.csv: numbers, a category, missing cells, several rows for each patient; a class and a number
    text/     messages.csv: short texts of unequal length in two classes, one of them rare
    masks/    pictures with coloured masks: a colour for each class, and one that is no class
    new/      files of the same kinds without labels, for predictions
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("disc", "stripes", "two squares")
COLOURS = {"background": (0, 0, 0), "disc": (255, 128, 0), "square": (0, 128, 255)}
IGNORED = (255, 255, 255)  # a seam between two objects, which belongs to no class


# ---- pictures --------------------------------------------------------------------------------------------------------
def grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the pixels of a picture of (height, width)."""
    return np.mgrid[: size[0], : size[1]]


def shape_of(kind: str, size: tuple[int, int], dice: np.random.Generator) -> np.ndarray:
    """Return where the thing of a class is in a picture, Booleans (H, W)."""
    y, x = grid(size)
    radius = min(size) * dice.uniform(0.15, 0.3)
    row, column = (dice.uniform(radius, length - radius) for length in size)
    if kind == "disc":
        return (y - row) ** 2 + (x - column) ** 2 < radius**2
    if kind == "stripes":
        return (y + dice.integers(0, 9)) // max(3, round(radius / 3)) % 2 == 0
    side = radius * 0.6
    first = (abs(y - row) < side) & (abs(x - column + radius) < side)
    return first | ((abs(y - row) < side) & (abs(x - column - radius) < side))


def picture(kind: str, dice: np.random.Generator) -> Image.Image:
    """Return a picture of a class, of 48 to 120 pixels a side, in colours with noise."""
    size = tuple(dice.integers(48, 120, 2).tolist())
    where = shape_of(kind, size, dice)[..., None]
    dark, bright = dice.integers(20, 90, 3), dice.integers(150, 240, 3)
    pixels = np.where(where, bright, dark) + dice.normal(0, 8, (*size, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def save_oddly(image: Image.Image, path: Path, number: int) -> Path:
    """Save a picture in one of the modes that are met in the wild, by its number; return the path."""
    kinds = ("jpg", "grey", "rgba", "cmyk", "sixteen", "turned", "palette", "jfif")
    kind = kinds[number % len(kinds)]
    if kind == "grey":
        image.convert("L").save(path := path.with_suffix(".png"))
    elif kind == "rgba":
        image.convert("RGBA").save(path := path.with_suffix(".PNG"))
    elif kind == "cmyk":
        image.convert("CMYK").save(path := path.with_suffix(".jpeg"), quality=95)
    elif kind == "sixteen":
        levels = np.asarray(image.convert("L")).astype(np.uint16) * 257
        Image.fromarray(levels).save(path := path.with_suffix(".tif"))
    elif kind == "turned":
        exif = Image.Exif()
        exif[274] = 6  # the orientation: turn by 90 degrees to see it upright
        image.transpose(Image.Transpose.ROTATE_90).save(path := path.with_suffix(".jpg"), exif=exif, quality=95)
    elif kind == "palette":
        image.quantize(64).save(path := path.with_suffix(".gif"))
    else:
        image.save(path := path.with_suffix(f".{kind}"), format="JPEG", quality=95)
    return path


def make_images(directory: Path, dice: np.random.Generator, num_each: int = 60) -> None:
    """Make the class folders; the names tell nothing."""
    for kind in CLASSES:
        (directory / kind).mkdir(parents=True)
        for number in range(num_each):
            save_oddly(picture(kind, dice), directory / kind / f"IMG {dice.integers(10**6):06d}_{number}", number)
    (directory / "disc" / "Thumbs.db").write_bytes(b"left by a file manager")
    (directory / ".DS_Store").write_bytes(b"left by another one")


def make_masks(directory: Path, dice: np.random.Generator, num: int = 40) -> None:
    """Make `train` and `train_masks`: pictures of a disc and a square, and masks with a colour for each class."""
    (directory / "train").mkdir(parents=True)
    (directory / "train_masks").mkdir()
    for number in range(num):
        size = tuple(dice.integers(64, 110, 2).tolist())
        mask = np.zeros((*size, 3), np.uint8)
        pixels = dice.integers(30, 80, 3) + np.zeros((*size, 3))
        for kind, name in (("disc", "disc"), ("two squares", "square")):
            where = shape_of(kind, size, dice)
            pixels[where] = dice.integers(120, 250, 3)
            mask[where] = COLOURS[name]
        mask[: dice.integers(0, 3)] = IGNORED
        pixels += dice.normal(0, 6, pixels.shape)
        name = f"scene{number // 2:02d}_{number % 2:02d}"  # two pictures of each scene
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(directory / "train" / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(directory / "train_masks" / f"{name}_mask.png")


# ---- tables and texts ------------------------------------------------------------------------------------------------
def write_csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def table_rows(dice: np.random.Generator, num_patients: int = 150) -> list[dict]:
    """Return rows with a few visits of each patient; risk is a class, pressure is a number."""
    rows = []
    for patient in range(num_patients):
        age, weight = dice.uniform(20, 90), dice.normal(75, 14)
        smokes = dice.random() < 0.3
        for _ in range(dice.integers(1, 5)):
            pulse = dice.normal(70, 9) + 8 * smokes
            pressure = 90 + 0.5 * age + 0.2 * weight + 9 * smokes + dice.normal(0, 4)
            rows.append({
                "patient": f"p{patient:03d}",
                "age": f"{age:.1f}",
                "weight": "" if dice.random() < 0.02 else f"{weight:.1f}",
                "pulse": f"{pulse:.0f}",
                "smoker": "yes" if smokes else "no",
                "pressure": f"{pressure:.1f}",
                "risk": "high" if pressure > 145 else "low",
            })
    return rows


def text_rows(dice: np.random.Generator, num: int = 400) -> list[dict]:
    """Return short messages, an eighth of them complaints."""
    subjects = ("the parcel", "my order", "the lamp", "Ihr Päckchen", "the blue chair", "delivery no. 7")
    good = ("arrived today", "works well", "looks as in the picture", "was easy to set up", "is just what I wanted")
    bad = ("is broken", "never came", "has a scratch", "stopped after a day", "was sent to a wrong address")
    fill = ("thanks", "as I said", "on Monday", "in the morning", "for my sister", "by the way")
    rows = []
    for _ in range(num):
        is_bad = dice.random() < 0.125
        words = [*dice.choice(fill, dice.integers(0, 5)), dice.choice(subjects), dice.choice(bad if is_bad else good)]
        rows.append({"message": ", ".join(words), "kind": "complaint" if is_bad else "other"})
    return rows


def make_all(directory: str | Path, seed: int = 0) -> Path:
    """Make all data sets below a directory, which must be new; return it."""
    directory = Path(directory)
    directory.mkdir(parents=True)
    dice = np.random.default_rng(seed)
    make_images(directory / "images", dice)
    make_masks(directory / "masks", dice)
    write_csv(directory / "table" / "patients.csv", table_rows(dice))
    write_csv(directory / "text" / "messages.csv", text_rows(dice))
    new = directory / "new"
    (new / "images").mkdir(parents=True)
    for number in range(8):
        save_oddly(picture(CLASSES[number % 3], dice), new / "images" / f"{CLASSES[number % 3]} {number}", number)
    make_masks(new / "masks", dice, num=4)
    unlabelled = [{key: value for key, value in row.items() if key != "risk"} for row in table_rows(dice, 10)]
    write_csv(new / "patients.csv", unlabelled)
    write_csv(new / "messages.csv", [{"message": row["message"]} for row in text_rows(dice, 10)])
    return directory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(make_all(given.directory, given.seed))
