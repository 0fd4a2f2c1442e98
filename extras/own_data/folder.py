"""Class folders: `--data_type ImageFolder --data_dir D` reads D/cat/*.jpg, D/dog/*.png, ... at any depth below.

Where D has `train`, and perhaps `val` (or `valid`) and `test`, with the class folders in them, these are the parts.
"""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from data.pairs import EXTENSIONS, shorten
from extras.own_data.images import ImageFiles, make_parts, ordered_classes
from utils.errors import UserError, shown

FOLDERS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
LIKE_PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}


def build_image_folder(
    data_dir: str | Path,
    *,
    n_channels: int | None = None,
    image_size: int | None = None,
    class_names: Sequence[str] | None = None,
    group_until: str | None = None,
    white: int | None = None,
    background: str | None = None,
) -> dict[str, ImageFiles]:
    """Return the parts that the folders make, or all samples as "all".

    Args:
        data_dir: has a folder for each class, or folders of the parts that have these.
        n_channels, image_size, white, background: see `images.read_input`; None for what the files have.
        class_names: the folders in the order of the classes; None for the order of their names.
        group_until: a separator; the name of a file up to its last occurrence is the group, such as a patient. None:
            files of the same content are a group.

    Raises:
        UserError: no directory, no class folders, a class without images, one class only, an unknown class.
    """
    data_dir = Path(data_dir).expanduser()
    if not data_dir.is_dir():
        raise UserError(f"There is no directory {data_dir}. --data_dir names the one with a folder for each class.")
    if group_until is not None and (not isinstance(group_until, str) or not group_until):
        raise UserError(f"data_args.group_until {shown(group_until)} is no text: give a separator such as _.")
    rows, others = {}, []
    for part, folder in part_folders(data_dir).items():
        rows[part], of_part = rows_of(folder, data_dir, group_until)
        others += of_part
    found = sorted({label for part in rows.values() for _, _, label, _ in part})
    classes = ordered_classes(found, class_names, data_dir)
    if missing := sorted(set(found) - {label for _, _, label, _ in rows.get("train", rows.get("all", ()))}):
        raise UserError(f"{data_dir / 'train'} has no folder of the class {shown(missing[0])}, which other parts have.")
    reading = {"n_channels": n_channels, "image_size": image_size, "white": white, "background": background}
    datasets = make_parts(rows, classes, **reading)
    if others:
        for dataset in datasets.values():
            dataset.summary += f"; {len(others):,} other files were passed over: {shorten(others, 3)}"
    return datasets


def part_folders(data_dir: Path) -> dict[str, Path]:
    """Return the folders of the parts by their names; without them, the directory itself as "all".

    Raises:
        UserError: two folders are one part, or the folders look like parts and have other names.
    """
    found = {part: [data_dir / name for name in names if (data_dir / name).is_dir()] for part, names in FOLDERS.items()}
    if found["train"] and folders_in(found["train"][0]):
        for part, folders in found.items():
            if len(folders) > 1:
                raise UserError(f"{folders[0]} and {folders[1]} are both the {part} part: leave one of them.")
            if folders and not folders_in(folders[0]):
                raise UserError(
                    f"{folders[0]} has no class folders. Images without a class are for predict.py: move them out of "
                    f"{data_dir}; then a {part} part is cut from the training images."
                )
        return {part: folders[0] for part, folders in found.items() if folders}
    inside = folders_in(data_dir)
    like = [folder.name for folder in inside if folder.name.lower() in LIKE_PARTS]
    if len(like) == len(inside) > 0 and any(map(folders_in, inside)):
        raise UserError(
            f"The folders {', '.join(like)} in {data_dir} look like parts, not classes: name them train, val and test, "
            f"of which train is needed."
        )
    return {"all": data_dir}


def folders_in(directory: Path) -> list[Path]:
    """Return the folders in a directory that may be classes, as torchvision finds them, without hidden ones."""
    from torchvision.datasets.folder import find_classes

    try:
        names, _ = find_classes(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"The directory {directory} cannot be read: {error.strerror}.") from None
    return [directory / name for name in names if not name.startswith(".") and name != "__MACOSX"]


def rows_of(
    folder: Path, data_dir: Path, group_until: str | None
) -> tuple[list[tuple[str, str, str, str | None]], list[str]]:
    """Return path, name, class and group of each image in class folders, sorted by name; and files that are none."""
    classes = folders_in(folder)
    if not classes:
        raise UserError(f"There are no class folders in {folder}: put the images of each class in a folder of its own.")
    rows, others = [], []
    for directory in classes:
        paths, passed_over = images_below(directory)
        others += passed_over
        if not paths:
            kinds = ", ".join(sorted(EXTENSIONS))
            raise UserError(f"The class folder {directory} has no image, no file that ends in {kinds}. Remove it.")
        label = unicodedata.normalize("NFC", directory.name)
        for path in paths:
            stem = os.path.splitext(os.path.basename(path))[0]
            group = (stem.rpartition(group_until)[0] or stem) if group_until else None
            rows.append((path, os.path.relpath(path, data_dir), label, group))
    return rows, others


def images_below(directory: Path) -> tuple[list[str], list[str]]:
    """Return the image files below a directory at any depth, sorted, and other files; without hidden ones.

    Links are followed, but no directory is visited twice, nor one that the class folder lies in: links make circles.
    """
    images, others = [], []
    seen = {os.path.realpath(directory), *map(os.path.realpath, Path(os.path.abspath(directory)).parents)}
    seen.update(map(str, Path(os.path.realpath(directory)).parents))
    for place, folders, files in os.walk(directory, followlinks=True):
        inside = sorted(name for name in folders if not name.startswith("."))
        folders.clear()
        for name in sorted(inside, key=lambda name: os.path.islink(os.path.join(place, name))):  # links last
            if (real := os.path.realpath(os.path.join(place, name))) not in seen:
                seen.add(real)
                folders.append(name)
        folders.sort()
        for name in sorted(files):
            if name.startswith("."):
                continue
            is_image = os.path.splitext(name)[1][1:].lower() in EXTENSIONS
            (images if is_image else others).append(os.path.join(place, name))
    return images, others
