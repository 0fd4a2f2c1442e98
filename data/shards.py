"""The Carvana data set in shards: tar files in the layout of WebDataset, with an index (see data/make_shards.py).

The shards are cut by part, so that a run needs only those of its parts. Any sample can be read alone, by its place in
the index, so everything that holds for a data set of files holds here. Only the order of an epoch differs: it mixes
the samples of a few shards at a time, so that no more than those are needed on the disk.

WebDataset: https://github.com/webdataset/webdataset
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.Carvana import CarvanaDataset, Pair
from data.masks import ClassMap
from data.sampler import epoch_order
from data.shard_store import BLOCK, Member, Sample, Shard, ShardStore
from utils.errors import UserError
from utils.seed import mix

FORMAT = 1
INDEX_FILE = "index.json"
PARTS = ("train", "val", "test")
SHARD_FILE = re.compile(rf"({'|'.join(PARTS)})-[0-9]{{6}}\.tar")
SAMPLE_NAME = re.compile(r"[^./\\\x00-\x1f]{1,80}")  # a dot would end it; tar takes 100 bytes with the ending
GB = 10**9


def parse_shard(part: str, entry: dict[str, Any]) -> Shard:
    """Return a shard as the index states it; ValueError when that is impossible."""
    samples = tuple(Sample(n, group, Member(*image), Member(*mask)) for n, group, image, mask in entry["samples"])
    shard = Shard(entry["file"], entry["num_bytes"], entry["sha256"], samples)
    if not SHARD_FILE.fullmatch(shard.file) or not shard.file.startswith(part):
        raise ValueError(f"{shard.file!r} is no name of a shard of the {part} part")
    if not re.fullmatch(r"[0-9a-f]{64}", shard.sha256) or type(shard.num_bytes) is not int or not samples:
        raise ValueError(f"what it says of {shard.file} is impossible")
    for sample in samples:
        if not SAMPLE_NAME.fullmatch(sample.name) or not isinstance(sample.group, str):
            raise ValueError(f"{sample.name!r} is no name of a sample")
        for name, offset, size in (sample.image, sample.mask):
            is_whole = type(offset) is int and type(size) is int and name.startswith(f"{sample.name}.")
            if not is_whole or size < 0 or not BLOCK <= offset <= shard.num_bytes - size:
                raise ValueError(f"the place of {name!r} is not in {shard.file}")
    return shard


def parse_index(content: bytes, where: str) -> dict[str, Any]:
    """Return the index, with `Shard` objects by part.

    Raises:
        UserError: it is none, is damaged, or would let a group fall into two parts.
    """
    try:
        index = json.loads(content)
        if index["format"] != FORMAT:
            raise ValueError(f"its format is {index['format']}, and this code reads {FORMAT}")
        index["class_map"] = ClassMap(tuple(map(int, index["codes"])), bool(index["threshold_jpeg"]))
        index["parts"] = {part: [parse_shard(part, entry) for entry in index["parts"][part]] for part in PARTS}
        samples = {part: [sample for shard in index["parts"][part] for sample in shard.samples] for part in PARTS}
        names = [sample.name for part in PARTS for sample in samples[part]]
        groups = [{sample.group for sample in samples[part]} for part in PARTS]
        if len(set(names)) < len(names) or len(set().union(*groups)) < sum(map(len, groups)):
            raise ValueError("a sample occurs twice, or a group in two parts")
        for key, kind in (("cut", dict), ("n_classes", int), ("report", str), ("summary", str)):
            if not isinstance(index[key], kind):
                raise ValueError(f"{key} is {index[key]!r}")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        told = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where} is no index of shards, or damaged ({told[:200]}). Make the shards again.") from None
    return index


def window_order(sizes: Sequence[int], window: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch: the shards in random order, and in it, the samples of `window` shards at a time mixed.

    With a window of all shards it is that of `data.sampler.epoch_order`.

    Args:
        sizes: number of samples in each shard; the samples are counted through.
        window: number of shards, from 1.
        seed, epoch: all that the order depends on.
    """
    if window >= len(sizes):
        return epoch_order(sum(sizes), seed, epoch)
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    ends = torch.tensor(sizes).cumsum(0).tolist()
    shards = torch.randperm(len(sizes), generator=generator).tolist()
    order: list[int] = []
    for first in range(0, len(shards), window):
        mixed = shards[first : first + window]
        samples = [i for shard in mixed for i in range(ends[shard] - sizes[shard], ends[shard])]
        order += [samples[i] for i in torch.randperm(len(samples), generator=generator).tolist()]
    return order


