"""Draw a confusion matrix (--viz)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


def save_confusion_matrix(matrix: torch.Tensor, names: Sequence[str], path: str | Path) -> None:
    """Save a confusion matrix (C, C), rows actual and columns predicted, coloured by the share of the row."""
    from matplotlib.figure import Figure  # it needs no display, and touches no global state

    counts = matrix.cpu().numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 0.62 * len(counts) + 1.8
    figure = Figure(figsize=(size, size), dpi=100, layout="constrained")
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
    figure.savefig(path)
