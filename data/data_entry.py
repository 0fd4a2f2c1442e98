"""Select the data by --data_type.

To add a data set: write a function that returns {"train": ..., "val": ..., "test": ...} in a file of its own, and name
it here with the tasks that it is for. One of your own that stands elsewhere needs no line here, see docs/options.md.

Each part is a map-style `torch.utils.data.Dataset`. What else the template uses, if it is there:
    names       list of str, one per sample, for messages and file names; without, no leak can be noticed
    groups      list of str, one per sample: what must not be torn apart by a split (default: the names)
    is_random   False when a sample is always the same, so that no seed is set per sample (default: True, except for a
                plain TensorDataset)
    epoch_order(seed, epoch)   the order of an epoch, as a list of all indices (default: any sample may come anywhere)
    collate_fn  how samples become a batch; with `__getitems__`, whole batches are fetched at once, and with
                `get_batch(keys, seed)` also when samples are random; keys are pairs (epoch, index)
    in_memory   True when it can be loaded without a DataLoader, and held on the GPU, see data/memory.py
    cached()    the data set that samples are loaded from (default: this one); called before processes are started
    fingerprint()   a digest of the data, for provenance.json (default: of the names)
    summary, report, cache_note   lines for the log
"""

import hashlib
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import BatchSampler, Dataset

from data.choose_workers import choose_workers
from data.loader import WatchedLoader
from data.memory import MemoryLoader, MemoryUpdateLoader, is_in_memory, place_data
from data.sampler import UpdateLoader, may_be_random, seeded_dataset
from engine.checkpoints.file import load_file
from engine.devices.process_group import share_of
from engine.options.arguments import call, taken
from engine.options.plugins import choices, find_own
from utils.errors import UserError

DATA_TYPES = {
    "FashionMNISTSample": ("classification", "generation"),
    "FashionMNIST": ("classification", "generation"),
    "Carvana": ("segmentation",),
    "CarvanaShards": ("segmentation",),
    "MultiImage": ("segmentation",),
}
DEBUG_BATCHES = 3  # of each part, with --debug
PARTS = ("train", "val", "test")
OFFERED = ("data_dir", "n_channels", "n_classes", "patch_size", "mode", "augment")  # and the split, to data of your own
LOG_LINES = ("report", "summary", "cache_note")


def data_types(task: str | None) -> list[str]:
    """The names for --data_type that fit a task; all of them for None."""
    return choices("data", [name for name, tasks in DATA_TYPES.items() if task is None or task in tasks])


def build_datasets(opt: Namespace) -> dict[str, Dataset]:
    """Return the data sets of the three parts, disjoint and none of them empty. --data_args goes to what makes them."""
    split = {
        "train_val_sample_rate": opt.train_val_sample_rate,
        "test_sample_rate": opt.test_sample_rate,
        "val_split": opt.val_split,
        "split_seed": opt.split_seed,
    }
    if opt.data_type is None:
        raise UserError("--data_type is needed: MODULE:NAME, since no data is known for this task.")
    if make := find_own("data", opt.data_type):
        return build_own(make, {name: getattr(opt, name) for name in OFFERED if hasattr(opt, name)} | split, opt)
    build = partial(call, arguments=getattr(opt, "data_args", {}), option="--data_args")
    if opt.data_type == "Carvana":
        from data.Carvana import build_carvana

        return build(build_carvana, {
            "data_dir": opt.data_dir, "patch_size": opt.patch_size, "n_channels": opt.n_channels,
            "n_classes": opt.n_classes, "mode": opt.mode, "max_bad_samples": getattr(opt, "skip_bad_samples", 0),
            "augment": getattr(opt, "augment", False),  # an option of training only
            "cache": opt.cache and not (opt.debug or opt.limit_batches),  # a few batches are no reason to decode all
            "cache_dir": opt.cache_dir, **split,
        })  # fmt: skip
    if opt.data_type == "CarvanaShards":
        from extras.shards.dataset import build_carvana_shards

        if opt.cache_dir:
            raise UserError("--cache_dir is for --data_type Carvana; shards have --shard_cache_dir.")
        return build(build_carvana_shards, {
            "data_dir": opt.data_dir, "patch_size": opt.patch_size, "n_channels": opt.n_channels,
            "n_classes": opt.n_classes, "mode": opt.mode,
            "augment": getattr(opt, "augment", False), "window": getattr(opt, "shuffle_shards", 1),  # of training only
            "cache_dir": opt.shard_cache_dir, "cache_gb": opt.shard_cache_gb, **split,
        })  # fmt: skip
    if opt.data_type == "MultiImage":
        from extras.multi_image import build_multi_image

        return build(build_multi_image, {
            "data_dir": opt.data_dir, "patch_size": opt.patch_size, "n_channels": opt.n_channels,
            "n_classes": opt.n_classes, "mode": opt.mode, "max_bad_samples": getattr(opt, "skip_bad_samples", 0),
            "augment": getattr(opt, "augment", False), **split,
        })  # fmt: skip
    if opt.data_type in ("FashionMNIST", "FashionMNISTSample"):
        from data.FashionMNIST import build_fashion_mnist, build_fashion_mnist_sample

        if opt.n_channels != 1 or opt.n_classes < 10:
            raise UserError(
                f"{opt.data_type} has 1 channel and 10 classes, which --n_channels {opt.n_channels} --n_classes "
                f"{opt.n_classes} does not fit."
            )
        if opt.data_type == "FashionMNIST":
            return build(build_fashion_mnist, {"data_dir": opt.data_dir, **split})
        return build(build_fashion_mnist_sample, split)
    raise NotImplementedError(f"{opt.data_type} is named in DATA_TYPES, but build_datasets has no branch for it.")


