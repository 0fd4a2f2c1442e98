"""Describe the parts of the data: classes, sizes of the files, copies, and the shares of classes in masks."""

import hashlib
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.data_entry import sample_groups
from data.masks import code_of, code_text
from data.sampler import one_each, sample_names
from engine.registry import load
from utils.errors import UserError
from utils.image_file import image_size

MOST_LOADED = 256  # samples of a part whose targets are loaded
MOST_SCANNED = 512  # files of a part whose size is read
MOST_HASHED = 100_000  # samples in memory
MOST_SHOWN = 5  # copies, and rows of a list
Table = list[list[str]]


# ---- what is in a data set -------------------------------------------------------------------------------------------
def files_of(dataset: Dataset) -> list[str]:
    """Return the first file of each sample; none for data that is no files."""
    for name in ("pairs", "files"):
        matched = getattr(dataset, name, None)
        if hasattr(matched, "paths"):
            return matched.paths(0)
    return list(map(str, one_each(dataset, "paths") or ()))


def labels_of(dataset: Dataset) -> Sequence[Any] | None:
    """Return the class, or the number, of each sample, if the data set tells it."""
    for name in ("targets", "labels"):
        if (values := one_each(dataset, name)) is not None and not any(isinstance(value, list) for value in values):
            return values
    return None


