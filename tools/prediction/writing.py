"""Write predictions: a table with a contact sheet, or masks and overlays."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.masks import code_of
from tools.prediction.files import FreeNames, Sample
from tools.prediction.predictor import Predictor, is_image, mask_of
from utils.draw import captioned_grid, contact_sheet
from utils.errors import UserError
from utils.image_file import read_pixels

NUM_IN_GRID = 36
NUM_IN_SHEET = 24  # rows
NUM_BEST = 3  # classes in a row of the table
SMALL = 480  # pixels of the longer side of a picture in the sheet
TINT = 0.4  # share of the colour of a class in its area of an overlay
CONTOUR = 400  # an overlay of so many pixels has a contour of one
COLOURS = ("#000000", "#e6194b", "#3cb44b", "#4363d8", "#ffe119", "#f58231", "#911eb4", "#42d4f4", "#f032e6",
           "#bfef45", "#fabed4", "#469990", "#dcbeff", "#9a6324", "#fffac8", "#800000", "#aaffc3")  # fmt: skip


class Table:
    """Writes rows to predictions.csv. The names in the first row are the header; what has no column is left out."""

    def __init__(self, directory: Path):
        path = directory / "predictions.csv"
        self.file = open(path, "w", newline="", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115 - see close
        self.writer: csv.DictWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        if self.writer is None:
            self.writer = csv.DictWriter(self.file, row, extrasaction="ignore")
            self.writer.writeheader()
        self.writer.writerow(row)

    def close(self) -> None:
        self.file.close()


class TableWriter:
    """Writes the classes or the values of samples, and a contact sheet of the first images."""

    def __init__(self, directory: Path, predictor: Predictor):
        self.directory = directory
        self.classes = predictor.classes
        self.table = Table(directory)
        self.pictures: list[Tensor] = []
        self.captions: list[str] = []

    def add(self, sample: Sample, outputs: dict[str, Tensor]) -> None:
        """Write a row on a sample, behind its own cells."""
        found, inputs, cells = sample.found, sample.inputs, sample.cells
        row = {"file": str(found.path)} | ({} if is_image(inputs) else {"name": sample.name})
        if "probabilities" in outputs:
            row |= self.best_classes(outputs["probabilities"])
        else:
            values = outputs["values"].flatten().tolist()
            names = ["value"] if len(values) == 1 else [f"value_{number}" for number in range(1, len(values) + 1)]
            row |= {name: f"{value:.6g}" for name, value in zip(names, values, strict=True)}
        self.table.add({**cells, **{f"predicted_{key}" if key in cells else key: value for key, value in row.items()}})
        if is_image(inputs) and len(self.pictures) < NUM_IN_GRID:
            self.pictures.append(inputs)
            said = f"{row['class']} {float(row['probability']):.0%}" if "class" in row else row.get("value", "")
            self.captions.append(f"{shortened(str(found.place))}\n{shortened(said)}")

    def best_classes(self, probabilities: Tensor) -> dict[str, str]:
        """Return the most probable classes, best first, as columns: class, probability, class_2, probability_2, ..."""
        best = probabilities.sort(descending=True, stable=True)
        columns = {}
        for place in range(min(NUM_BEST, len(probabilities))):
            end = f"_{place + 1}" if place else ""
            columns[f"class{end}"] = self.classes[int(best.indices[place])]
            columns[f"probability{end}"] = f"{float(best.values[place]):.4f}"
        return columns

    @property
    def written(self) -> list[str]:
        return ["predictions.csv", *(["contact_sheet.png"] if self.pictures else [])]

    def close(self) -> None:
        """Write the contact sheet, and close the table."""
        self.table.close()
        if self.pictures:
            path = self.directory / "contact_sheet.png"
            captioned_grid(self.pictures, self.captions, max_images=NUM_IN_GRID, path=path)


class MaskWriter:
    """Writes a mask and an overlay of each image, at the image's own size and upright, and a table on them."""

    written = ["predictions.csv", "masks/", "overlays/", "contact_sheet.png"]

    def __init__(self, directory: Path, predictor: Predictor):
        opt = predictor.evaluator.opt
        self.directory = directory
        self.white = (opt.data_args or {}).get("white")
        self.names = FreeNames()
        self.table = Table(directory)
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.captions: list[tuple[str, str]] = []
        num_classes = max(opt.n_classes, 2)
        self.values = list(getattr(opt, "mask_values", None) or range(num_classes))
        if len(self.values) > num_classes:
            raise UserError(f"--mask_values names {len(self.values)} values for a network of {num_classes} classes.")
        self.classes = getattr(opt, "class_names", None) or self.values
        self.colours = colours_of(self.values)

    def add(self, sample: Sample, outputs: dict[str, Tensor]) -> None:
        """Write the mask and the overlay of an image, and a row with the share of each class."""
        found = sample.found
        pixels = read_pixels(found.path, 3, None, self.white)  # (3, H, W), once more: the input may be smaller
        mask = mask_of(outputs["probabilities"], pixels.shape[1:], len(self.values)).numpy()  # (H, W)
        free = self.names.name(found.place.with_suffix(""))
        mask_path = Path("masks", free).with_name(f"{free.name}.png")
        overlay_path = Path("overlays", free).with_name(f"{free.name}.jpg")
        picture = overlay(pixels, mask, self.colours)
        for path in (mask_path, overlay_path):
            (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
        mask_image(mask, self.values).save(self.directory / mask_path)
        Image.fromarray(picture).save(self.directory / overlay_path, quality=90)
        shares = np.bincount(mask.ravel(), minlength=len(self.values)) / mask.size
        self.table.add(
            {
                "file": str(found.path),
                "mask": str(mask_path),
                "width": mask.shape[1],
                "height": mask.shape[0],
                **{f"share_{name}": f"{share:.4f}" for name, share in zip(self.classes, shares, strict=False)},
            }
        )
        if len(self.rows) < NUM_IN_SHEET:
            self.rows.append((small(pixels.transpose(1, 2, 0)), small(picture)))
            self.captions.append((shortened(str(found.place), 36), "prediction"))

    def close(self) -> None:
        """Write the contact sheet, and close the table."""
        self.table.close()
        if self.rows:
            contact_sheet(self.rows, self.captions, path=self.directory / "contact_sheet.png")


def mask_image(mask: np.ndarray, values: Sequence[int | str]) -> Image.Image:
    """Return classes (H, W) as an image in the values of the training masks: grey, of 16 bits above 255, or colours."""
    if any(isinstance(value, str) for value in values):
        codes = np.array([code_of(value) for value in values])
        colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.uint8)
        return Image.fromarray(colours[mask])
    return Image.fromarray(np.array(values, np.uint8 if max(values) < 256 else np.uint16)[mask])


