"""Draw the small sample of FashionMNIST in `data/sample`: equally many images of each class, in the original format.

    python -m tools.synthetic.make_sample --source DIR --output data/sample
"""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.FashionMNIST import CLASSES, FILES, find_files, load_part
from engine.options.parser import OptionParser, file_path, number
from utils.errors import UserError


def choose(labels: Tensor, num_per_class: int, generator: np.random.Generator) -> list[int]:
    """Draw `num_per_class` samples of each class; return their indices in rising order, so the order stays.

    Args:
        labels: (N,) int64.
        num_per_class: how many of each class, at least 1.
        generator: where the chance comes from.
    """
    chosen = []
    for value, name in enumerate(CLASSES):
        of_class = torch.nonzero(labels == value).flatten().tolist()
        if not 1 <= num_per_class <= len(of_class):
            raise UserError(f"{num_per_class} images of class {name!r} were asked for; 1 to {len(of_class)} are there.")
        chosen += generator.choice(of_class, num_per_class, replace=False).tolist()
    return sorted(chosen)


def write_idx(path: Path, array: Tensor) -> None:
    """Write a uint8 tensor as a gzipped IDX file. The gzip header gets no time and no name: same data, same bytes."""
    header = struct.pack(f">4B{array.dim()}I", 0, 0, 0x08, array.dim(), *array.shape)
    with open(path, "wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        packed.write(header + array.numpy().tobytes())


def make_sample(
    source: Path, output: Path, train_per_class: int = 600, test_per_class: int = 100, seed: int = 0
) -> None:
    """Write a stratified sample of the four files in `source` to `output`, under the same names.

    Args:
        source: the directory of the four files, plain or gzipped.
        output: the directory to write to; it is made when it does not exist.
        train_per_class, test_per_class: how many images of each class.
        seed: the seed of the choice, 0 or above.

    Raises:
        UserError: when a file is missing or unfit, a class has too few images, or `output` is `source`.
    """
    if seed < 0:
        raise UserError(f"--seed {seed} is negative; give 0 or above.")
    paths = find_files(source)
    missing = [name for name in FILES if name not in paths]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)} (plain or .gz).")
    if output.resolve() == source.resolve():
        raise UserError(f"--output {output} is the source itself, which the sample would overwrite. Give another one.")
    generator, parts = np.random.default_rng(seed), []
    for prefix, num_per_class in (("train", train_per_class), ("t10k", test_per_class)):
        images, labels = load_part(paths, prefix)
        parts.append((prefix, images, labels, choose(labels, num_per_class, generator)))
    output.mkdir(parents=True, exist_ok=True)
    for prefix, images, labels, chosen in parts:
        write_idx(output / f"{prefix}-images-idx3-ubyte.gz", images[chosen].squeeze(1))  # (n, 28, 28)
        write_idx(output / f"{prefix}-labels-idx1-ubyte.gz", labels[chosen].byte())  # (n,)


def main(arguments: list[str] | None = None) -> int:
    parser = OptionParser(prog="python -m tools.synthetic.make_sample", description=__doc__.splitlines()[0])
    add, whole = parser.add_argument, number(int, low=1)
    add("--source", type=file_path, required=True, help="directory of the four full files, plain or .gz")
    add("--output", type=file_path, required=True, help="directory to write the four small files to")
    add("--train_per_class", type=whole, default=600, help="training images of each class")
    add("--test_per_class", type=whole, default=100, help="test images of each class")
    add("--seed", type=number(int, low=0, high=2**63 - 1), default=0, help="seed of the choice, 0 or above")
    opt = parser.parse_args(arguments)
    try:
        make_sample(Path(opt.source), Path(opt.output), opt.train_per_class, opt.test_per_class, opt.seed)
    except (UserError, OSError) as error:
        print(f"make_sample: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
