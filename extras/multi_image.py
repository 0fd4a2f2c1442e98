"""Several images per sample: one file of each of several directories, paired by name, and transformed together.

    dataset = MultiImageDataset(["photos", "masks"], transforms, kinds=("image", "mask"))
    photo, mask = dataset[0]        # float32 (3, H, W) in [0, 1], int64 (H, W)

For super-resolution, denoising, segmentation, stereo, or whatever else learns images from images. `build_multi_image`
makes the three parts of a task from the command line, see docs/data.md.
"""

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.Carvana import change_light, check_options, check_sizes, flip_some
from data.masks import load_mask, read_mask, scan_masks
from data.pairs import EXTENSIONS, match_files
from data.split import split_by_group
from extras.image_loader import load_pixels
from utils.errors import UserError, nearest
from utils.image_file import to_float

KINDS = ("image", "mask")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes with one thread, as in a loading process: some sums depend on how they are shared out."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def load_stored(path: str | Path) -> Tensor:
    """Return a mask file as the numbers that it holds, (H, W): places in its palette, or grey levels.

    Raises:
        UserError: the file cannot be read, or holds colours.
    """
    image, kind = read_mask(path)
    if image.mode == "RGB":
        raise UserError(
            f"{path} ({kind}) holds colours, which are no numbers of classes. Save it with a palette or as grey "
            f"levels, or give a loader of your own, such as data.masks.load_mask with a map from colours to classes."
        )
    return torch.from_numpy(np.array(image))


LOADERS = {"image": load_pixels, "mask": load_stored}


def to_tensor(loaded: Any, kind: str, path: str) -> Tensor:
    """Convert a tensor, a Pillow image or an array (H, W) or (H, W, C) to a tensor (H, W) or (C, H, W)."""
    if isinstance(loaded, Tensor):
        return loaded
    if isinstance(loaded, Image.Image) and kind == "image" and loaded.mode not in ("L", "RGB"):
        loaded = loaded.convert("RGB")  # of a palette, the colours and not the places
    if isinstance(loaded, Image.Image | np.ndarray):
        pixels = torch.from_numpy(np.array(loaded))
        return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels
    given = type(loaded).__name__
    raise UserError(f"The loader gave a {given} for {path}. Let it return a tensor, an array or a Pillow image.")


def finished(image: Any, kind: str) -> Any:
    """Return an image as a plain, contiguous tensor for a network; other objects are returned unchanged.

    An image that still is bytes becomes float32 in [0, 1], (C, H, W); a mask of whole numbers int64 (H, W).
    """
    if not isinstance(image, Tensor):
        return image
    image = image.as_subclass(Tensor).contiguous()  # convolutions may round otherwise when channels come last
    if kind == "image":
        image = image[None] if image.ndim == 2 else image
        return to_float(image) if image.dtype == torch.uint8 else image
    if image.ndim == 3 and len(image) == 1:
        image = image[0]
    return image if image.is_floating_point() else image.long()


def one_each(value: Any, dirs: Sequence, what: str) -> list:
    """Return a list with an entry for each directory, from a list, a tuple, or one object for all."""
    if not isinstance(value, list | tuple):
        return [value] * len(dirs)
    if len(value) != len(dirs):
        raise UserError(f"{what} has {len(value)} entries for {len(dirs)} directories: give one for each.")
    return list(value)


