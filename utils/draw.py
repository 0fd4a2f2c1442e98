"""Draw pictures of predictions."""

import math
from collections.abc import Sequence
from pathlib import Path

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
        images: N pictures (C, H, W), C is 1 or 3, values 0 to 1.
        captions: N texts.
        marked: N Booleans; marked captions are red.
        max_images: draw at most this many.
        path: also save the picture here.

    Returns:
        The picture, (3, H', W') uint8.
    """
    images = images[:max_images]
    columns = max(1, math.ceil(math.sqrt(len(images))))
    texts = [caption.replace(", ", ",\n") for caption in captions]
    colours = [MARKED if is_marked else BLACK for is_marked in marked or [False] * len(images)]
    cells = list(zip(map(to_pixels, images), texts, colours, strict=False))
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    return draw_cells(rows, GRID_WIDTH, path)


def contact_sheet(
    rows: Sequence[Sequence[torch.Tensor]], captions: Sequence[Sequence[str]], path: str | Path | None = None
) -> torch.Tensor:
    """Draw rows of pictures side by side, a caption above each.

    Args:
        rows: each a sequence of pictures (C, H, W), C is 1 or 3, values 0 to 1.
        captions: a text for each picture.
        path: also save the sheet here.

    Returns:
        The sheet, (3, H', W') uint8.
    """
    cells = [
        [(to_pixels(picture), text, BLACK) for picture, text in zip(row, texts, strict=True)]
        for row, texts in zip(rows, captions, strict=True)
    ]
    return draw_cells(cells, SHEET_WIDTH, path)


def draw_cells(
    rows: Sequence[Sequence[tuple[np.ndarray, str, str]]], width: int, path: str | Path | None = None
) -> torch.Tensor:
    """Draw pictures in rows, a caption above each. Pillow does it in milliseconds; matplotlib takes half a second.

    Args:
        rows: of cells: pixels (H, W, 3) uint8, a caption of one or more lines, and its colour.
        width: of a picture in pixels. Small pictures are enlarged without smoothing.
        path: also save the drawing here.

    Returns:
        The drawing, (3, H', W') uint8.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT_SIZE)
    heights = []  # of each row: pixels of its captions, and of its tallest picture
    for row in rows:
        lines = max((text.count("\n") + 1 for _, text, _ in row), default=1)
        tallest = max((max(1, round(width * pixels.shape[0] / pixels.shape[1])) for pixels, _, _ in row), default=width)
        heights.append((lines * LINE_HEIGHT + MARGIN, tallest + MARGIN))
    num_columns = max(map(len, rows), default=1)
    size = num_columns * (width + MARGIN) + MARGIN, sum(map(sum, heights)) + MARGIN
    sheet = Image.new("RGB", size, "white")
    draw, top = ImageDraw.Draw(sheet), MARGIN
    for row, (text_height, picture_height) in zip(rows, heights, strict=True):
        for column, (pixels, text, colour) in enumerate(row):
            left = MARGIN + column * (width + MARGIN)
            middle, baseline = left + width / 2, top + text_height - MARGIN / 2
            draw.multiline_text((middle, baseline), text, colour, font, anchor="md", align="center", spacing=2)
            picture = Image.fromarray(pixels)
            how = Image.Resampling.NEAREST if picture.width < width else Image.Resampling.BOX
            picture = picture.resize((width, max(1, round(width * picture.height / picture.width))), how)
            sheet.paste(picture, (left, top + text_height))
        top += text_height + picture_height
    if path is not None:
        sheet.save(path)
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)


def to_pixels(picture: torch.Tensor) -> np.ndarray:
    """Convert a picture (1 or 3, H, W), values 0 to 1, to (H, W, 3) uint8."""
    picture = picture.detach().float().cpu().clamp(0, 1).expand(3, -1, -1)
    return (picture * 255).round().byte().permute(1, 2, 0).numpy()


def save_picture(picture: torch.Tensor, path: str | Path) -> None:
    """Save one picture (1 or 3, H, W), values 0 to 1, at its own size; one channel as grey."""
    from PIL import Image

    pixels = to_pixels(picture)
    Image.fromarray(pixels if len(picture) == 3 else pixels[..., 0].copy()).save(path)


def save_confusion_matrix(matrix: torch.Tensor, names: Sequence[str], path: str | Path) -> None:
    """Save a confusion matrix (C, C), rows actual and columns predicted, coloured by the share of the row."""
    counts = matrix.cpu().numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 0.62 * len(counts) + 1.8
    figure = new_figure(size, size)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(counts))
    names = names if len(names) == len(counts) else [str(i) for i in ticks]
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.set_yticks(ticks, names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    for row in ticks:
        for column in ticks:
            if counts[row, column]:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=colour)
    render(figure, path)


def new_figure(width: float, height: float):
    """A matplotlib figure of `width` x `height` inches that needs no display and touches no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def render(figure, path: str | Path | None = None) -> torch.Tensor:
    """Draw a figure, save it if `path` is given, and return it as a picture, (3, H, W) uint8."""
    if path is not None:
        figure.savefig(path)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # (H, W, 3)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
