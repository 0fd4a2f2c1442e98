"""The Carvana data set in shards: tar files in the layout of WebDataset, with an index.

The shards are cut by part, so that a run needs only those of its parts. Any sample can be read alone, by its place in
the index, so everything that holds for a data set of files holds here. Only the order of an epoch differs: it mixes
the samples of a few shards at a time, so that no more than those are needed on the disk.

WebDataset: https://github.com/webdataset/webdataset
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from data.Carvana import CarvanaDataset, check_options
from data.masks import GREY, ClassMap, check_known, code_of
from data.sampler import epoch_order
from extras.shards.store import BLOCK, Member, Sample, Shard, ShardStore, chunks_of
from utils.errors import UserError
from utils.seed import mix

FORMAT = 1
INDEX_FILE = "index.json"
MOST_CODE = 65535 * GREY
PARTS = ("train", "val", "test")
SHARD_FILE = re.compile(rf"({'|'.join(PARTS)})-[0-9]{{6}}\.tar")
SAMPLE_NAME = re.compile(r"[^./\\\x00-\x1f\ud800-\udfff]{1,80}")  # a dot would end it; tar takes 100 bytes in all


def parse_shard(part: str, entry: dict[str, Any]) -> Shard:
    """Return a shard as the index states it; ValueError when that is impossible."""
    samples = tuple(Sample(n, group, Member(*image), Member(*mask)) for n, group, image, mask in entry["samples"])
    shard = Shard(entry["file"], entry["num_bytes"], entry["sha256"], samples)
    is_right = SHARD_FILE.fullmatch(shard.file) and shard.file.startswith(part)
    if not (is_right and re.fullmatch(r"[0-9a-f]{64}", shard.sha256) and type(shard.num_bytes) is int and samples):
        raise ValueError(f"what it says of the shard {shard.file!r} of the {part} part is impossible")
    for sample in samples:
        is_right = SAMPLE_NAME.fullmatch(sample.name) and isinstance(sample.group, str)
        for name, offset, size in (sample.image, sample.mask):
            is_right = is_right and type(offset) is int and type(size) is int and name.startswith(f"{sample.name}.")
            if not is_right or size < 0 or not BLOCK <= offset <= shard.num_bytes - size:
                raise ValueError(f"what it says of {name!r} in {shard.file} is impossible")
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
        index["class_map"] = ClassMap(
            tuple(map(int, index["codes"])), bool(index["threshold_jpeg"]), tuple(map(int, index.get("ignored", ())))
        )
        held = index["class_map"].codes + index["class_map"].ignored
        if not index["codes"] or not all(0 <= code <= MOST_CODE for code in held):
            raise ValueError("the values of the masks are none that masks hold")
        index["parts"] = {part: [parse_shard(part, entry) for entry in index["parts"][part]] for part in PARTS}
        samples = [[sample for shard in index["parts"][part] for sample in shard.samples] for part in PARTS]
        names = [sample.name for of_part in samples for sample in of_part]
        groups = [{sample.group for sample in of_part} for of_part in samples]
        if len(set(names)) < len(names) or len(set().union(*groups)) < sum(map(len, groups)):
            raise ValueError("a sample occurs twice, or a group in two parts")
        index |= {"made_with": dict(index["made_with"]), "notes": (str(index["report"]), str(index["summary"]))}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{where} is no index of shards, or damaged ({error!r:.200}). Make the shards again.") from None
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
        samples = [i for s in shards[first : first + window] for i in range(ends[s] - sizes[s], ends[s])]
        order += [samples[i] for i in torch.randperm(len(samples), generator=generator).tolist()]
    return order


class CarvanaShards(CarvanaDataset):
    """Images with their masks, read from shards; a sample is what `CarvanaDataset` makes of the same two files.

    Args:
        shards: the shards of one part.
        store: reads them.
        window: how many shards an epoch mixes at a time, see `window_order`.
        how: class_map, size, n_channels, augment, report and summary, see `CarvanaDataset`.
        white: see `CarvanaDataset`.

    Attributes:
        names, groups, is_random: see `CarvanaDataset`.
    """

    def __init__(self, shards: Sequence[Shard], store: ShardStore, window: int, *how: Any, white: int | None = None):
        self.shards = list(shards)
        self.store = store
        self.window = window
        self.places = [(shard, sample) for shard in self.shards for sample in shard.samples]
        super().__init__(SimpleNamespace(names=[sample.name for _, sample in self.places]), *how, white=white)
        self.groups = [sample.group for _, sample in self.places]

    def fingerprint(self) -> str:
        """SHA-256 of the shards' own."""
        return hashlib.sha256("\n".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def epoch_order(self, seed: int, epoch: int) -> list[int]:
        """The order of an epoch of training, see `window_order`."""
        return window_order([len(shard.samples) for shard in self.shards], self.window, seed, epoch)

    def files(self, index: int) -> tuple[Any, Any]:
        """Return the image file and the mask file of a sample, as files in memory."""
        shard, sample = self.places[index]
        image, mask = self.store.read(shard, (sample.image, sample.mask))
        return image, mask


def check_split(made: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise UserError when the options of the split are not those that the shards were made with."""
    if others := [name for name in asked if asked[name] != made.get(name)]:
        flags = " ".join(f"--{name} {made.get(name)}" for name in others)
        raise UserError(f"These shards were made with other values of {', '.join(others)}: give {flags}")


def found_ignored(made: dict[str, Any], asked: Sequence[int | str] | None) -> dict[str, Any]:
    """Return the values that are no class as an option, for the loss; {} if there are none.

    Raises:
        UserError: others are asked for.
    """
    found = made.get("ignored_values")
    if asked and list(asked) != found:
        raise UserError("--ignored_values was decided when these shards were made: leave it out, or make them again.")
    return {"ignored_values": found} if found else {}


def reordered(
    class_map: ClassMap, mask_values: Sequence[int | str] | None, n_classes: int, where: str | Path
) -> ClassMap:
    """Return a class map with classes in the order of `mask_values`; UserError when these lack one of its values."""
    if not mask_values:
        return class_map
    codes = tuple(map(code_of, mask_values))
    check_known({where: ("", class_map.codes)}, codes, n_classes)
    return replace(class_map, codes=codes)


def check_cache_size(store: ShardStore, parts: dict[str, Any], shuffle_shards: int) -> None:
    """Raise UserError when the shards that are needed at a time do not fit into the cache."""
    sizes = {part: sorted(shard.num_bytes for shard in shards) for part, shards in parts.items()}
    needed = max(sum(sizes["train"][-shuffle_shards:]), *sizes["val"], *sizes["test"])
    if needed > store.cache_bytes:
        least = f"{needed / 1e9:g} or more, twice as much with loading processes"
        given = f"--shard_cache_gb {store.cache_bytes / 10**9:g} is too small for --shuffle_shards {shuffle_shards}"
        raise UserError(f"{given}: give {least}.")


def read_index(store: ShardStore) -> dict[str, Any]:
    """Return the index of a store, see `parse_index`; UserError when there is none."""
    place = store.place(INDEX_FILE)
    if not store.cache_dir and not Path(place).is_file():
        raise UserError(
            f"There is no {place}. Give the directory of the shards as --data_dir, or make them:\n"
            f"python -m extras.shards.make_shards --data_dir ./Dataset/Carvana --shards_dir {store.location}"
        )
    return parse_index(b"".join(chunks_of(place)), place)


def refuse_options_of_files(cache_dir: str | Path | None, val_split: Any) -> None:
    """Raise UserError when --cache_dir or --fold is given, which need the images as files."""
    if cache_dir is not None:
        raise UserError("--cache_dir is for --data_type Carvana; shards have --shard_cache_dir.")
    if hasattr(val_split, "cut"):  # --fold, see data.data_entry.build_datasets
        raise UserError("--fold has no effect on shards, whose parts are cut: make shards without it, or take Carvana.")


def build_carvana_shards(
    data_dir: str | Path,
    *,
    patch_size: int = 256,
    n_channels: int = 3,
    n_classes: int = 2,
    mode: str = "direct",
    augment: bool = False,
    shuffle_shards: int = 1,
    shard_cache_dir: str | Path = "./shard_cache",
    shard_cache_gb: float = 10.0,
    cache_dir: str | Path | None = None,
    white: int | None = None,
    train_val_sample_rate: float,
    test_sample_rate: float,
    val_split: float,
    split_seed: int,
    mask_values: Sequence[int | str] | None = None,
    ignored_values: Sequence[int | str] | None = None,
) -> dict[str, CarvanaShards]:
    """Return the data sets `train`, `val` and `test`, as the shards were cut.

    Args:
        data_dir: the directory of the shards, or a URL of it.
        patch_size, n_channels, n_classes, mode, augment, mask_values: see `data.Carvana.build_carvana`.
        shuffle_shards: how many shards an epoch of training mixes at a time.
        shard_cache_dir, shard_cache_gb: where to keep fetched shards, and how many gigabytes (10**9 bytes) of them.
        cache_dir: must be None: decoded images of shards are not cached.
        white: see `CarvanaDataset`.
        train_val_sample_rate, test_sample_rate, val_split, split_seed: must be those that the shards were cut by.
        ignored_values: None, or those that the shards were made with.

    Raises:
        UserError: there are no shards, or an option does not fit them.
    """
    check_options(n_channels, mode, white)
    refuse_options_of_files(cache_dir, val_split)
    store = ShardStore(data_dir, shard_cache_dir, int(shard_cache_gb * 10**9))
    index = read_index(store)
    asked = {
        "train_val_sample_rate": train_val_sample_rate,
        "test_sample_rate": test_sample_rate,
        "val_split": val_split,
        "split_seed": split_seed,
        "n_classes": max(n_classes, 2),
    }
    check_split(index["made_with"], asked)
    ignored = found_ignored(index["made_with"], ignored_values)
    class_map = reordered(index["class_map"], mask_values, n_classes, store.place(INDEX_FILE))
    if store.cache_dir:
        check_cache_size(store, index["parts"], shuffle_shards)
    datasets = {}
    for part, shards in index["parts"].items():
        size = (patch_size, patch_size) if mode == "direct" or part == "train" else None
        how = (class_map, size, n_channels, augment and part == "train", *index["notes"])
        datasets[part] = CarvanaShards(shards, store, shuffle_shards, *how, white=white)
        datasets[part].found_options |= ignored
    return datasets