def build_own(make: Callable, offered: dict[str, Any], opt: Namespace) -> dict[str, Dataset]:
    """Return the data sets of somebody's own.

    Args:
        make: a function that returns {"train": ..., "val": ..., "test": ...}; or the class of a data set, of which one
            is made for each part, named by its argument `part`.
        offered: the options that it gets if it names them among its parameters.
        opt: the options.
    """
    what, given = f"--data_type {opt.data_type}", taken(make, offered)
    if isinstance(make, type) and issubclass(make, Dataset):
        if not taken(make, {"part": None}):
            raise UserError(f"{what}: a data set's class must take `part`, which is one of {', '.join(PARTS)}.")
        datasets = {part: call(make, {**given, "part": part}, opt.data_args, "--data_args") for part in PARTS}
    else:
        datasets = call(make, given, opt.data_args, "--data_args")
    if not isinstance(datasets, dict) or set(datasets) != set(PARTS):
        raise UserError(f"{what}: it must return a dictionary of three data sets, {', '.join(PARTS)}.")
    for part, dataset in datasets.items():
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise UserError(f"{what}: the {part} part is no data set with __getitem__ and __len__: {type(dataset)}.")
        if not len(dataset):
            raise UserError(f"{what}: the {part} part is empty.")
    return {part: datasets[part] for part in PARTS}


def build_loaders(
    opt: Namespace, datasets: dict[str, Dataset], micro_batch_size: int, eval_batch_size: int, device: torch.device,
    share: tuple[int, int] = (0, 1),
) -> tuple[UpdateLoader | MemoryUpdateLoader, WatchedLoader | MemoryLoader]:  # fmt: skip
    """Return the loader of the training updates and that of the validation batches, for training on `device`.

    Args:
        share: (rank, number of processes), of the processes that train together.
    """
    dataset = to_load_from(datasets["train"])
    report = settle_workers(opt, dataset, micro_batch_size, "train")
    order = (opt.batch_size, micro_batch_size, opt.seed, opt.limit_batches)
    if loads_from_memory(opt, dataset):
        train_loader = MemoryUpdateLoader(place_data(dataset, opt.data_device, device), *order, share=share)
    else:
        train_loader = UpdateLoader(dataset, *order, **how_to_load(opt, device), device=device, share=share)
    train_loader.report = report
    return train_loader, build_loader_of_part(opt, datasets["val"], "val", eval_batch_size, device, share)


def build_loader_of_part(
    opt: Namespace, dataset: Dataset, part: str, batch_size: int, device: torch.device,
    share: tuple[int, int] = (0, 1),
) -> WatchedLoader | MemoryLoader:  # fmt: skip
    """Return the loader that evaluates a part of the data, or this process's share of it."""
    limit = DEBUG_BATCHES if opt.debug else opt.limit_batches
    dataset = to_load_from(dataset)
    report = settle_workers(opt, dataset, batch_size, part)
    if loads_from_memory(opt, dataset):
        loader = MemoryLoader(place_data(dataset, opt.data_device, device), batch_size, limit, share)
    else:
        how = how_to_load(opt, device)
        loader = build_eval_loader(dataset, batch_size, max_batches=limit, part=part, share=share, **how)
    loader.report = report
    return loader


def samples_at_once(opt: Namespace) -> int:
    """The size of a micro-batch: --micro_batch_size; all of the update without it, and while auto is not settled."""
    return opt.batch_size if opt.micro_batch_size in (None, "auto") else opt.micro_batch_size


def to_load_from(dataset: Dataset) -> Dataset:
    return dataset.cached() if hasattr(dataset, "cached") else dataset


def settle_workers(opt: Namespace, dataset: Dataset, batch_size: int, part: str) -> str:
    """Replace --num_workers auto by a number, which is then saved with the options, and return why this one."""
    if opt.num_workers != "auto":
        return ""
    safety = {"worker_timeout": opt.worker_timeout, "max_bad_samples": opt.skip_bad_samples, "part": part}
    opt.num_workers, report = choose_workers(dataset, batch_size, opt.seed or 0, **safety)
    return report


