"""Image files of any kind as samples of a classification."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from data.pairs import shorten
from extras.own_data.content import fingerprint, identities
from utils.errors import UserError, shown
from utils.image_file import SIDEWAYS, opened, orientation, read_pixels, to_float

GREY_MODES = ("1", "L", "LA", "La", "I", "F")
MOST_SCANNED = 512  # headers of files that tell channels and sizes
DEFAULT_SIZE = 64  # pixels; images that are larger are shrunk to it
SMALLEST = 8  # pixels
MOST_LISTED = 20  # classes
THREADS = 4


def read_input(
    path: str | Path, n_channels: int, image_size: int | None, white: int | None = None, background: str | None = None
) -> Tensor:
    """Return an image file as a network gets it, (C, H, W) float32 in [0, 1].

    Args:
        path: an image file of any mode, depth and orientation, see `utils.image_file.read_pixels`.
        n_channels: C; 3 for RGB, 1 for grey.
        image_size: H and W, to which it is resized, averaging over the pixels that fall together; None keeps its own.
        white: the level of white where a grey level has more than 8 bits.
        background: the colour behind transparent pixels, such as "white" or "#ff8000".

    Raises:
        UserError: the file cannot be read, or not be read for sure.
    """
    size = None if image_size is None else (image_size, image_size)
    source = path if background is None else on_background(path, background)
    try:
        return to_float(torch.from_numpy(read_pixels(source, n_channels, size, white)))
    except UserError as error:
        if "transparent pixels" in str(error):
            raise UserError(f"{error} Or say what is behind them: --set data_args.background=white") from None
        raise


def on_background(path: str | Path, background: str) -> str | Path | BytesIO:
    """Return a file in memory with the upright image on a colour, if it has transparent pixels; else the path."""
    with opened(path) as image:
        if getattr(image, "is_animated", False) or not image.has_transparency_data:
            return path
        turned = image if orientation(image) == 1 else ImageOps.exif_transpose(image)
        image = turned.convert("RGBA")
        if image.getchannel("A").getextrema()[0] == 255:
            return path
        behind = Image.new("RGBA", image.size, background)
        file = BytesIO()
        Image.alpha_composite(behind, image).convert("RGB").save(file, "BMP")
    file.seek(0)
    return file


class ImageFiles(Dataset):
    """Image files with their classes.

    Args:
        paths: the files.
        names: of the samples.
        targets: the class of each, from 0.
        groups: the group of each; None: files of the same content are a group.
        reading: the arguments of `read_input`.
        found_options: what the data has decided, see data/data_entry.py.
        summary: a line for the log.

    Attributes:
        identities: what tells the files apart: their contents, or name and size if they are too large.
    """

    is_random = False

    def __init__(
        self,
        paths: Sequence[str],
        names: Sequence[str],
        targets: Sequence[int],
        groups: Sequence[str] | None,
        reading: Mapping[str, Any],
        found_options: Mapping[str, Any],
        summary: str = "",
    ):
        self.paths = paths
        self.names = names
        self.targets = targets
        self.identities, self.is_content = identities(paths, names)
        self.groups = groups or self.identities
        self.reading = reading
        self.found_options = found_options
        self.summary = summary
        self.report = ""
        if not self.is_content:
            kept = "groups are given, and " if groups else "copies were not looked for, and "
            self.report = f"the files are too large to be read before training: {kept}their fingerprint is a sample"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image, (C, H, W) float32 in [0, 1], and its class."""
        return read_input(self.paths[index], **self.reading), self.targets[index]

    def select(self, indices: Sequence[int]) -> "ImageFiles":
        """Return some of the samples."""
        part = object.__new__(type(self))
        vars(part).update(vars(self))
        for name in ("paths", "names", "targets", "groups", "identities"):
            values = getattr(self, name)
            setattr(part, name, [values[index] for index in indices])
        return part

    def fingerprint(self) -> str:
        """Return SHA-256 of names, classes and contents; of large data, of the contents of some files."""
        columns = zip(self.names, self.targets, self.identities, strict=True)
        return fingerprint(self.paths, [" ".join(map(str, line)) for line in columns], self.is_content)


