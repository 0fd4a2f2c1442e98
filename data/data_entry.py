"""Select the data by --data_type.

To add a data set: write a function that returns {"train": ..., "val": ..., "test": ...} in a file of its own, and name
it in engine/registry.py with the tasks that it is for. User-defined data needs no line there, see docs/options.md.
{"train": ..., "test": ...} or {"all": ...} is cut into the three parts by the options of the split.

Each part is a map-style `torch.utils.data.Dataset`. The template also uses these attributes, if they are there:
    names       list of str, one per sample, for messages and file names; without, no leak can be noticed. Another
                number of names, such as those of the classes, is ignored
    groups      list of str, one per sample: samples of one group are never split between parts (default: the names)
    is_random   False when a sample is always the same, so that no seed is set per sample (default: True, except for a
                plain TensorDataset)
    epoch_order(seed, epoch)   the order of an epoch, as a list of all indices (default: any sample may come anywhere)
    epoch_size  how many of these indices an epoch has (default: all of them)
    collate_fn  how samples become a batch; with `__getitems__(indices)`, whole batches are fetched at once, and with
                `seeded_items(indices, epoch, seed)` also when samples are random
    in_memory   True when it can be loaded without a DataLoader, and held on the GPU, see `data.loader.MemorySource`
    targets     list of int, one per sample: the class. Parts that are cut hold the classes in nearly equal shares
    found_options   a dictionary of options that the data has decided, such as n_classes, n_channels, class_names and
                the values of its masks; they are saved with the run, and come back on resume, with --pretrained and in
                an evaluation
    open_cache()    the data set that samples are loaded from (default: this one); called before processes are started
    fingerprint()   a digest of the data, a text, for provenance.json (default: of the names)
    summary, report, cache_note   lines for the log, if they are texts
"""

import hashlib
from argparse import Namespace
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from data.loader import EvalLoader, UpdateLoader, is_in_memory
from data.sampler import one_each, sample_names
from engine.checkpoints.state import PlainState
from engine.options.parser import Options, changed
from engine.registry import call, find, load, parameters_of, taken
from utils.errors import UserError, shown

PARTS = ("train", "val", "test")
# The options that the function or class of a data set gets if it has parameters of these names.
OFFERED = (
    "data_dir", "n_channels", "n_classes", "patch_size", "crop", "mode", "augment", "skip_bad_samples", "cache_dir",
    "train_val_sample_rate", "test_sample_rate", "val_split", "split_seed", "mask_values", "ignored_values",
    "shuffle_shards", "shard_cache_dir", "shard_cache_gb", "image_size", "class_names",
    "target", "features", "leave_out", "group", "categories", "columns", "text",
)  # fmt: skip
UNTOLD = {"n_channels": 1, "n_classes": 10, "test_sample_rate": 1.0}  # where neither a person nor the data says it
SAMPLING = ("sampler", "drop_last", "augment", "mixup", "cutmix", "crop")  # options of how training takes its samples
LOG_LINES = ("report", "summary", "class_note", "cache_note")


def build_datasets(opt: Namespace) -> dict[str, Dataset]:
    """Return the data sets of the three parts, disjoint, and none of them empty that is used.

    --data_type names a function that returns {"train": ..., "val": ..., "test": ...}, or the class of a data set, which
    is made once for each part, named by its parameter `part`. Both get the options in `OFFERED` that they name, and
    --data_args. An option that nobody has given is `UNTOLD`; or None, for a parameter whose default is None.
    """
    if opt.data_type is None:
        raise UserError("--data_type is needed: MODULE:NAME, since no data is known for this task.")
    if getattr(opt, "fold", None):  # instead of a share, each function that cuts by val_split gets the fold
        opt = changed(opt, val_split=load("extras.own_data.folds:Fold", "fold")(opt.fold))
    make = find("data", opt.data_type)
    offered = {name: getattr(opt, name) for name in OFFERED if hasattr(opt, name)}
    parameters = parameters_of(make)
    for name, value in UNTOLD.items():
        if offered.get(name, value) is None and getattr(parameters.get(name), "default", None) is not None:
            offered[name] = value
    is_short = getattr(opt, "debug", False) or getattr(opt, "limit_batches", None)
    offered["augment"] = offered.get("augment") is True  # one with a name is not the data's own
    offered["cache"] = getattr(opt, "cache", False) and not is_short  # a few batches are no reason to decode all images
    arguments = getattr(opt, "data_args", {})
    option = f"--data_type {opt.data_type}"
    if isinstance(make, type) and issubclass(make, Dataset):
        if not taken(make, {"part": None}):
            raise UserError(f"{option}: a data set's class must take `part`, which is one of {', '.join(PARTS)}.")
        datasets = {part: call(make, offered | {"part": part}, arguments, "--data_args") for part in PARTS}
    else:
        datasets = call(make, offered, arguments, "--data_args")
    if not isinstance(datasets, dict):
        raise UserError(f"{option}: it must return a dictionary of three data sets, {', '.join(PARTS)}.")
    for part, dataset in datasets.items():
        is_map = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if not is_map or isinstance(dataset, IterableDataset):
            raise UserError(
                f"{option}: the {part} part is no data set with __getitem__ and __len__: {type(dataset)}. A stream has "
                f"no indices, by which a resume finds its place: read it into a list, or see docs/shards.md."
            )
    if set(datasets) != set(PARTS) or getattr(opt, "asked_to_cut", ()):
        datasets = load("extras.own_data.cut:cut_parts", "data_type")(datasets, opt)
    split = getattr(opt, "split", "all")
    needed = PARTS if split == "all" else [split]  # an evaluation needs one part
    for part, dataset in datasets.items():
        if part in needed and not len(dataset):
            raise UserError(f"{option}: the {part} part is empty. Give more data, or other sizes of the parts.")
    return {part: datasets[part] for part in PARTS}


