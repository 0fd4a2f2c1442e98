"""Evaluate a segmentation network: python eval_seg_on_carvana.py --model_path Results/Carvana/.../UNet_best_ckpt.pth"""

from options import answer_early

if __name__ == "__main__":
    answer_early(__file__)  # --help and a wrong option, before torch is imported

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from engine.metric_entry import build_metrics, ignored_by, metric_name
from engine.options.parser import (
    BoolAction,
    ListAction,
    OptionParser,
    file_path,
    list_of,
    mapping,
    mask_value,
    number,
    one_of,
)
from engine.registry import load, names, short_name
from eval import EvaluatorBase
from loss.terms import counter, loss_meters, update_losses
from utils.draw import contact_sheet
from utils.meter import predicted_classes


class EvaluatorSeg(EvaluatorBase):
    """Evaluate a segmentation network on Carvana. Options that are not given are those of the checkpoint."""

    task = "segmentation"

    @classmethod
    def add_options(cls, parser: OptionParser) -> None:
        add = parser.add_argument_group("segmentation").add_argument
        add("--patch_size", type=number(int, low=16, high=2**15), default=256, metavar="N",
            help="side of the square that images are resized to, in pixels")
        add("--crop", type=number(int, low=16, high=2**15), default=None, metavar="N",
            help="train on random squares of N pixels of the images at their own size, instead of resizing them")
        add("--mode", type=one_of(("direct", "padding")), default="direct", metavar="MODE",
            help="validation and test: direct resizes to --patch_size, padding keeps the image's own size")
        add("--metrics", type=list_of(metric_name("segmentation")), action=ListAction, nargs="+",
            default=["dice", "iou", "mean_image_dice"], metavar="NAME",
            help=f"metrics: {', '.join(names('metric', 'segmentation'))}; or MODULE:NAME, such as "
            "torchmetrics.classification:MulticlassJaccardIndex")
        add("--metric_args", type=mapping, default={}, metavar="JSON",
            help="further arguments of the metrics, a mapping for each, by its name")
        add("--ignored_values", type=list_of(mask_value), action=ListAction, nargs="+", default=None, metavar="VALUE",
            help="values of masks that are no class, such as 255: their pixels count in no loss and no metric")
        add("--mask_values", type=list_of(mask_value), action=ListAction, nargs="+", default=None, metavar="VALUE",
            help="the values of the masks in the order of their classes, grey levels or colours as #ff8000 (default: "
            "those of the checkpoint; without one, those found in the masks, ascending or in order of a palette)")
        add("--width", type=number(int, low=1, high=4096), default=None, metavar="N",
            help="channels of the first level (default: the paper's)")
        add("--up", type=one_of(("bilinear", "transposed")), default="bilinear", metavar="HOW",
            help="up-sampling: bilinear, or transposed convolution")
        add("--deep_supervision", action=BoolAction, default=False, help="UNet++: a loss at every depth")
        add("--cache", action=BoolAction, default=True,
            help="Carvana: decode each image once, and keep the pixels in a file for this run and later ones. Changes "
            "speed, not results. Not done for images of their own size (--mode padding), --debug and --limit_batches")
        add("--cache_dir", type=file_path, default=None, metavar="DIR",
            help="Carvana: where the decoded images are kept (default: .cache in --data_dir, or in ~/.cache/plainloop "
            "when that cannot be written)")
        add("--shard_cache_dir", type=file_path, default="./Dataset/shard_cache", metavar="DIR",
            help="CarvanaShards with a URL as --data_dir: where to keep the shards used last")
        add("--shard_cache_gb", type=number(float, above=0, high=10**6), default=10.0, metavar="GB",
            help="at most so much of them, in 10**9 bytes. Changes speed, not results")

    @classmethod
    def add_test_options(cls, parser: OptionParser) -> None:
        parser.add_argument_group("pictures").add_argument(
            "--n_snap", type=number(int, low=1), default=50, metavar="N", help="with --viz, save every N-th image"
        )

    @classmethod
    def eval_batch_size(cls, opt: Namespace, default: int = 64) -> int:
        is_own_size = opt.mode == "padding"  # images of different sizes make no batch
        return 1 if is_own_size else super().eval_batch_size(opt, default)

    def build_meters(self) -> dict[str, Any]:
        shared = {"num_classes": self.opt.n_classes, **ignored_by(self.criterion)}
        metrics = build_metrics(self.opt.metrics, self.opt.metric_args, **shared)
        return {**loss_meters(self.criterion), **metrics}

    def loss_counter(self) -> Callable[[Any], int | None] | None:
        return counter(self.criterion)

    def eval_step(self, batch: Any) -> None:
        images, masks = batch  # (N, C, H, W), (N, H, W)
        logits = self.predict(images)  # (N, n_classes, H, W)
        update_losses(self.meters, self.criterion(logits, masks), n=self.loss_count)
        self.record(logits, masks)
        for name in set(map(short_name, self.opt.metrics)):
            self.meters[name].update(logits, masks)

    def predict(self, images: Tensor) -> Tensor:
        """Return logits at the images' own size, padded in between to what the network divides, its `divisor`."""
        divisor = getattr(self.model, "divisor", 1)
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % divisor, 0, -height % divisor), mode="replicate")
        return self.model(padded)[..., :height, :width]

    def predict_step(self, inputs: Tensor) -> dict[str, Tensor]:
        logits = self.predict(inputs)  # (N, n_classes, H, W)
        probabilities = logits.softmax(dim=1) if logits.shape[1] > 1 else logits.sigmoid()
        return {"masks": predicted_classes(logits), "probabilities": probabilities}

    def read_samples(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        yield path.name, load("extras.image_input:read_for_masks", "mode")(path, self.opt)

    def row(self, image: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
        """Return an image with its masks (H, W) as pictures (1, H, W), from black, the background, to white."""
        white = max(self.opt.n_classes - 1, 1)
        return image, *(mask[None].float() / white for mask in masks)

    def draw(self, batch: Any) -> Tensor:
        images, masks = batch
        predicted = predicted_classes(self.predict(images))
        rows = list(map(self.row, images, masks, predicted))[:4]
        return contact_sheet(rows, [("origin", "mask", "prediction")] * len(rows))

    def report(self, loader: Iterable) -> None:
        """Save origin, mask and prediction of every --n_snap-th image, a sheet of them, and one of the worst images."""
        if self.opt.viz:
            load("extras.evaluation.masks:save_pictures", "viz")(self, loader)


if __name__ == "__main__":
    EvaluatorSeg.main()