class CarvanaShards(Dataset):
    """Images with their masks, read from shards; a sample is what `CarvanaDataset` makes of the same two files.

    Args:
        shards: the shards of one part.
        store: reads them.
        class_map, size, n_channels, augment, report, summary: see `CarvanaDataset`.
        window: how many shards an epoch mixes at a time, see `window_order`.

    Attributes:
        names, groups, is_random: see `CarvanaDataset`.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        store: ShardStore,
        class_map: ClassMap,
        size: tuple[int, int] | None = None,
        n_channels: int = 3,
        augment: bool = False,
        window: int = 4,
        report: str = "",
        summary: str = "",
    ):
        self.shards = list(shards)
        self.store = store
        self.how = (class_map, size, n_channels, augment)
        self.is_random = augment
        self.window = window
        self.report = report
        self.summary = summary
        self.places = [(shard, sample) for shard in self.shards for sample in shard.samples]
        self.names = [sample.name for _, sample in self.places]
        self.groups = [sample.group for _, sample in self.places]

    def __len__(self) -> int:
        return len(self.places)

    def fingerprint(self) -> str:
        """SHA-256 of the shards' own."""
        return hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def epoch_order(self, seed: int, epoch: int) -> list[int]:
        """The order of an epoch of training, see `window_order`."""
        return window_order([len(shard.samples) for shard in self.shards], self.window, seed, epoch)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the image, float32 (C, H, W) in [0, 1], and the mask, int64 (H, W)."""
        shard, sample = self.places[index]
        image, mask = self.store.read(shard, (sample.image, sample.mask))
        return CarvanaDataset([Pair(sample.name, sample.group, image, mask)], *self.how)[0]


def build_carvana_shards(
    data_dir: str | Path,
    *,
    patch_size: int = 256,
    n_channels: int = 3,
    n_classes: int = 2,
    mode: str = "direct",
    augment: bool = False,
    window: int = 4,
    cache_dir: str | Path = "./Dataset/shard_cache",
    cache_gb: float = 10.0,
    **cut: float,
) -> dict[str, CarvanaShards]:
    """Return the data sets `train`, `val` and `test`, as the shards were cut.

    Args:
        data_dir: the directory of the shards, or a URL of it.
        patch_size, n_channels, n_classes, mode, augment: see `data.Carvana.build_carvana`.
        window: how many shards an epoch of training mixes at a time.
        cache_dir, cache_gb: where to keep fetched shards, and how many gigabytes (10**9 bytes) of them.
        cut: train_val_sample_rate, test_sample_rate, val_split, split_seed; must be those that the shards were cut by.

    Raises:
        UserError: there are no shards, or an option does not fit them.
    """
    if n_channels not in (1, 3):
        raise UserError(f"--n_channels {n_channels} does not fit images: give 3 for RGB or 1 for grey.")
    store = ShardStore(data_dir, cache_dir, int(cache_gb * GB))
    content = store.read_whole(INDEX_FILE)
    if content is None:
        raise UserError(
            f"There is no {store.place(INDEX_FILE)}. Give the directory of the shards as --data_dir, or make them:\n"
            f"python -m data.make_shards --data_dir ./Dataset/Carvana --shards_dir {data_dir}"
        )
    index = parse_index(content, store.place(INDEX_FILE))
    asked, made = cut | {"n_classes": max(n_classes, 2)}, index["cut"] | {"n_classes": index["n_classes"]}
    if others := [name for name in asked if asked[name] != made.get(name)]:
        flags = " ".join(f"--{name} {made.get(name)}" for name in others)
        raise UserError(f"These shards were made with other values of {', '.join(others)}: give {flags}")
    if store.cache_dir:
        parts = ((index["parts"]["train"], window), (index["parts"]["val"], 1), (index["parts"]["test"], 1))
        needed = max(sum(sorted(shard.num_bytes for shard in shards)[-most:]) for shards, most in parts)
        if needed > store.cache_bytes:
            raise UserError(
                f"--shard_cache_gb {cache_gb:g} is too small to mix --shuffle_shards {window}: give {needed / GB:g} or "
                f"more, twice as much with loading processes."
            )
    datasets = {}
    for part, shards in index["parts"].items():
        size = (patch_size, patch_size) if mode == "direct" or part == "train" else None
        how = (index["class_map"], size, n_channels, augment and part == "train")
        datasets[part] = CarvanaShards(shards, store, *how, window, index["report"], index["summary"])
    return datasets