def build_loaders(
    opt: Namespace,
    datasets: dict[str, Dataset],
    micro_batch_size: int,
    eval_batch_size: int,
    device: torch.device,
    share: tuple[int, int] = (0, 1),
) -> tuple[UpdateLoader, EvalLoader]:
    """Return the loader of the training updates and that of the validation batches, for training on `device`.

    Args:
        share: (rank, number of processes), of the processes that train together.
    """
    dataset = datasets["train"]
    if any(getattr(opt, name, None) for name in SAMPLING):
        dataset = load("extras.training_samples:training_samples", "augment")(opt, dataset, micro_batch_size, share[1])
    dataset, loading = prepare(opt, dataset, "train", micro_batch_size, device)
    train_loader = UpdateLoader(
        dataset, opt.batch_size, micro_batch_size, opt.seed, opt.limit_batches, share, device, **loading
    )
    num_workers = loading["num_workers"]
    val_loader = build_eval_loader(opt, datasets["val"], "val", eval_batch_size, device, share, num_workers)
    return train_loader, val_loader


def build_eval_loader(
    opt: Namespace,
    dataset: Dataset,
    part: str,
    batch_size: int,
    device: torch.device,
    share: tuple[int, int] = (0, 1),
    num_workers: int | None = None,
) -> EvalLoader:
    """Return the loader that evaluates a part of the data, or this process's share of it.

    Args:
        num_workers: loading processes; None for --num_workers.
    """
    dataset, loading = prepare(opt, dataset, part, batch_size, device, num_workers)
    return EvalLoader(dataset, batch_size, opt.limit_batches, share, **loading)


def prepare(
    opt: Namespace, dataset: Dataset, part: str, batch_size: int, device: torch.device, num_workers: int | None = None
) -> tuple[Dataset, dict[str, Any]]:
    """Return the data set that samples of a part are loaded from, and the options of its loader."""
    dataset = dataset.open_cache() if hasattr(dataset, "open_cache") else dataset
    loading = {"part": part, "worker_timeout": opt.worker_timeout, "max_bad_samples": opt.skip_bad_samples}
    report = ""
    if num_workers is None:
        num_workers = opt.num_workers
    if num_workers == "auto":
        choose_workers = load("extras.choose_workers:choose_workers", "num_workers")
        num_workers, report = choose_workers(dataset, batch_size, opt.seed or 0, **loading)
    in_memory = is_in_memory(dataset)
    if in_memory and num_workers == 0:
        if "cuda" in (device.type, opt.data_device):
            dataset = load("extras.gpu_data:place_data", "data_device")(dataset, opt.data_device, device)
    elif opt.data_device == "cuda":
        why = "it is loaded by processes; add --num_workers 0" if in_memory else "it is not held in memory"
        raise UserError(f"--data_device cuda does not fit this data: {why}. Or give --data_device auto.")
    return dataset, loading | {"num_workers": num_workers, "pin_memory": device.type == "cuda", "report": report}


