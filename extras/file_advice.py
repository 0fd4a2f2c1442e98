"""Say why files make no data set: names that do not pair up, masks of more values than classes."""

import difflib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.masks import GREY, codes_text
from data.pairs import shorten
from utils.errors import UserError

WHITE = 255 * GREY
MOST_COMPARED = 1000  # names, to find the nearest


def hint_of_folders(folder: str | Path) -> str:
    """Return a hint where a directory without files has directories, since those are not looked into."""
    with os.scandir(folder) as entries:
        inside = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return f", but it holds directories ({shorten(inside, 3)}), of which one may be meant" if inside else ""


def nearest_names(indexes: Sequence[dict[str, str]]) -> str:
    """Return a hint on two names of two directories that may be meant to be one, such as 'img_01' and 'seg_01'."""
    first, *others = indexes
    for other in others:
        here, there = sorted(first.keys() - other.keys()), sorted(other.keys() - first.keys())
        if here and there:
            nearest = difflib.get_close_matches(here[0], there[:MOST_COMPARED], n=1, cutoff=0)
            return f" The nearest two are {here[0]!r} and {nearest[0]!r}."
    return ""


def shares_of_classes(
    found: Mapping[str | Path, tuple[str, Mapping[int, tuple[Any, int]]]], codes: Sequence[int]
) -> str:
    """Return the share of each class among the pixels of masks, in words; of two classes, the second is the foreground.

    >>> shares_of_classes({"a.png": ("mode L", {0: (None, 30), WHITE: (None, 10)})}, [0, WHITE])
    ' with 75.0 %, 25.0 % of the pixels; the foreground is 255'

    Args:
        found: see `data.masks.scan_files`.
        codes: of the classes, in their order.
    """
    pixels = Counter()
    for _, held in found.values():
        pixels.update({code: count for code, (_, count) in held.items()})
    shares = [f"{pixels[code] / pixels.total():.1%}".replace("%", " %") for code in codes]
    line = f" with {', '.join(shares)} of the pixels"
    return f"{line}; the foreground is {codes_text([codes[1]])}" if len(codes) == 2 else line


def surplus_values(
    found: Mapping[str | Path, tuple[str, Mapping[int, Any]]], files_with: Counter[int], n_classes: int
) -> UserError:
    """Return the error for masks of too many values; it names the file with most of those that few files hold.

    Args:
        found: see `data.masks.scan_files`.
        files_with: in how many files each code occurs.
        n_classes: the most values that may occur.
    """
    allowed = max(n_classes, 2)
    usual = set(sorted(files_with, key=lambda code: (-files_with[code], code not in (0, WHITE)))[:allowed])
    path = max(found, key=lambda path: len(found[path][1].keys() - usual))
    kind, held = found[path]
    hint = f"Give --n_classes {len(files_with)} if each value is a class."
    if {GREY, WHITE} <= files_with.keys():
        hint += " If 1 and 255 are the same class, save those masks alike."
    if len(held) > allowed:
        hint += " If they come from smoothed edges or JPEG, save the masks again without them, as PNG."
    return UserError(
        f"The masks hold {len(files_with)} values ({codes_text(sorted(files_with))}), but --n_classes {n_classes} "
        f"allows {allowed}. Most hold {codes_text(sorted(usual))}, but {path} ({kind}) holds "
        f"{codes_text(sorted(held))}.\n{hint}"
    )
