"""Texts of unequal length as samples: their words as numbers, padded to the longest text of a batch.

The verses in data/sample/verses.csv are of the King James Version, see the README there. A verse is of the law, the
prophets, the gospels or the letters; most are of the gospels, few of the letters. The verses of a chapter are a group.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from engine.registry import register_data
from extras.own_data.cells import Cells, find_tables, read_cells
from extras.own_data.table import check_columns, check_target, classes_of, group_of
from utils.errors import UserError

VERSES = Path(__file__).resolve().parent.parent / "data" / "sample" / "verses.csv"
NUM_NUMBERS = 8192  # a word gets one of these by its letters alone, so that no list of words is needed
MOST_WORDS = 500


def numbers_of(text: str) -> Tensor:
    """Return a number for each word of a text, (L,) int64 from 1 on; 0 is padding. A text without words is a 1."""
    words = re.findall(r"\w+", text.lower())[:MOST_WORDS]
    return torch.tensor([2 + crc32(word.encode()) % (NUM_NUMBERS - 2) for word in words] or [1])


def padded(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Return a batch of samples: words (N, L), zeros behind the shorter texts, and classes (N,)."""
    words, labels = zip(*samples, strict=True)
    return pad_sequence(words, batch_first=True), torch.tensor(labels)


class Texts(Dataset):
    """The texts in a column of a table, with their classes; the template cuts them into parts by their groups."""

    is_random = False
    collate_fn = staticmethod(padded)

    def __init__(self, cells: Cells, text: str, target: str, classes: Sequence[str], groups: Sequence[str]):
        self.texts = cells.columns[text].texts
        self.names = cells.rows
        self.groups = groups
        self.targets = [classes.index(label) for label in cells.columns[target].texts]
        self.found_options = {"n_classes": len(classes), "class_names": list(classes)}
        counts = Counter(cells.columns[target].texts)
        self.report = f"{len(self.texts):,} texts: " + ", ".join(f"{name} {counts[name]:,}" for name in classes)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return numbers_of(self.texts[index]), self.targets[index]


@register_data("Text")
def build_texts(data_dir: str, target: str, text: str, group: str | None = None, class_names=None) -> dict[str, Texts]:
    """Return the texts of a CSV file; equal ones are a group unless a column says otherwise."""
    if not (text and target):
        raise UserError(f"--text and --target name the columns of {data_dir} with the texts and with their classes.")
    cells = {part: read_cells(path) for part, path in find_tables(data_dir).items()}
    for part in cells.values():
        check_columns([text, target, *filter(None, [group])], part, "--text, --target or --group")
    classes = classes_of(check_target(cells, target), next(iter(cells.values())).path, True, class_names)
    return {part: Texts(rows, text, target, classes, group_of(rows, group, [text])) for part, rows in cells.items()}


@register_data("Verses")
def build_verses(class_names: list | None = None) -> dict[str, Texts]:
    return build_texts(VERSES, "section", "text", "chapter", class_names)
