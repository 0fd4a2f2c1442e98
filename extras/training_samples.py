"""Choose, change and mix training samples: --sampler, --drop_last, --augment NAME, --mixup, --cutmix, --crop.

All that is random is a function of (seed, epoch, sample), or of (seed, epoch, batch) where samples are mixed. So no
number of loading processes changes a run, nor does a resume.
"""

import math
from argparse import Namespace
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from data.Carvana import CarvanaDataset
from data.sampler import may_be_random, sample_names
from engine.registry import load
from extras.class_weights import ignored_in, labels_of
from utils.errors import UserError
from utils.seed import mix


def training_samples(opt: Namespace, dataset: Dataset, micro_batch_size: int, num_processes: int) -> Dataset:
    """Return the data set that training loads from, in place of the training part.

    Args:
        opt: the options.
        dataset: the training part.
        micro_batch_size: samples in a batch.
        num_processes: that share an update.

    Raises:
        UserError: an option does not fit the data.
    """
    part = dataset
    if getattr(opt, "crop", None) and isinstance(dataset, CarvanaDataset):
        dataset = load("extras.crops:Crops", "crop")(dataset, opt.crop, opt.mode)
    dataset = dataset.open_cache() if hasattr(dataset, "open_cache") else dataset
    settings: dict[str, Any] = {}
    if isinstance(getattr(opt, "augment", None), str):
        settings["change"] = load("extras.augmentation:build_augmentation", "augment")(opt.augment)
    if getattr(opt, "mixup", None) or getattr(opt, "cutmix", None):
        build_mixing = load("extras.mixing:build_mixing", "mixup")
        settings["mix"] = build_mixing(opt, dataset, micro_batch_size, num_processes)
    if opt.sampler == "balanced":
        labels = classes_for_order(dataset, ignored_in(opt.loss_args))
        if left_out := int((labels < 0).sum()):
            note = f"--sampler balanced leaves out {left_out:,} samples, whose labels are no classes"
            earlier = getattr(part, "class_note", "")  # on --class_weights; or this one, if loaders are made again
            if note not in earlier:
                part.class_note = "; ".join(filter(None, (earlier, note)))
        settings["order"] = BalancedOrder(labels)
    if opt.drop_last:
        settings["batch_size"] = opt.batch_size
    return TrainingSamples(dataset, **settings) if settings else dataset


