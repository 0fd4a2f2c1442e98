"""Evaluate a FashionMNIST classifier: python eval_vanilla.py --model_path Results/Vanilla/.../Vanilla_best_ckpt.pth"""

from options import answer_early

if __name__ == "__main__":
    answer_early(__file__)  # --help and a wrong option, before torch is imported

from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any

import torch

from engine.metric_entry import build_metrics, ignored_by, metric_name
from engine.options.parser import ListAction, OptionParser, list_of, mapping, number
from engine.registry import load, names, short_name
from eval import EvaluatorBase
from loss.terms import counter, loss_meters, update_losses
from utils.draw import captioned_grid
from utils.metrics import ConfusionMatrix

SMALL = 32  # pixels of an image of which many are evaluated at once
NUM_DRAWN = 16  # after a validation


class EvaluatorVanilla(EvaluatorBase):
    """Evaluate a FashionMNIST classifier. Options that are not given are those of the checkpoint."""

    task = "classification"

    @classmethod
    def add_options(cls, parser: OptionParser) -> None:
        add = parser.add_argument_group("classification").add_argument
        add("--label_smoothing", type=number(float, low=0, high=1), default=0.1, metavar="X",
            help="share of each label that is spread evenly over all classes, in the loss CE")
        add("--image_size", type=number(int, low=8, high=4096), default=None, metavar="N",
            help="side of the square that image files are resized to, in pixels (default: their own, 64 at most)")
        add("--metrics", type=list_of(metric_name("classification")), action=ListAction, nargs="+",
            default=["accuracy"], metavar="NAME",
            help=f"metrics: {', '.join(names('metric', 'classification'))}, top2, top3, ...; or "
            "MODULE:NAME, such as torchmetrics.classification:MulticlassAUROC")
        add("--metric_args", type=mapping, default={}, metavar="JSON",
            help="further arguments of the metrics, a mapping for each, by its name")

    @classmethod
    def eval_batch_size(cls, opt: Namespace, default: int = 64) -> int:
        is_small = (getattr(opt, "image_size", None) or 0) <= SMALL
        return super().eval_batch_size(opt, 1000 if is_small else default)

    def build_meters(self) -> dict[str, Any]:
        shared = {"num_classes": self.opt.n_classes, **ignored_by(self.criterion)}
        metrics = build_metrics(self.opt.metrics, self.opt.metric_args, **shared)
        return {**loss_meters(self.criterion), **metrics, "confusion": ConfusionMatrix(**shared)}

    def loss_counter(self) -> Callable[[Any], int | None] | None:
        return counter(self.criterion)

    def eval_step(self, batch: Any) -> None:
        images, labels = batch  # (N, 1, 28, 28), (N,)
        logits = self.model(images)  # (N, 10)
        update_losses(self.meters, self.criterion(logits, labels), n=self.loss_count)
        self.record(logits, labels)
        for name in {*map(short_name, self.opt.metrics), "confusion"}:
            self.meters[name].update(logits, labels)

    def predict_step(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"probabilities": self.model(inputs).softmax(dim=1)}  # (N, n_classes)

    def counts(self, labels: torch.Tensor) -> torch.Tensor:
        """Return for each label whether it is a class, and not ignored."""
        labels, ignored = labels.long(), ignored_by(self.criterion).get("ignore_index", -1)
        return (labels >= 0) & (labels < self.opt.n_classes) & (labels != ignored)

    def draw(self, batch: Any) -> torch.Tensor | None:
        images, labels = batch
        if getattr(images, "ndim", 0) != 4 or not (counts := self.counts(labels)).any():
            return None  # no pictures (N, C, H, W), or none that counts
        images, labels = images[counts][:NUM_DRAWN], labels[counts][:NUM_DRAWN]
        predicted = self.model(images).argmax(dim=1)  # (N,)
        captions = [self.caption(p, a) for p, a in zip(predicted.tolist(), labels.tolist(), strict=True)]
        return captioned_grid(images, captions, marked=(predicted != labels).tolist(), max_images=NUM_DRAWN)

    def report(self, loader: Iterable) -> None:
        """Print the first predictions and the matrix; save the matrix and the first mistakes as pictures."""
        load("extras.evaluation.classes:report_classes", "viz")(self, loader)

    def caption(self, predicted: int, actual: int) -> str:
        """Return the caption of a picture: the class, or the mistake."""
        names = self.classes
        return names[actual] if predicted == actual else f"said {names[predicted]}, is {names[actual]}"


if __name__ == "__main__":
    EvaluatorVanilla.main()