# ---- what the files are like -----------------------------------------------------------------------------------------
def look_at(path: str) -> tuple[bool, tuple[int, int]] | None:
    """Return whether a file is grey, and its width and height, from its header; None if it cannot be read."""
    try:
        with opened(path) as image:
            size = image.size[::-1] if orientation(image) in SIDEWAYS else image.size
            return is_grey(image), size
    except UserError:
        return None  # reading the sample will say why


def is_grey(image: Image.Image) -> bool:
    """Return whether an opened image has no colours, as far as its mode or its palette tells."""
    if image.mode == "P":
        palette = image.getpalette("RGB") or []
        return palette[0::3] == palette[1::3] == palette[2::3]
    return image.mode.partition(";")[0] in GREY_MODES


def settle_reading(
    paths: Sequence[str], n_channels: int | None, image_size: int | None, white: int | None, background: str | None
) -> tuple[dict[str, Any], str]:
    """Return the arguments of `read_input` for files, and a line on them for the log.

    What is not given is taken from the headers of at most `MOST_SCANNED` files: 1 channel if all are grey, else 3;
    their largest side, `DEFAULT_SIZE` at most.

    Raises:
        UserError: a value that is out of range, or no file can be read.
    """
    if n_channels not in (None, 1, 3):
        raise UserError(f"--n_channels {n_channels} does not fit images: give 3 for RGB or 1 for grey.")
    if white is not None and not (type(white) is int and 0 < white < 1 << 32):
        raise UserError(f"data_args.white {shown(white)} is no level: give a whole number, such as 4095 for 12 bits.")
    check_colour(background)
    step = max(len(paths) / MOST_SCANNED, 1)
    scanned = [paths[int(number * step)] for number in range(min(len(paths), MOST_SCANNED))]
    with ThreadPoolExecutor(THREADS) as pool:
        seen = [answer for answer in pool.map(look_at, scanned) if answer is not None]
    if not seen:
        raise UserError(f"None of {len(scanned):,} files can be read as an image, such as {scanned[0]}.")
    n_channels = n_channels or (1 if all(grey for grey, _ in seen) else 3)
    sizes = sorted({size for _, size in seen}, key=lambda size: size[0] * size[1])
    image_size = image_size or max(SMALLEST, min(DEFAULT_SIZE, max(map(max, sizes))))
    first, last = (f"{width} x {height}" for width, height in (sizes[0], sizes[-1]))
    own = f"they have {first} pixels" if len(sizes) == 1 else f"they have {first} to {last} pixels"
    colours = "grey" if n_channels == 1 else "RGB"
    note = f"read as {image_size} x {image_size} {colours} (--image_size, --n_channels), {own}"
    if len(scanned) < len(paths):
        note += f" in {len(scanned):,} files that were looked at"
    reading = {"n_channels": n_channels, "image_size": image_size, "white": white, "background": background}
    return reading, note


def check_colour(background: Any) -> None:
    """Raise UserError when a background is given that is no colour."""
    if background is None:
        return
    try:
        ImageColor.getrgb(background)
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"data_args.background {shown(background)} is no colour: give white or #rrggbb.") from None


def make_parts(
    rows: Mapping[str, Sequence[tuple[str, str, str, str | None]]], classes: Sequence[str], **reading: Any
) -> dict[str, ImageFiles]:
    """Return data sets of image files.

    Args:
        rows: of each part, its samples: path, name, class, and group or None.
        classes: the names of the classes, in their order.
        reading: n_channels, image_size, white, background, see `settle_reading`.
    """
    every = [row for part in rows.values() for row in part]
    settled, note = settle_reading([path for path, *_ in every], **reading)
    number_of = {name: number for number, name in enumerate(classes)}
    counts = Counter(label for _, _, label, _ in every)
    of_classes = ", ".join(f"{name} {counts[name]:,}" for name in classes[:MOST_LISTED])
    more = f", and {len(classes) - MOST_LISTED:,} more" if len(classes) > MOST_LISTED else ""
    summary = f"{len(every):,} images in {len(classes):,} classes ({of_classes}{more}), {note}"
    if idle := [name for name in classes if not counts[name]]:
        summary += f"; no image is of {', '.join(idle[:MOST_LISTED])}: see --class_names"
    found = {
        "n_classes": len(classes),
        "class_names": list(classes),
        "n_channels": settled["n_channels"],
        "image_size": settled["image_size"],
    }
    datasets = {}
    for part, samples in rows.items():
        paths, names, labels, groups = (list(column) for column in zip(*samples, strict=True))
        own_groups = None if None in groups else groups
        targets = [number_of[label] for label in labels]
        datasets[part] = ImageFiles(paths, names, targets, own_groups, settled, found, summary)
    join_copies(list(datasets.values()))
    if contradiction := in_two_classes(datasets.values()):
        for dataset in datasets.values():
            dataset.report = "; ".join(filter(None, [dataset.report, contradiction]))
    return datasets