class MultiImageDataset(Dataset):
    """One image of every directory for each name.

    A sample is a tuple with one tensor for each directory, in their order: images float32 (C, H, W) in [0, 1], masks
    int64 (H, W), unless the loader or the transforms make something else.

    The transforms draw from the global generators of torch, NumPy and Python. The loaders of the
    template seed these for each sample, so that a sample is a function of (seed, epoch, index).

    Args:
        dirs: the directories. Each has one file of each name; the extension does not belong to the name.
        transforms: a function of all images of a sample that returns as many, such as a transform of
            `torchvision.transforms.v2`, which crops or flips all of them alike; or a list with a function of one image
            for each directory, or None. They get `tv_tensors.Image` and `tv_tensors.Mask`, bytes as loaded.
        kinds: "image" or "mask", for each directory or for all. Transforms take the nearest pixel of a mask instead of
            mixing classes, and leave its values alone.
        loader: a function of a path that returns a tensor (C, H, W) or (H, W), an array or a Pillow image, for each
            directory or for all; None for `extras.image_loader.load_pixels`, and `load_stored` for masks.
        name_ends: for each directory, the suffix after the name in its file names, such as ("", "_mask").
        extensions: of the files that count, in small letters; None for all.
        group_of: a function of a name that returns its group, such as the patient; a group is always in one part.
        check: is called with the paths of a sample before they are loaded, to raise if they do not fit.

    Attributes:
        files: the paths, see `data.pairs.MatchedFiles`.
        names, groups: of each sample.
        transforms: may be exchanged, such as in the part for training, see `select`.
        is_random: whether a sample may differ from time to time: whether there are transforms.

    Raises:
        UserError: a directory is missing or empty, two files have one name, or a name is not in all directories. On
            loading, a file that cannot be read, by its path.
    """

    def __init__(
        self,
        dirs: Sequence[str | Path],
        transforms: Callable | Sequence[Callable | None] | None = None,
        *,
        kinds: str | Sequence[str] = "image",
        loader: Callable | Sequence[Callable | None] | None = None,
        name_ends: Sequence[str] | None = None,
        extensions: Collection[str] | None = EXTENSIONS,
        group_of: Callable[[str], str] | None = None,
        check: Callable[[Sequence[str]], Any] | None = None,
    ):
        if not isinstance(dirs, list | tuple) or not dirs or not all(isinstance(d, str | Path) for d in dirs):
            raise UserError(f"dirs must be a list of directories, such as [\"photos\", \"masks\"], not {dirs!r}.")
        self.kinds = one_each(kinds, dirs, "kinds")
        for kind in self.kinds:
            if kind not in KINDS:
                hint = nearest(str(kind), KINDS)
                raise UserError(f"kinds: {kind!r} is unknown: give {' or '.join(KINDS)} for each directory{hint}.")
        loaders = one_each(loader, dirs, "loader")
        self.loaders = [own or LOADERS[kind] for own, kind in zip(loaders, self.kinds, strict=True)]
        self.transforms = transforms
        if isinstance(transforms, list | tuple):
            one_each(transforms, dirs, "transforms")
        self.check = check
        ends = None if name_ends is None else one_each(name_ends, dirs, "name_ends")
        if ends and not all(isinstance(end, str) for end in ends):
            raise UserError(f"name_ends must be texts, such as [\"\", \"_mask\"], not {name_ends!r}.")
        self.files = match_files(dirs, ends, extensions)
        self.names = self.files.names
        self.groups = [group_of(name) for name in self.names] if group_of else self.names
        self.report = self.summary = ""  # lines for the log
        # Before loading processes are started, which then need not import it one by one.
        from torchvision import tv_tensors

        self.wrap = {"image": tv_tensors.Image, "mask": tv_tensors.Mask}

    def __len__(self) -> int:
        return len(self.files)

    @property
    def is_random(self) -> bool:
        return self.transforms is not None

    def select(self, indices: Sequence[int]) -> "MultiImageDataset":
        """A data set of some of the samples, with the same transforms."""
        part = copy.copy(self)
        part.files = self.files.select(indices)
        part.names, part.groups = part.files.names, [self.groups[i] for i in indices]
        return part

    def fingerprint(self) -> str:
        """SHA-256 of the names, the sizes, and the contents of some files, and how many these are."""
        return self.files.fingerprint()

    def __getitem__(self, index: int) -> tuple:
        """Return the images of a sample, see above."""
        index = range(len(self))[index]
        with one_thread():
            images = self.transformed(self.read(index), self.names[index])
            return tuple(finished(image, kind) for image, kind in zip(images, self.kinds, strict=True))

    def read(self, index: int) -> list[Tensor]:
        """Return the images of a sample as they are loaded."""
        paths = self.files[index]
        if self.check:
            self.check(paths)
        images = []
        for path, load, kind in zip(paths, self.loaders, self.kinds, strict=True):
            try:
                images.append(self.wrap[kind](to_tensor(load(path), kind, path)))
            except UserError:
                raise
            except Exception as error:
                error.add_note(f"Raised while {path} was loaded.")
                raise
        return images

    def transformed(self, images: list[Tensor], name: str) -> Sequence:
        """Return the transformed images of the sample `name`."""
        if self.transforms is None:
            return images
        if isinstance(self.transforms, list | tuple):
            pairs = zip(self.transforms, images, strict=True)
            return [image if transform is None else transform(image) for transform, image in pairs]
        try:
            results = self.transforms(*images)
        except Exception as error:
            sizes = [f"{image.shape[-1]} x {image.shape[-2]}" for image in images]
            if len(set(sizes)) == 1 or isinstance(error, UserError):
                raise
            text = " ".join(str(error).split())[:200]
            raise UserError(
                f"The images of {name!r} have different sizes, {', '.join(sizes)} pixels, which the transforms do not "
                f"take ({type(error).__name__}: {text}). Give images of one size, or let the transforms begin by "
                f"making them so."
            ) from error
        results = results if isinstance(results, list | tuple) else [results]
        if len(results) != len(images):
            raise UserError(f"The transforms made {len(results)} of {len(images)} images: let them return as many.")
        return results


