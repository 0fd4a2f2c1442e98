"""The data of the benchmarks: FashionMNIST in full, or something of its shape where its files are missing."""

import sys
from pathlib import Path

import torch

from utils.errors import UserError

STANDS_IN = (
    "FashionMNIST is not in {}: the sample in data/sample, each picture ten times, stands in for it. "
    "Times are as with the original; losses and accuracies are not."
)


def prepare_data(data_dir: str, scratch: str | Path, may_stand_in: bool = True) -> str:
    """Return a directory with the four files: `data_dir`, or `scratch`, filled with what stands in for them.

    Args:
        data_dir: where the original files should be.
        scratch: an empty directory.
        may_stand_in: False raises UserError instead.
    """
    from data import FashionMNIST as module

    if any(len(module.find_files(place)) == 4 for place in (Path(data_dir), Path(data_dir) / "FashionMNIST" / "raw")):
        return data_dir
    if not may_stand_in:
        raise UserError(f"FashionMNIST is not in {data_dir}: put its four files there, and name it by --data_dir.")
    print(STANDS_IN.format(data_dir), file=sys.stderr)
    for name, path in module.find_files(module.SAMPLE_DIR).items():
        content = module.read_idx(path)
        copies = [content.clone() for _ in range(10)]
        if content.ndim == 3:  # pictures: a pixel in the corner makes each another one, or validation would be refused
            for number, copy in enumerate(copies):
                copy[:, 0, 0] = number
        content = torch.cat(copies)
        sizes = b"".join(size.to_bytes(4, "big") for size in content.shape)
        Path(scratch, name).write_bytes(bytes([0, 0, 8, content.ndim]) + sizes + content.numpy().tobytes())
    return str(scratch)


def load_parts(data_dir: str, flags: dict[str, float]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Images (N, 1, 28, 28) uint8 and labels (N,) of "train", "val" and "test", cut as the trainer cuts them.

    Args:
        data_dir: where the four files are.
        flags: train_val_sample_rate and val_split, as in the trainer.
    """
    from data.FashionMNIST import build_fashion_mnist

    parts = build_fashion_mnist(data_dir, **flags)
    return {name: (part.images, part.labels) for name, part in parts.items()}