def loads_from_memory(opt: Namespace, dataset: Dataset) -> bool:
    """Whether a part is loaded without a DataLoader: when it can be, and no loading processes are asked for."""
    if is_in_memory(dataset) and opt.num_workers == 0:
        return True
    if opt.data_device == "cuda":
        why = "it is loaded by processes; add --num_workers 0" if is_in_memory(dataset) else "it is not held in memory"
        raise UserError(f"--data_device cuda does not fit this data: {why}. Or give --data_device auto.")
    return False


def how_to_load(opt: Namespace, device: torch.device) -> dict[str, Any]:
    return {
        "num_workers": opt.num_workers, "pin_memory": device.type == "cuda", "worker_timeout": opt.worker_timeout,
        "max_bad_samples": opt.skip_bad_samples,
    }  # fmt: skip


def build_eval_loader(
    dataset: Dataset,
    batch_size: int,
    num_workers: int = 0,
    max_batches: int | None = None,
    pin_memory: bool = False,
    worker_timeout: float = 300,
    max_bad_samples: int = 0,
    part: str = "",
    share: tuple[int, int] = (0, 1),
) -> WatchedLoader:
    """A loader for validation and test: in order, every sample once, the last batch as short as it comes."""
    num_samples = len(dataset) if max_batches is None else min(len(dataset), max_batches * batch_size)
    order: Sequence[Any] = range(*share_of(num_samples, *share))
    if is_random := may_be_random(dataset):
        order = [(0, index) for index in order]  # the same random choices at every evaluation
    loader = WatchedLoader(
        seeded_dataset(dataset, seed=0) if is_random else dataset,
        BatchSampler(order, batch_size, drop_last=False),
        collate_fn=getattr(dataset, "collate_fn", None),
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_timeout=worker_timeout,
        max_bad_samples=max_bad_samples,
        part=part,
    )
    loader.is_alone = share[1] == 1
    return loader


def sample_names(dataset: Dataset) -> list[str]:
    return list(getattr(dataset, "names", None) or map(str, range(len(dataset))))


def sample_groups(dataset: Dataset) -> list[str]:
    return list(getattr(dataset, "groups", None) or sample_names(dataset))


def fingerprint(dataset: Dataset) -> str:
    """A SHA-256 of the data: the data set's own (a method `fingerprint`), else of its samples' names."""
    if hasattr(dataset, "fingerprint"):
        return dataset.fingerprint()
    return hashlib.sha256("\n".join(sample_names(dataset)).encode()).hexdigest()


def describe(datasets: dict[str, Dataset]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The names of the samples of each part, and a fingerprint of each part, for the run's records."""
    names = {part: sample_names(dataset) for part, dataset in datasets.items()}
    return names, {part: fingerprint(dataset) for part, dataset in datasets.items()}


def data_notes(datasets: dict[str, Dataset], loader: Any = None) -> list[str]:
    """What the data sets and their loader have to say for the log, each line once."""
    notes = [getattr(source, name, "") for source in (*datasets.values(), loader) for name in LOG_LINES]
    return [note for note in dict.fromkeys(notes) if note]


def group_hashes(dataset: Dataset) -> torch.Tensor:
    """What a checkpoint remembers of the data it saw: a 64-bit hash per group, sorted, (G,) int64."""
    if not getattr(dataset, "names", None) and not getattr(dataset, "groups", None):
        return torch.tensor([], dtype=torch.int64)  # nothing to tell samples by, so nothing can be recognized
    digests = {hashlib.blake2b(str(group).encode(), digest_size=8).digest() for group in sample_groups(dataset)}
    numbers = sorted(int.from_bytes(digest, "little", signed=True) for digest in digests)
    return torch.tensor(numbers, dtype=torch.int64)


def seen_groups(datasets: dict[str, Dataset], pretrained: str | None = None) -> dict[str, torch.Tensor]:
    """The `group_hashes` of "train" and "val", with those that the weights in the file `pretrained` saw before."""
    seen = {part: group_hashes(datasets[part]) for part in ("train", "val")}
    content = load_file(pretrained) if pretrained else {}
    return unite(seen, content.get("groups", {}) if isinstance(content, dict) else {})


def unite(seen: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What has been seen in either of two, by part."""
    return {part: torch.cat([of_part, before[part]]).unique() if part in before else of_part
            for part, of_part in seen.items()}  # fmt: skip


def refuse_seen(dataset: Dataset, part: str, seen: dict[str, torch.Tensor]) -> None:
    """Raise UserError when a test would measure what was learned by heart.

    Args:
        dataset: what is to be evaluated.
        part: "test" must not meet training or validation data (which chose the best checkpoint); "val" no training
            data; "train" is asked for by name, so nothing is refused.
        seen: the `group_hashes` of the parts "train" and "val" that a checkpoint has seen.
    """
    hashes = group_hashes(dataset)
    for other in {"test": ("train", "val"), "val": ("train",), "train": ()}[part]:
        if common := int(torch.isin(hashes, seen[other]).sum()):
            raise UserError(
                f"{common} of the {len(hashes)} groups of the {part} part were in the {other} part of the checkpoint's "
                f"run, so the score would flatter.\nLeave the options of the data as they were trained with, or give "
                f"--allow_seen to evaluate all the same."
            )