# ---- the three parts of a task ---------------------------------------------------------------------------------------
def augment_jointly(*images: Tensor) -> list[Tensor]:
    """Flip all images of a sample or none, and change the light of those that are no masks by up to a fifth, all alike.

    An image with a mask gets the same bits as by `data.Carvana.augment_pair`.

    Args:
        images: `tv_tensors.Image`, uint8 (C, H, W), and `tv_tensors.Mask`, (H, W).
    """
    from torchvision import tv_tensors

    draws = torch.rand(1, 3)
    results = []
    for image in images:
        if isinstance(image, tv_tensors.Mask):
            results.append(flip_some(image.as_subclass(Tensor)[None].clone(), draws)[0])
        else:
            bytes_ = image.as_subclass(Tensor)[None].contiguous()
            results.append(change_light(flip_some(to_float(bytes_), draws), draws)[0])
    return results


def check_masks(paths: Sequence[str], kinds: Sequence[str]) -> None:
    """Raise UserError when a mask is not of the size of the sample's first image."""
    first = kinds.index("image")
    for path, kind in zip(paths, kinds, strict=True):
        if kind == "mask":
            check_sizes(paths[first], path)


def check_arguments(group_until: Any, draft: Any) -> None:
    """Raise UserError when an argument of `build_multi_image`, which may come from a file, is of a wrong type."""
    if group_until is not None and (not isinstance(group_until, str) or not group_until):
        raise UserError(f"group_until must be a text such as \"_\", not {group_until!r}.")
    if not isinstance(draft, bool):
        raise UserError(f"draft must be true or false, not {draft!r}.")


def until_last(separator: str, name: str) -> str:
    """Return a name up to the last `separator`; all of it when there is none."""
    return name.rpartition(separator)[0] or name