def in_two_classes(datasets: Iterable[ImageFiles]) -> str:
    """Return a line on the files of the same content that are in several classes, or ""."""
    first_of: dict[str, tuple[int, str]] = {}
    contradictions: list[str] = []
    for dataset in datasets:
        columns = (dataset.identities, dataset.targets, dataset.names) if dataset.is_content else ((), (), ())
        for identity, target, name in zip(*columns, strict=True):
            other, first = first_of.setdefault(identity, (target, name))
            if other != target:
                contradictions.append(f"{first} and {name}")
    if not contradictions:
        return ""
    return (
        f"{len(contradictions):,} files are in another class, too, with the same content: {shorten(contradictions, 3)}"
    )


def join_copies(datasets: Sequence[ImageFiles]) -> None:
    """Make groups one that have a file of the same content, in whatever parts: see `joined`."""
    read = [dataset for dataset in datasets if dataset.is_content]
    groups = [group for dataset in read for group in dataset.groups]
    joint = iter(joined(groups, [identity for dataset in read for identity in dataset.identities]))
    for dataset in read:
        before, dataset.groups = dataset.groups, [next(joint) for _ in dataset.groups]
        if fewer := len(set(before)) - len(set(dataset.groups)):
            dataset.report = f"{fewer:,} groups were joined to others, which have a file of the same content"


def joined(groups: Sequence[str], identities: Sequence[str]) -> list[str]:
    """Return the group of each sample; those that share an identity are one, by the name that comes first.

    >>> joined(["a", "b", "b", "c"], ["1", "1", "2", "3"])
    ['a', 'a', 'a', 'c']
    """
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    first_of: dict[str, str] = {}
    for group, identity in zip(groups, identities, strict=True):
        one, other = sorted((root(group), root(first_of.setdefault(identity, group))))
        parent[other] = one
    return [root(group) for group in groups]


def check_class_names(names: Sequence[str], where: str | os.PathLike) -> None:
    """Raise UserError when the name of a class cannot be an option's value, or when there is one class only."""
    for name in names:
        is_flag = re.match(r"-(?!\.?\d)", name)  # a negative number is none
        if not name.isprintable() or is_flag or not name.strip():
            raise UserError(f"{where}: {shown(name)} cannot be the name of a class. Rename it.")
    if len(names) < 2:
        raise UserError(f"{where} has one class only, {shown(names[0])}: there is nothing to tell apart.")


def ordered_classes(found: Sequence[str], class_names: Sequence[str] | None, where: str | os.PathLike) -> list[str]:
    """Return the names of the classes in their order: that of --class_names or the checkpoint, if there is one.

    Raises:
        UserError: the data has a class of another name, or a name is there twice.
    """
    if class_names is None:
        check_class_names(found, where)
        return list(found)
    if twice := [name for name, count in Counter(class_names).items() if count > 1]:
        raise UserError(f"--class_names has {shown(twice[0])} twice: give each class a name of its own.")
    if unknown := [name for name in found if name not in class_names]:
        known = ", ".join(list(class_names)[:MOST_LISTED])
        raise UserError(
            f"{where} has the class {shown(unknown[0])}, but the classes are {known}: those of --class_names, or of "
            f"the checkpoint. Rename it, or name all classes."
        )
    return list(class_names)
