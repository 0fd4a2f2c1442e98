"""Draw samples of the data as a network gets them, with their classes or masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.draw import BLACK, GRID_WIDTH, draw_cells

COLUMNS = 8
MOST_LETTERS = 17  # of a line above a picture
RGB = (
    "000000", "ff7f0e", "1f77b4", "2ca02c", "d62728", "9467bd", "e377c2", "bcbd22", "17becf", "8c564b", "7f7f7f",
)  # fmt: skip
# Of classes in masks, (11, 3); the first one is not drawn, and further ones begin again with the second.
COLOURS = torch.tensor([list(bytes.fromhex(text)) for text in RGB]) / 255
IGNORED = torch.tensor([1.0, 1.0, 1.0])
Cell = tuple[Tensor, str, str]


def is_picture(inputs: Any) -> bool:
    """Return whether a batch of inputs, or one of masks as images, can be drawn: (N, C, H, W)."""
    return isinstance(inputs, Tensor) and inputs.ndim == 4 and len(inputs) > 0


def sample_cells(inputs: Tensor, targets: Any, classes: Sequence[str], names: Sequence[str] = ()) -> list[Cell]:
    """Return a picture of each sample and the text above it.

    Args:
        inputs: (N, C, H, W) in [0, 1].
        targets: classes (N,), shares of the classes (N, K), numbers (N,), or masks (N, H, W); None for none.
        classes: their names.
        names: of the samples; none where they are not known.
    """
    cells = []
    for place, picture in enumerate(inputs):
        target = targets[place] if isinstance(targets, Tensor) and len(targets) == len(inputs) else None
        lines = [shortened(Path(str(names[place])).name)] if len(names) == len(inputs) else []
        if target is not None and target.ndim == 2 and target.shape == picture.shape[1:]:
            picture = with_mask(picture, target)
        elif target is not None:
            lines += map(shortened, caption(target, classes).split("\n"))
        cells.append((picture, "\n".join(lines), BLACK))
    return cells


def legend_cells(targets: Any, classes: Sequence[str]) -> list[Cell]:
    """Return a cell with the colour of each class in masks (N, H, W), and that of ignored pixels; else none."""
    if not isinstance(targets, Tensor) or targets.ndim != 3:
        return []
    found = targets.unique().tolist()
    named = [(COLOURS[colour_of(number)], classes[number]) for number in found if 0 <= number < len(classes)][:COLUMNS]
    if any(not 0 <= number < len(classes) for number in found):
        named.append((IGNORED * 0.9, "ignored: paler"))
    return [(colour[:, None, None].expand(3, 12, 40), shortened(name), BLACK) for colour, name in named]


def draw(cells: Sequence[Cell], legend: Sequence[Cell], path: str | Path) -> None:
    """Save pictures in rows of `COLUMNS`, the legend below."""
    rows = [cells[first : first + COLUMNS] for first in range(0, len(cells), COLUMNS)]
    draw_cells([*rows, *([legend] if legend else [])], GRID_WIDTH, path)


def with_mask(picture: Tensor, mask: Tensor) -> Tensor:
    """Return a picture (C, H, W) in [0, 1] with the classes of a mask (H, W) in half transparent colours, (3, H, W)."""
    picture = picture[: 3 if len(picture) >= 3 else 1].detach().float().cpu().expand(3, -1, -1)
    mask = mask.long().cpu()
    places = torch.where(mask > 0, (mask - 1) % (len(COLOURS) - 1) + 1, 0)
    colours = COLOURS[places]  # (H, W, 3)
    colours[mask < 0] = IGNORED
    alpha = (mask != 0).float() * 0.55
    return picture * (1 - alpha) + colours.permute(2, 0, 1) * alpha


def colour_of(number: int) -> int:
    """Return the place in `COLOURS` of a class."""
    return (number - 1) % (len(COLOURS) - 1) + 1 if number > 0 else 0


def caption(target: Tensor, classes: Sequence[str]) -> str:
    r"""Return the name of a class, two lines with shares where samples are mixed, or the numbers of a regression.

    >>> caption(torch.tensor(1), ["cat", "dog"]), caption(torch.tensor([0.25, 0.75]), ["cat", "dog"])
    ('dog', 'dog 0.75\ncat 0.25')
    """
    if target.ndim == 0 and not target.is_floating_point():
        number = int(target)
        return classes[number] if 0 <= number < len(classes) else f"ignored ({number})"
    if target.ndim == 1 and len(target) == len(classes) > 1:
        largest = target.argsort(descending=True)[:2].tolist()
        return "\n".join(f"{classes[number]} {target[number]:.2f}" for number in largest if target[number] > 0)
    return " ".join(f"{value:.4g}" for value in target.flatten()[:3].tolist())


def shortened(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 3]}..."