class TrainingSamples(Dataset):
    """The samples of a data set, some of them several times, changed and mixed.

    A sample that comes several times in an epoch has several indices, which differ by the size of the data set. So
    each time it is changed in another way.

    Args:
        source: the data set.
        change: a function of a sample.
        mix: a function of a collated batch.
        order: which samples an epoch has; None for each of them once.
        batch_size: an epoch ends with the last whole batch; None for all samples.

    Attributes:
        epoch_size: the samples of an epoch.
        num_distinct: the samples of the data set.
    """

    def __init__(
        self,
        source: Dataset,
        change: Callable[[Any], Any] | None = None,
        mix: Callable[[Any], Any] | None = None,
        order: "BalancedOrder | None" = None,
        batch_size: int | None = None,
    ):
        self.source = source
        self.change = change
        self.mix = mix
        self.order = order
        self.batch_size = batch_size
        self.size = self.num_distinct = len(source)
        self.num_times = order.num_times if order else 1
        self.epoch_size = order.epoch_size if order else self.size
        if batch_size is not None:
            self.epoch_size -= self.epoch_size % batch_size
            if not self.epoch_size:
                raise UserError(
                    f"--drop_last leaves no update: an epoch has {self.size:,} samples, fewer than --batch_size "
                    f"{batch_size}."
                )
        self.is_random = may_be_random(source) or change is not None
        self.names = Repeated(sample_names(source), self.num_times)
        self.in_memory = getattr(source, "in_memory", False) and change is mix is None
        if order is not None:
            self.epoch_order = order
        elif hasattr(source, "epoch_order"):
            self.epoch_order = source.epoch_order
        self.collate_fn = getattr(source, "collate_fn", None) or default_collate
        if change is None:
            for name, method in (("__getitems__", self.fetch), ("seeded_items", self.fetch_seeded)):
                if hasattr(source, name):
                    setattr(self, name, method)
        elif getattr(source, "in_memory", False):  # its own function takes whole batches
            self.collate_fn = default_collate
        if mix is not None:
            self.collate_fn = Mixed(self.collate_fn, mix)

    def __len__(self) -> int:
        return self.size * self.num_times

    def __getitem__(self, index: int) -> Any:
        sample = self.source[index % self.size]
        return sample if self.change is None else self.change(sample)

    def fetch(self, indices: Any) -> Any:
        """Return a whole batch of the source."""
        return self.source.__getitems__(self.in_source(indices))

    def fetch_seeded(self, indices: Sequence[int], epoch: int, seed: int) -> Any:
        """Return a whole batch of the source, whose samples are random."""
        return self.source.seeded_items(self.in_source(indices), epoch=epoch, seed=seed)

    def in_source(self, indices: Any) -> Any:
        """Return indices, a list or a tensor, as they are in the source."""
        return indices % self.size if isinstance(indices, Tensor) else [index % self.size for index in indices]

    # ---- of data in memory ---------------------------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        return self.source.device

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the samples take."""
        return self.source.num_bytes

    def to(self, device: torch.device | str) -> "TrainingSamples":
        """Return the same samples, held on `device`."""
        return TrainingSamples(self.source.to(device), order=self.order, batch_size=self.batch_size)


class Repeated(Sequence):
    """A sequence several times, one after the other, without a copy.

    >>> list(Repeated("ab", 2))
    ['a', 'b', 'a', 'b']
    """

    def __init__(self, once: Sequence[Any], num_times: int):
        self.once = once
        self.num_times = num_times

    def __len__(self) -> int:
        return len(self.once) * self.num_times

    def __getitem__(self, index: int) -> Any:
        return self.once[range(len(self))[index] % len(self.once)]


class Mixed:
    """A collate function whose batches are mixed; a class, so that loading processes can import it.

    Args:
        collate: makes a batch of samples.
        mix: a function of the batch.
    """

    def __init__(self, collate: Callable[[Any], Any], mix: Callable[[Any], Any]):
        self.collate = collate
        self.mix = mix

    def __call__(self, samples: Any) -> Any:
        return self.mix(self.collate(samples))


# ---- the balanced order ----------------------------------------------------------------------------------------------
class BalancedOrder:
    """The order of epochs with as many samples of each class: a function of (seed, epoch).

    An epoch has about as many samples as have a class. A rare class goes through all of its samples several times; of a
    frequent one, each epoch takes others.

    Args:
        labels: the class of each sample, (N,) int64; a sample with a negative one is left out.

    Attributes:
        epoch_size: the samples of an epoch, a multiple of the number of classes that occur.
        num_times: how often a sample comes at most.
    """

    def __init__(self, labels: Tensor):
        self.size = len(labels)
        classes = labels[labels >= 0]
        self.members = [(labels == label).nonzero().flatten() for label in classes.unique()]
        self.per_class = max(1, round(len(classes) / len(self.members)))
        self.epoch_size = self.per_class * len(self.members)
        self.num_times = max(math.ceil(self.per_class / len(members)) for members in self.members)

    def __call__(self, seed: int, epoch: int) -> Tensor:
        """Return the indices of an epoch, int64; one that comes the second time is larger by the number of samples."""
        generator = torch.Generator().manual_seed(mix(seed, epoch))
        indices = []
        for members in self.members:
            for time in range(math.ceil(self.per_class / len(members))):
                left = self.per_class - time * len(members)
                shuffled = members[torch.randperm(len(members), generator=generator)]
                indices.append(shuffled[:left] + time * self.size)
        together = torch.cat(indices)
        return together[torch.randperm(len(together), generator=generator)]


def classes_for_order(dataset: Dataset, ignored: Collection[int] = ()) -> Tensor:
    """Return the class of each sample, (N,) int64, negative where the loss leaves it out.

    Args:
        dataset: the training part.
        ignored: labels that the loss leaves out; it does so with negative ones, or refuses them.

    Raises:
        UserError: the data set does not tell the classes, has none, or has another order.
    """
    if hasattr(dataset, "epoch_order"):
        raise UserError("--sampler balanced does not fit: the data has an order of its own. Leave it out.")
    labels = labels_of(dataset)
    if labels is None:
        raise UserError(
            "--sampler balanced needs the class of each sample: let the data set have `targets`, a list of whole "
            "numbers."
        )
    labels = labels.where(~torch.isin(labels, torch.tensor([*ignored], dtype=torch.int64)), -1)
    if not (labels >= 0).any():
        raise UserError("--sampler balanced needs samples with a class: all labels of this data are left out.")
    return labels