def colours_of(values: Sequence[int | str]) -> np.ndarray:
    """Return a colour for each class, (K, 3): those of the masks if they are colours."""
    chosen = values if any(isinstance(value, str) for value in values) else COLOURS
    codes = [code_of(chosen[number % len(chosen)]) for number in range(len(values))]
    return np.array([[code >> 16, code >> 8 & 255, code & 255] for code in codes], np.float32)


def overlay(pixels: np.ndarray, mask: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return an image with the areas of the classes above 0 in their colours, and a contour around them.

    Args:
        pixels: uint8 (3, H, W).
        mask: int64 (H, W).
        colours: (K, 3), from 0 to 255.

    Returns:
        uint8 (H, W, 3).
    """
    levels = np.arange(256)[None, :, None]
    tinted = ((1 - TINT) * levels + TINT * colours[:, None]).round()  # (K, 256, 3): of each class and level
    tinted[0] = levels[0]
    picture = np.stack([tinted[..., c].astype(np.uint8)[mask, pixels[c]] for c in range(3)], axis=2)  # (H, W, 3)
    is_contour = contour(mask, round(max(mask.shape) / CONTOUR))
    picture[is_contour] = colours[mask[is_contour]]
    return picture


def contour(mask: np.ndarray, width: int) -> np.ndarray:
    """Return where pixels (H, W) of a class above 0 are at most `width`, at least 1, away from another class."""
    marked = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        first, second = np.moveaxis(mask, axis, 0)[:-1], np.moveaxis(mask, axis, 0)[1:]
        places = np.moveaxis(marked, axis, 0)  # a view
        places[:-1] |= first != second
        places[1:] |= first != second
    return grown(marked, max(width, 1) - 1) & (mask > 0)


def grown(marked: np.ndarray, by: int) -> np.ndarray:
    """Return the Booleans (H, W) that are true within a square of `by` pixels in each direction around a true one."""
    for axis in (0, 1):
        places = np.moveaxis(marked, axis, 0)
        reach = 0
        while reach < by:  # each shift doubles what the earlier ones have reached, also at a border
            shift = min(reach + 1, by - reach)
            wider = places.copy()
            wider[shift:] |= places[:-shift]
            wider[:-shift] |= places[shift:]
            places, reach = wider, reach + shift
        marked = np.moveaxis(places, 0, axis)
    return marked


def small(picture: np.ndarray) -> Tensor:
    """Return a picture (H, W, 3) of uint8 for a contact sheet, (3, h, w) in [0, 1]."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((SMALL, SMALL))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def shortened(text: str, length: int = 18) -> str:
    """Return a text that fits below a picture; of a long one, both ends.

    >>> shortened("IMG_20240131_123456.jpg")
    'IMG_2024...456.jpg'
    """
    half = (length - 3) // 2
    text = text.encode(errors="replace").decode()
    return text if len(text) <= length else f"{text[: length - 3 - half]}...{text[-half:]}"
