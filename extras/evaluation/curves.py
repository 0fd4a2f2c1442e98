"""Curves and calibration: numbers for results.json, and pictures."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extras.evaluation.bins import NUM_BINS, Bins
from extras.evaluation.table import Table

MOST_DRAWN = 10  # classes with a curve of their own in the picture
HAS_TORCHMETRICS = importlib.util.find_spec("torchmetrics") is not None


def bins_of(table: Table) -> Bins | None:
    """Return the counts of probabilities of a table; None if it has none, or no sample counts."""
    if table.kind == "masks":
        return table.bins
    columns = table.columns
    if "probabilities" not in columns or not columns["counts"].any():
        return None
    bins = Bins(columns["probabilities"].shape[1])
    bins.add(columns["probabilities"][columns["counts"]], columns["target"][columns["counts"]])
    return bins


def curves_of(table: Table, bins: Bins) -> dict[int, dict[str, Tensor]]:
    """Return the curves of each class against all others, see `Bins.curves`; of two classes, of the second one.

    Those of classes are exact, by torchmetrics; those of pixels are made of 4,000 thresholds, see `Bins`.
    """
    num_classes = len(bins.thresholds)
    classes = range(num_classes) if num_classes > 2 else [1]
    there = [k for k in classes if (bins.thresholds[k].sum(dim=0) > 0).all()]  # both some of the class, and others
    if table.kind == "masks":
        return {k: bins.curves(k) for k in there}
    from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc

    counts = table.columns["counts"]
    probabilities, targets = table.columns["probabilities"][counts].double(), table.columns["target"][counts]
    found = {}
    for k in there:
        fpr, tpr, _ = binary_roc(probabilities[:, k], (targets == k).long())
        precision, recall, _ = binary_precision_recall_curve(probabilities[:, k], (targets == k).long())
        # torchmetrics goes from the lowest threshold to the highest, and ends with a point that no threshold gives.
        found[k] = {"fpr": fpr, "tpr": tpr, "recall": recall[:-1].flip(0), "precision": precision[:-1].flip(0)}
    return found


def areas(curve: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the area below the ROC curve, and the average precision, both 0 to 1."""
    steps = curve["recall"].diff(prepend=torch.zeros(1, dtype=curve["recall"].dtype))
    auroc = torch.trapezoid(curve["tpr"], curve["fpr"]).item()
    return {"auroc": auroc, "average_precision": (steps * curve["precision"]).sum().item()}


def figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # it needs no display, and touches no global state

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def save_curves(curves: Mapping[int, Mapping[str, Tensor]], names: Sequence[str], path: Path) -> None:
    """Save both curves of the classes, of at most `MOST_DRAWN`: those with the least average precision."""
    found = {k: areas(curve) for k, curve in curves.items()}
    drawn = sorted(sorted(found, key=lambda k: found[k]["average_precision"])[:MOST_DRAWN])
    picture = figure(10, 4.6)
    left, right = picture.subplots(1, 2)
    for k in drawn:
        curve = curves[k]
        left.step(
            curve["recall"], curve["precision"], where="pre", label=f"{names[k]} {found[k]['average_precision']:.3f}"
        )
        right.plot(curve["fpr"], curve["tpr"], label=f"{names[k]} {found[k]['auroc']:.3f}")
    right.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    captions = (("recall", "precision", "average precision"), ("false positive rate", "true positive rate", "AUROC"))
    for axes, (x, y, title) in zip((left, right), captions, strict=True):
        axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(title=title, fontsize=8, title_fontsize=8)
    picture.savefig(path)


def save_calibration(bins: Bins, path: Path, unit: str) -> None:
    """Save how often the network is right, by how sure it is, and how many samples each bin has.

    Args:
        bins: the counts.
        path: of the picture.
        unit: what is counted, such as "samples".
    """
    counts, confidences, right = bins.calibration.unbind(dim=1)
    some = counts > 0
    centers = (torch.arange(NUM_BINS) + 0.5) / NUM_BINS
    picture = figure(5, 5.6)
    above, below = picture.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    above.bar(centers[some], (right / counts)[some], width=0.9 / NUM_BINS, color="#9ecae1", label="share that is right")
    style = {"markersize": 4, "color": "#08519c", "label": "at the mean confidence of the bin"}
    above.plot((confidences / counts)[some], (right / counts)[some], "o-", **style)
    above.set(ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    above.set_title(f"expected calibration error {bins.calibration_error():.4f}", fontsize=10)
    above.legend(fontsize=8, loc="upper left")
    below.bar(centers, counts / counts.sum(), width=0.9 / NUM_BINS, color="#9ecae1")
    below.set(xlabel="confidence: the probability of the prediction", ylabel=f"share of {unit}")
    picture.savefig(path)
