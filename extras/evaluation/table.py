"""Collect the predictions of an evaluation as a program, a row for each sample: see `EvaluatorBase.record`."""

from typing import Any

import torch
from torch import Tensor, nn

from engine.metric_entry import ignored_by
from extras.evaluation.bins import Bins
from loss.terms import as_terms
from utils.meter import predicted_classes

MOST_CLASSES = 100  # of which all probabilities are kept


class Table:
    """The outputs of an evaluation and their targets, as columns with a row for each sample, on the CPU.

    Args:
        criterion: the loss, which is asked about each sample alone.

    Attributes:
        kind: "classes" for outputs (N, C) and whole targets (N,); "masks" for (N, C, H, W) and (N, H, W); "values" for
            two of one shape, (N,) or (N, K); "" before the first batch, or for anything else.
        columns: tensors by name. Always "loss" (N,), NaN where every target is ignored. Of classes "target",
            "prediction", "counts" (whether the target is a class), "probability" of the prediction, and "probabilities"
            (N, C) of at most `MOST_CLASSES`. Of masks "counts" (N, C, 3): in each image the pixels of a class in both,
            the predicted ones and the actual ones. Of values "target" and "prediction" (N, K).
        indices: of the samples of the rows, in their data set; known when all is evaluated.
        bins: of masks, how sure the network is of its pixels.
    """

    def __init__(self, criterion: nn.Module):
        self.criterion = criterion
        self.ignored = ignored_by(criterion).get("ignore_index")
        self.kind = ""
        self.rows: dict[str, list[Tensor]] = {}
        self.indices: list[int] = []
        self.bins: Bins | None = None

    def __len__(self) -> int:
        return sum(map(len, self.rows.get("loss", ())))

    @property
    def columns(self) -> dict[str, Tensor]:
        return {name: torch.cat(parts) for name, parts in self.rows.items()}

    def add(self, outputs: Any, targets: Any) -> None:
        """Add a batch, see `EvaluatorBase.record`."""
        self.kind = kind_of(outputs, targets)
        if not self.kind or not len(outputs):
            return
        rows = getattr(self, f"rows_of_{self.kind}")(outputs.detach(), targets)
        rows["loss"] = self.losses(outputs, targets)
        for name, value in rows.items():
            self.rows.setdefault(name, []).append(value.cpu())

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each sample alone, (N,)."""
        each = (self.criterion(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(outputs)))
        return torch.stack([as_terms(loss)["loss"].float() for loss in each])

    def is_counted(self, targets: Tensor, num_classes: int) -> Tensor:
        """Return which targets are of a class, and not left out by the loss."""
        counted = (targets >= 0) & (targets < num_classes)
        return counted if self.ignored is None else counted & (targets.long() != self.ignored)

    def rows_of_classes(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        probabilities = to_probabilities(logits)  # (N, C)
        prediction = predicted_classes(logits)  # (N,)
        rows = {
            "target": labels.long(), "prediction": prediction,
            "counts": self.is_counted(labels, probabilities.shape[1]),
            "probability": probabilities.gather(1, prediction[:, None])[:, 0],
        }  # fmt: skip
        return rows | ({"probabilities": probabilities} if probabilities.shape[1] <= MOST_CLASSES else {})

    def rows_of_masks(self, logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
        probabilities = to_probabilities(logits)  # (N, C, H, W)
        num_classes = probabilities.shape[1]
        counted = self.is_counted(masks, num_classes)  # (N, H, W)
        predicted = predicted_classes(logits)
        per_class = []
        for k in range(num_classes):
            is_predicted, is_actual = ((each == k) & counted for each in (predicted, masks))
            both = [(is_predicted & is_actual), is_predicted, is_actual]
            per_class.append(torch.stack([each.flatten(1).sum(dim=1) for each in both], dim=1))  # (N, 3)
        self.bins = self.bins or Bins(num_classes)
        self.bins.add(probabilities.movedim(1, -1)[counted], masks[counted])
        return {"counts": torch.stack(per_class, dim=1)}

    def rows_of_values(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"target": targets.float().view(len(targets), -1), "prediction": outputs.float().view(len(outputs), -1)}

    def merge(self, distributed: Any) -> None:
        """Append the rows of all processes in the order of their ranks, which is that of the samples."""
        of_processes = distributed.gather((self.kind, self.columns, self.bins))
        kinds = [kind for kind, columns, _ in of_processes if kind or columns]
        self.kind = kinds[0] if kinds and len(set(kinds)) == 1 else ""  # one may have had no sample
        self.rows = {}
        for _, columns, _ in of_processes:
            for name, value in columns.items():
                self.rows.setdefault(name, []).append(value)
        bins = [bins for _, _, bins in of_processes if bins]
        self.bins = Bins.sum(bins) if bins else None


def kind_of(outputs: Any, targets: Any) -> str:
    """Return which kind of rows outputs and targets make, see `Table`; "" for none.

    >>> kind_of(torch.rand(5, 3), torch.tensor([0, 2, 1, 0, 1])), kind_of(torch.rand(5), torch.rand(5))
    ('classes', 'values')
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or not outputs.is_floating_point():
        return ""
    is_whole = not targets.is_floating_point() and not targets.is_complex()
    if is_whole and outputs.ndim in (2, 4) and targets.shape == (outputs.shape[0], *outputs.shape[2:]):
        return "classes" if outputs.ndim == 2 else "masks"
    if targets.is_floating_point() and targets.shape == outputs.shape and outputs.ndim in (1, 2):
        return "values"
    return ""


def to_probabilities(logits: Tensor) -> Tensor:
    """Return probabilities (N, C, ...) of logits; one logit is that of class 1 of two, see `predicted_classes`."""
    logits = logits.float()
    if logits.shape[1] > 1:
        return logits.softmax(dim=1)
    of_yes = logits.sigmoid()
    return torch.cat([1 - of_yes, of_yes], dim=1)
