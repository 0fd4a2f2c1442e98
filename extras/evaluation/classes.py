"""Report the evaluation of a classifier: predictions, the confusion matrix, mistakes."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from data.loader import EvalLoader
from extras.confusion_matrix import save_confusion_matrix
from utils.batch import cut, move_to
from utils.draw import captioned_grid

NUM_PRINTED = 50
NUM_MISTAKES = 36


def report_classes(evaluator: Any, loader: EvalLoader) -> None:
    """Print the first predictions and the matrix; save the matrix and the worst mistakes as pictures."""
    log, names, columns = evaluator.logger.info, evaluator.classes, evaluator.table.columns
    first = columns["counts"].nonzero()[:NUM_PRINTED, 0]
    for predicted, actual in torch.stack([columns["prediction"], columns["target"]], dim=1)[first].tolist():
        log(f'Predicted: "{names[predicted]}", Actual: "{names[actual]}"')
    confusion = evaluator.meters["confusion"]
    matrix = confusion.compute()  # (10, 10): rows actual, columns predicted
    log("Accuracy per class, and the confusion matrix (rows: actual, columns: predicted in the same order)")
    shares = confusion.per_class_accuracy().tolist()
    for name, share, row in zip(names, shares, matrix.tolist(), strict=True):
        log(f"  {name:<12} {share:6.1%}  " + " ".join(f"{count:5d}" for count in row))
    if evaluator.opt.viz:
        save_confusion_matrix(matrix, names, evaluator.output_dir / "confusion_matrix.png")
        path = evaluator.output_dir / "mistakes.png"
        save_mistakes(evaluator, loader, path)
        mistakes = f", {path}" if path.exists() else ""
        log(f"Pictures: {evaluator.output_dir / 'confusion_matrix.png'}{mistakes}")


def save_mistakes(evaluator: Any, loader: EvalLoader, path: Any) -> None:
    """Save the wrong predictions with the largest losses, the worst first; nothing if the inputs are no images."""
    table = evaluator.table
    columns = table.columns
    wrong = columns["counts"] & (columns["prediction"] != columns["target"])
    order = columns["loss"].nan_to_num(-1).masked_fill(~wrong, -1).argsort(descending=True, stable=True)
    rows = order[: min(NUM_MISTAKES, int(wrong.sum()))].tolist()
    inputs = dict(samples_at(loader, [table.indices[row] for row in rows]))
    pictures, captions = [], []
    for row in rows:
        image = inputs[table.indices[row]][0]
        if getattr(image, "ndim", 0) == 3:
            pictures.append(image)
            captions.append(evaluator.caption(int(columns["prediction"][row]), int(columns["target"][row])))
    if pictures or not rows:
        captioned_grid(pictures, captions, max_images=NUM_MISTAKES, path=path)


def samples_at(loader: EvalLoader, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yield some samples of a loader as they were evaluated, each with its index, in the order of the data."""
    wanted = set(indices)
    for batch in loader.batches():
        places = {index: place for place, index in enumerate(batch.loaded) if index in wanted}
        for index, place in places.items():
            one = cut(batch.data, place, place + 1, batch.num_samples)
            yield index, [part[0] for part in move_to(one, "cpu")]
        wanted -= places.keys()
        if not wanted:
            return