def some_targets(dataset: Dataset) -> tuple[list[Tensor], str]:
    """Load at most `MOST_LOADED` samples; return their targets, and the first error of one that cannot be loaded."""
    count = min(len(dataset), MOST_LOADED)
    targets, error = [], ""
    for place in range(count):
        try:
            sample = dataset[place * len(dataset) // count]
        except UserError as raised:
            error = error or str(raised)
            continue
        if not isinstance(sample, tuple | list) or len(sample) < 2:
            return [], error
        targets.append(torch.as_tensor(sample[1]) if isinstance(sample[1], Tensor | int | float) else torch.empty(0))
    return targets, error


# ---- what is said about it -------------------------------------------------------------------------------------------
def sizes_of_parts(datasets: Mapping[str, Dataset]) -> Table:
    rows = [["part", "samples", "groups", "files"]]
    for part, dataset in datasets.items():
        groups = sample_groups(dataset)
        num_groups = "" if isinstance(groups, range) else f"{len(set(groups)):,}"
        rows.append([part, f"{len(dataset):,}", num_groups, file_sizes(files_of(dataset))])
    return rows


def file_sizes(paths: Sequence[str]) -> str:
    """Return the smallest and the largest size of image files in words; "" without any."""
    count = min(len(paths), MOST_SCANNED)
    sizes: Counter = Counter()
    for place in range(count):
        try:
            sizes[image_size(paths[place * len(paths) // count])] += 1
        except UserError:
            continue  # loading says why
    if not sizes:
        return ""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    first, last = (f"{width} x {height}" for width, height in (ordered[0], ordered[-1]))
    scanned = f" in {count:,} of {len(paths):,} files" if count < len(paths) else ""
    if len(sizes) == 1:
        return f"{first} pixels{scanned}"
    return f"{first} to {last} pixels, {len(sizes):,} sizes{scanned}"


def targets_of_parts(
    datasets: Mapping[str, Dataset], opt: Namespace, classes: Sequence[str]
) -> tuple[Table, list[str]]:
    """Return a table of the targets by part, and lines on what could not be loaded."""
    known = {part: labels_of(dataset) for part, dataset in datasets.items()}
    notes: list[str] = []
    if any(labels is None for labels in known.values()):
        loaded = {}
        for part, dataset in datasets.items():
            loaded[part], error = some_targets(dataset)
            notes += [f"{part}: a sample cannot be loaded: {error}"] if error else []
        every = [target for targets in loaded.values() for target in targets]
        if every and all(target.ndim == 2 and not target.is_floating_point() for target in every):
            return shares_in_masks(loaded, datasets, opt, classes), notes
        known = {part: [target.item() for target in targets if target.numel() == 1] for part, targets in loaded.items()}
    labels = [label for of_part in known.values() for label in of_part]
    if not labels:
        return [], notes
    if all(isinstance(label, int) for label in labels):
        return counts_of_classes(known, classes), notes
    return numbers_by_part(known), notes


def counts_of_classes(labels: Mapping[str, Sequence[int]], classes: Sequence[str]) -> Table:
    """Return how many samples of each class are in each part, and the share of the class in the first part."""
    counts = {part: Counter(of_part) for part, of_part in labels.items()}
    numbers = sorted({number for count in counts.values() for number in count} | set(range(min(len(classes), 1000))))
    rows = [["class", *labels, f"of {next(iter(labels))}"]]
    for number in numbers:
        name = classes[number] if 0 <= number < len(classes) else f"no class: {number}"
        first = next(iter(counts.values()))
        share = f"{first[number] / max(1, sum(first.values())):.1%}"
        rows.append([name, *(f"{count[number]:,}" for count in counts.values()), share])
    return rows


def numbers_by_part(labels: Mapping[str, Sequence[float]]) -> Table:
    """Return least, mean and largest of the numbers to be predicted."""
    rows = [["target", *labels]]
    functions = {"least": min, "mean": lambda values: sum(values) / len(values), "largest": max}
    for name, function in functions.items():
        rows.append([name, *(f"{function(of_part):.4g}" if of_part else "" for of_part in labels.values())])
    return rows


def shares_in_masks(
    masks: Mapping[str, Sequence[Tensor]], datasets: Mapping[str, Dataset], opt: Namespace, classes: Sequence[str]
) -> Table:
    """Return the share of each class in the pixels of each part's masks, and in how many masks it is."""
    values = getattr(opt, "mask_values", None) or []
    found = sorted({int(number) for of_part in masks.values() for mask in of_part for number in mask.unique()})
    numbers = sorted(set(found) | set(range(max(len(classes), 2))))
    rows = [["class", "value", *(f"{part}: pixels, masks" for part in masks)]]
    pixels = {part: sum(mask.numel() for mask in of_part) for part, of_part in masks.items()}
    for number in numbers:
        name = "ignored" if number < 0 else classes[number] if number < len(classes) else str(number)
        value = code_text(code_of(values[number])) if 0 <= number < len(values) else ""
        row = [name, value]
        for part, of_part in masks.items():
            counts = [int((mask == number).sum()) for mask in of_part]
            share = sum(counts) / max(1, pixels[part])
            row.append(f"{share:.1%}, {sum(map(bool, counts)):,} of {len(of_part):,}")
        rows.append(row)
    if any(len(of_part) < len(datasets[part]) for part, of_part in masks.items()):
        rows.append([f"of {MOST_LOADED} masks of a part at most"])
    return rows


# ---- copies ----------------------------------------------------------------------------------------------------------
def contents_of(dataset: Dataset) -> list[str] | None:
    """Return a digest of what each sample holds: of its file, or its pixels in memory; None if that is unknown."""
    if paths := files_of(dataset):
        identities = load("extras.own_data.content:identities", "data_type")
        digests, is_content = identities(paths, paths)
        return digests if is_content else None
    if getattr(dataset, "is_random", True) or len(dataset) > MOST_HASHED:
        return None
    digests = []
    for place in range(len(dataset)):
        sample = dataset[place]
        inputs = sample[0] if isinstance(sample, tuple | list) else sample
        if not isinstance(inputs, Tensor):
            return None
        digests.append(hashlib.blake2b(inputs.contiguous().numpy().tobytes(), digest_size=8).hexdigest())
    return digests


def copies(datasets: Mapping[str, Dataset]) -> list[str]:
    """Return lines on samples of the same content, in different parts first."""
    contents = {part: contents_of(dataset) for part, dataset in datasets.items()}
    if untold := [part for part, digests in contents.items() if digests is None]:
        return [f"copies were not looked for: the samples of {', '.join(untold)} are random, no files, or too large"]
    places: dict[str, list[tuple[str, str]]] = {}
    for part, digests in contents.items():
        names = sample_names(datasets[part])
        for name, digest in zip(names, digests, strict=True):
            places.setdefault(digest, []).append((part, str(name)))
    several = [found for found in places.values() if len(found) > 1]
    across = [found for found in several if len({part for part, _ in found}) > 1]
    within = sum(len(found) - 1 for found in several) - sum(len(found) - 1 for found in across)
    lines = [f"copies in different parts: {len(across) or 'none'}"]
    for found in across[:MOST_SHOWN]:
        lines.append("  " + " = ".join(f"{name} ({part})" for part, name in found[:MOST_SHOWN]))
    return [*lines, f"copies within a part: {within or 'none'}"]


def shared_groups(datasets: Mapping[str, Dataset]) -> list[str]:
    """Return a line if groups are in several parts, which training refuses without --allow_shared."""
    parts = {part: set(sample_groups(dataset)) for part, dataset in datasets.items()}
    if any(isinstance(sample_groups(dataset), range) for dataset in datasets.values()):
        return []
    parts_of = Counter(group for groups in parts.values() for group in groups)
    shared = sorted(str(group) for group, count in parts_of.items() if count > 1)
    few = ", ".join(shared[:MOST_SHOWN])
    return [f"groups in several parts, which training refuses: {len(shared):,}, such as {few}"] if shared else []
