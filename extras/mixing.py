"""Mix the samples of training batches by the transforms of torchvision: --mixup A, --cutmix A.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; Yun et al., "CutMix", ICCV 2019.
"""

from argparse import Namespace
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from engine.options.parser import split_weight
from engine.registry import BUILT_INS, as_list
from extras.augmentation import one_thread
from extras.class_weights import labels_of
from utils.errors import UserError

SOFT = ("CE",)  # the losses of the template that take shares of classes


def build_mixing(opt: Namespace, dataset: Dataset, micro_batch_size: int, num_processes: int) -> "Mixing":
    """Return the function that mixes a batch; with --mixup and --cutmix, each batch draws one of them.

    Args:
        opt: the options.
        dataset: the training part.
        micro_batch_size: samples in a batch.
        num_processes: that share an update.

    Raises:
        UserError: the batches are pieces of an update, or the loss or the data takes no shares of classes.
    """
    name = "--mixup" if opt.mixup else "--cutmix"
    if micro_batch_size < opt.batch_size or opt.micro_batch_size == "auto" or num_processes > 1:
        raise UserError(
            f"{name} mixes the samples of a whole update, whose pieces would be mixed in another way: leave out "
            f"--micro_batch_size, and train with one process."
        )
    terms = [split_weight(term)[0] for term in as_list(opt.loss_type)]
    if hard := [term for term in terms if term in BUILT_INS["loss"] and term not in SOFT]:
        raise UserError(f"{name} needs a loss of shares of classes, which {hard[0]} is not: take --loss_type CE.")
    if "ignore_index" in str(opt.loss_args):
        raise UserError(f"{name} mixes labels, of which none can be ignored: leave out loss_args.ignore_index.")
    if labels_of(dataset) is None and is_other(dataset):
        raise UserError(f"{name} mixes images with one class each, as (image, label): this data has others.")
    from torchvision.transforms import v2  # here, as it takes half a second to import

    ways = []
    if opt.mixup:
        ways.append(v2.MixUp(alpha=opt.mixup, num_classes=opt.n_classes))
    if opt.cutmix:
        ways.append(v2.CutMix(alpha=opt.cutmix, num_classes=opt.n_classes))
    return Mixing(ways[0] if len(ways) == 1 else v2.RandomChoice(ways), name)


def is_other(dataset: Dataset) -> bool:
    """Return whether the first sample is no (input, whole number)."""
    sample = dataset[0]
    label = sample[1] if isinstance(sample, (tuple, list)) and len(sample) == 2 else None
    return not isinstance(label, int) and not (isinstance(label, Tensor) and label.ndim == 0)


class Mixing:
    """Mixes a batch (images, labels).

    Args:
        way: of torchvision.
        name: the option, for messages.
    """

    def __init__(self, way: Any, name: str):
        self.way = way
        self.name = name

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the images, mixed with others of the batch, and the shares of the classes (N, C) float32."""
        images, labels = batch
        if images.ndim != 4 or not images.is_floating_point() or labels.ndim != 1:
            raise UserError(
                f"{self.name} mixes images, float32 (N, C, H, W), with labels (N,): this data gives "
                f"{tuple(images.shape)} and {tuple(labels.shape)}."
            )
        with one_thread():
            return self.way(images, labels)