def build_multi_image(
    dirs: Sequence[str],
    *,
    data_dir: str | Path = "",
    kinds: str | Sequence[str] = ("image", "mask"),
    name_ends: Sequence[str] | None = None,
    group_until: str | None = None,
    draft: bool = False,
    white: int | None = None,
    patch_size: int | None = None,
    n_channels: int = 3,
    n_classes: int = 2,
    mask_values: Sequence[int | str] | None = None,
    ignored_values: Sequence[int | str] | None = None,
    mode: str = "direct",
    augment: bool = False,
    skip_bad_samples: int = 0,
    train_val_sample_rate: float = 1.0,
    test_sample_rate: float = 0.1,
    val_split: float = 0.15,
    split_seed: int = 0,
) -> dict[str, MultiImageDataset]:
    """Return the data sets `train`, `val` and `test`, with no group in two of them. For --data_type MultiImage.

    Args:
        dirs: the directories, as seen from `data_dir`.
        data_dir: where they are.
        kinds, name_ends: see `MultiImageDataset`. The values of masks become classes, see `data.masks.scan_masks`.
        group_until: a separator; a name up to its last occurrence is the group. None: each name is a group.
        draft, white: see `extras.image_loader.load_pixels`.
        patch_size: width and height in pixels that images are resized to; None keeps each image's own size.
        n_channels: of images: 3 for RGB, 1 for grey.
        n_classes: the most values that may occur in masks.
        mask_values: the values of masks in the order of the classes, for all directories; None for those found.
        ignored_values: the values of masks that are no class.
        mode: "direct" resizes the images of all parts; "padding" leaves those of val and test at their own size.
        augment: whether to augment the training images, see `augment_jointly`.
        skip_bad_samples: how many masks may be bad, for loaders that skip them.
        train_val_sample_rate, test_sample_rate, val_split, split_seed: see `data.split.split_by_group`.

    Raises:
        UserError: an option out of range, files that are missing or do not fit together, a part that is empty.
    """
    check_options(n_channels, mode, white, patch_size=1 if patch_size is None else patch_size, n_classes=n_classes)
    check_arguments(group_until, draft)
    whole = find_samples(dirs, data_dir, kinds, name_ends, group_until)
    parts = split_by_group(whole.groups, train_val_sample_rate, test_sample_rate, val_split, split_seed)
    class_map = find_classes(whole, n_classes, skip_bad_samples, mask_values, ignored_values)
    using = ", ".join(f"{len(indices):,} for {part}" for part, indices in parts.items())
    whole.summary = f"{len(whole):,} samples of {len(dirs)} images, in {len(set(whole.groups)):,} groups; using {using}"
    datasets = {part: whole.select(indices) for part, indices in parts.items()}
    for part, dataset in datasets.items():
        is_resized = patch_size is not None and (mode == "direct" or part == "train")
        size = (patch_size, patch_size) if is_resized else None
        load = partial(load_pixels, n_channels=n_channels, size=size, draft=draft, white=white)
        load_classes = partial(load_mask, class_map=class_map, size=size)
        dataset.loaders = [load_classes if kind == "mask" else load for kind in whole.kinds]
        dataset.transforms = augment_jointly if augment and part == "train" else None
    return datasets


def find_samples(
    dirs: Sequence[str],
    data_dir: str | Path,
    kinds: str | Sequence[str],
    name_ends: Sequence[str] | None,
    group_until: str | None,
) -> MultiImageDataset:
    """Return all samples; an image and its mask are checked to be of one size."""
    if isinstance(dirs, list | tuple) and all(isinstance(directory, str | Path) for directory in dirs):
        dirs = [Path(data_dir, Path(directory).expanduser()) for directory in dirs]
    group_of = partial(until_last, group_until) if group_until else None
    whole = MultiImageDataset(dirs, kinds=kinds, name_ends=name_ends, group_of=group_of)
    if {"image", "mask"} <= set(whole.kinds):
        whole.check = partial(check_masks, kinds=whole.kinds)
    return whole


def find_classes(
    whole: MultiImageDataset,
    n_classes: int,
    skip_bad_samples: int,
    mask_values: Sequence[int | str] | None,
    ignored_values: Sequence[int | str] | None,
) -> Any:
    """Return what the values of the masks mean, and note it in the data set; None without masks."""
    mask_dirs = [which for which, kind in enumerate(whole.kinds) if kind == "mask"]
    if not mask_dirs:
        return None
    paths = [path for which in mask_dirs for path in whole.files.paths(which)]
    class_map, whole.report = scan_masks(
        paths, n_classes, max_bad=skip_bad_samples, values=mask_values, ignored=ignored_values
    )
    whole.found_options = {"mask_values": class_map.values}
    return class_map
