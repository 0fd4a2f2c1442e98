"""Draw pictures of predictions."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

BLACK, MARKED = "black", "#d62728"
FONT_SIZE, LINE_HEIGHT, MARGIN = 11, 14, 8  # pixels
GRID_WIDTH, SHEET_WIDTH = 112, 240  # of a picture, in pixels


def captioned_grid(
    images: torch.Tensor | Sequence[torch.Tensor],
    captions: Sequence[str],
    marked: Sequence[bool] | None = None,
    max_images: int = 16,
    path: str | Path | None = None,
) -> torch.Tensor:
    """Draw images in a grid, a caption above each.

    Args:
        images: N pictures (C, H, W), values 0 to 1, see `to_pixels`.
        captions: N texts.
        marked: N Booleans; marked captions are red.
        max_images: draw at most this many.
        path: also save the picture here.

    Returns:
        The picture, (3, H', W') uint8.
    """
    images = images[:max_images]
    texts = [caption.replace(", ", ",\n") for caption in captions]
    colours = [MARKED if is_marked else BLACK for is_marked in marked or [False] * len(images)]
    cells = list(zip(images, texts, colours, strict=False))
    columns = max(1, math.ceil(math.sqrt(len(cells))))
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    return draw_cells(rows, GRID_WIDTH, path)


def contact_sheet(
    rows: Sequence[Sequence[torch.Tensor]], captions: Sequence[Sequence[str]], path: str | Path | None = None
) -> torch.Tensor:
    """Draw rows of pictures side by side, a caption above each.

    Args:
        rows: each a sequence of pictures (C, H, W), values 0 to 1, see `to_pixels`.
        captions: a text for each picture.
        path: also save the sheet here.

    Returns:
        The sheet, (3, H', W') uint8.
    """
    cells = [
        [(picture, text, BLACK) for picture, text in zip(row, texts, strict=True)]
        for row, texts in zip(rows, captions, strict=True)
    ]
    return draw_cells(cells, SHEET_WIDTH, path)


def draw_cells(
    rows: Sequence[Sequence[tuple[torch.Tensor, str, str]]], width: int, path: str | Path | None = None
) -> torch.Tensor:
    """Draw pictures in rows, a caption above each. Pillow does it in milliseconds; matplotlib takes half a second.

    Args:
        rows: of cells: a picture (C, H, W), a caption of one or more lines, and its colour.
        width: of a picture in pixels.
        path: also save the drawing here.

    Returns:
        The drawing, (3, H', W') uint8.
    """
    from PIL import Image

    drawn = [[draw_cell(*cell, width) for cell in row] for row in rows]
    heights = [max(cell.height for cell in row) for row in drawn]
    num_columns = max(map(len, rows), default=1)
    sheet = Image.new("RGB", (MARGIN + num_columns * (width + MARGIN), MARGIN + sum(heights)), "white")
    for number, row in enumerate(drawn):
        bottom = MARGIN + sum(heights[: number + 1])
        for column, cell in enumerate(row):
            sheet.paste(cell, (MARGIN + column * (width + MARGIN), bottom - cell.height))
    if path is not None:
        sheet.save(path)
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)


def draw_cell(picture: torch.Tensor, caption: str, colour: str, width: int) -> Any:
    """Return a Pillow image of a picture below its caption. A small picture is enlarged without smoothing."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(to_pixels(picture))
    how = Image.Resampling.NEAREST if image.width < width else Image.Resampling.BOX
    image = image.resize((width, max(1, round(width * image.height / image.width))), how)
    text_height = (caption.count("\n") + 1) * LINE_HEIGHT + MARGIN
    cell = Image.new("RGB", (width, text_height + image.height + MARGIN), "white")
    place = width / 2, text_height - MARGIN / 2  # the middle of the last line
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(cell).multiline_text(place, caption, colour, font, anchor="md", align="center", spacing=2)
    cell.paste(image, (0, text_height))
    return cell


def to_pixels(picture: torch.Tensor) -> np.ndarray:
    """Convert a picture (C, H, W), values 0 to 1, to (H, W, 3) uint8: its first 3 channels, or of fewer, the first."""
    picture = picture[: 3 if len(picture) >= 3 else 1].detach().float().cpu().clamp(0, 1).expand(3, -1, -1)
    return (picture * 255).round().byte().permute(1, 2, 0).numpy()


def save_picture(picture: torch.Tensor, path: str | Path) -> None:
    """Save one picture, see `to_pixels`, at its own size; one channel as grey."""
    from PIL import Image

    pixels = to_pixels(picture)
    Image.fromarray(pixels if len(picture) >= 3 else pixels[..., 0].copy()).save(path)