def with_found(opt: Options, datasets: dict[str, Dataset]) -> Options:
    """Return the options with those that the data has decided, which checkpoints must keep: see `found_options`.

    The weights of --pretrained decide how the input is normalized.
    """
    found = getattr(datasets["train"], "found_options", {})
    for name in ("n_channels", "n_classes", "class_names"):
        given = getattr(opt, name, None)
        if given is not None and found.get(name, given) != given:
            raise UserError(f"--{name} {shown(given)} contradicts the data, with {shown(found[name])}: leave it out.")
    untold = {name: UNTOLD[name] for name in ("n_channels", "n_classes") if getattr(opt, name, 0) is None}
    opt = changed(opt, **untold | {name: value for name, value in found.items() if hasattr(opt, name)})
    if (names := getattr(opt, "class_names", None)) and not len(set(names)) == len(names) == max(opt.n_classes, 2):
        given = shown(" ".join(names))
        raise UserError(f"--class_names {given}: there are {opt.n_classes} classes, give each a name of its own.")
    if getattr(opt, "pretrained", False) and not opt.resume:
        return load("extras.pretrained:with_scale", "pretrained")(opt)
    return opt


def sample_groups(dataset: Dataset) -> Sequence[Any]:
    """Return the group of each sample; without `groups`, each is its own."""
    groups = one_each(dataset, "groups")
    return sample_names(dataset) if groups is None else groups


def describe(datasets: dict[str, Dataset]) -> tuple[dict[str, Sequence[Any]], dict[str, str]]:
    """Return the names of the samples and a fingerprint, of each part, for the run's records."""
    names = {part: sample_names(dataset) for part, dataset in datasets.items()}
    return names, {part: fingerprint(dataset) for part, dataset in datasets.items()}


def fingerprint(dataset: Dataset) -> str:
    """Return a digest of the data: the data set's own, or the SHA-256 of its samples' names, or of their number."""
    own = getattr(dataset, "fingerprint", None)
    if isinstance(own := own() if callable(own) else own, str):
        return own
    names = sample_names(dataset)
    content = repr(names) if isinstance(names, range) else "\n".join(map(str, names))
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()


def data_notes(datasets: dict[str, Dataset], loader: Any = None) -> list[str]:
    """Return the lines of the data sets and their loader for the log, each once."""
    notes = [getattr(source, name, "") for source in (*datasets.values(), loader) for name in LOG_LINES]
    if any(isinstance(sample_groups(dataset), range) for dataset in datasets.values()):
        notes.append("the samples have neither names nor groups: whether parts share any was not checked")
    return list(dict.fromkeys(note for note in notes if isinstance(note, str) and note))


# ---- what was seen ---------------------------------------------------------------------------------------------------
def group_hashes(dataset: Dataset) -> torch.Tensor:
    """Return a 64-bit hash of each group, sorted, (G,) int64. Checkpoints store them, to recognize data later."""
    groups = sample_groups(dataset)
    if isinstance(groups, range):
        return torch.tensor([], dtype=torch.int64)  # samples without names cannot be recognized
    return torch.tensor(sorted(set(map(hash_of, groups))), dtype=torch.int64)


def hash_of(group: Any) -> int:
    digest = hashlib.blake2b(str(group).encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def num_common(hashes: torch.Tensor, others: torch.Tensor) -> int:
    return int(torch.isin(hashes, others).sum())


class SeenGroups(PlainState):
    """The `group_hashes` that a run has seen, by part. Loading a state adds its hashes."""

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.data = {part: torch.cat([hashes, state[part]]).unique() for part, hashes in self.data.items()}


def seen_groups(datasets: dict[str, Dataset], opt: Namespace | None = None) -> SeenGroups:
    """Return the `group_hashes` of "train" and "val", with those in the file of --pretrained.

    Raises:
        UserError: a group is in two parts, so that memorized data would be measured; unless --allow_shared.
    """
    hashes = {part: group_hashes(dataset) for part, dataset in datasets.items()}
    for other, part in combinations(hashes, 2):
        common = num_common(hashes[part], hashes[other])
        if common and datasets[part] is not datasets[other] and not getattr(opt, "allow_shared", False):
            raise load("extras.own_data.shared:shared_groups", "allow_shared")(datasets, part, other)
    seen = SeenGroups({part: hashes[part] for part in ("train", "val")})
    if opt and opt.pretrained and not opt.resume:
        seen.load_state_dict(seen.data | load("extras.pretrained:groups_in", "pretrained")(opt))
    return seen


def refuse_seen(dataset: Dataset, part: str, seen: dict[str, torch.Tensor]) -> None:
    """Raise UserError when an evaluation would measure memorized data.

    Args:
        dataset: the data to evaluate.
        part: "test" must not contain training or validation data (which chose the best checkpoint); "val" no training
            data. Nothing is refused for "train" and "all".
        seen: the `group_hashes` of the parts "train" and "val" that a checkpoint has seen.
    """
    hashes = group_hashes(dataset)
    for other in {"test": ("train", "val"), "val": ("train",), "train": (), "all": ()}[part]:
        if num_common(hashes, seen[other]):
            raise load("extras.own_data.shared:seen_before", "allow_seen")(dataset, part, other, seen[other])
