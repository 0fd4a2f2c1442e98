"""Pictures of predictions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


def captioned_grid(
    images: torch.Tensor,
    captions: Sequence[str],
    marked: Sequence[bool] | None = None,
    max_images: int = 16,
    path: str | Path | None = None,
) -> torch.Tensor:
    """Draw images in a grid, a caption above each.

    Args:
        images: (N, C, H, W), C is 1 or 3, values 0 to 1.
        captions: N texts.
        marked: N booleans; the captions of the marked ones are red.
        max_images: draw so many at most.
        path: save the picture here, too.

    Returns:
        The picture, (3, H', W') uint8.
    """
    images = images[:max_images]
    columns = max(1, int(np.ceil(np.sqrt(len(images)))))
    rows = max(1, int(np.ceil(len(images) / columns)))
    figure = new_figure(1.6 * columns, 1.75 * rows)
    for place in range(rows * columns):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.axis("off")
        if place < len(images):
            axes.imshow(to_pixels(images[place]))
            colour = "tab:red" if marked is not None and marked[place] else "black"
            axes.set_title(captions[place].replace(", ", ",\n"), fontsize=7, color=colour, pad=2, parse_math=False)
    return render(figure, path)


def contact_sheet(
    rows: Sequence[Sequence[torch.Tensor]], captions: Sequence[Sequence[str]], path: str | Path | None = None
) -> torch.Tensor:
    """Draw rows of pictures side by side, a caption above each.

    Args:
        rows: each a sequence of pictures (C, H, W), C is 1 or 3, values 0 to 1.
        captions: a text for each picture.
        path: save the sheet here, too.

    Returns:
        The sheet, (3, H', W') uint8.
    """
    columns = len(rows[0])
    height = 2.6 * rows[0][0].shape[-2] / rows[0][0].shape[-1] + 0.3
    figure = new_figure(2.6 * columns, height * len(rows))
    for i, (row, texts) in enumerate(zip(rows, captions, strict=True)):
        for j, (picture, text) in enumerate(zip(row, texts, strict=True)):
            axes = figure.add_subplot(len(rows), columns, i * columns + j + 1)
            axes.axis("off")
            axes.imshow(to_pixels(picture))
            axes.set_title(text, fontsize=8, pad=3, parse_math=False)  # a file's name may have a $ in it
    return render(figure, path)


def to_pixels(picture: torch.Tensor) -> np.ndarray:
    """(1 or 3, H, W) with values 0 to 1 to (H, W, 3) uint8."""
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
