"""Report the evaluation of a classifier: predictions, the confusion matrix, mistakes."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from extras.confusion_matrix import save_confusion_matrix
from utils.batch import move_to
from utils.draw import captioned_grid

NUM_PRINTED = 50
NUM_MISTAKES = 36


def report_classes(evaluator: Any, loader: Iterable) -> None:
    """Print the first predictions and the matrix; save the matrix and the first mistakes as pictures."""
    log = evaluator.logger.info
    for _, predicted, actual in islice(predictions(evaluator, loader), NUM_PRINTED):
        log(f'Predicted: "{evaluator.classes[predicted]}", Actual: "{evaluator.classes[actual]}"')
    confusion = evaluator.meters["confusion"]
    matrix = confusion.compute()  # (10, 10): rows actual, columns predicted
    log("Accuracy per class, and the confusion matrix (rows: actual, columns: predicted in the same order)")
    shares = confusion.per_class_accuracy().tolist()
    for name, share, row in zip(evaluator.classes, shares, matrix.tolist(), strict=True):
        log(f"  {name:<12} {share:6.1%}  " + " ".join(f"{count:5d}" for count in row))
    if not evaluator.opt.viz:
        return
    save_confusion_matrix(matrix, evaluator.classes, evaluator.output_dir / "confusion_matrix.png")
    wrong = (entry for entry in predictions(evaluator, loader) if entry[1] != entry[2] and entry[0].ndim == 3)
    mistakes = list(islice(wrong, NUM_MISTAKES))
    captions = [evaluator.caption(predicted, actual) for _, predicted, actual in mistakes]
    path = evaluator.output_dir / "mistakes.png"
    captioned_grid([image for image, _, _ in mistakes], captions, max_images=NUM_MISTAKES, path=path)
    log(f"Pictures: {evaluator.output_dir / 'confusion_matrix.png'}, {path}")


def predictions(evaluator: Any, loader: Iterable) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Yield every image (1, 28, 28) that counts, with its predicted and its actual class."""
    with evaluator.inference(), evaluator.precision.autocast():
        for batch in loader:
            images, labels = move_to(batch, evaluator.device)
            predicted = evaluator.model(images).argmax(dim=1)  # (N,)
            which = evaluator.counts(labels)
            yield from zip(images[which].cpu(), predicted[which].tolist(), labels[which].tolist(), strict=True)
