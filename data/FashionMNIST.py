"""FashionMNIST: 70,000 grey pictures of clothes, 28 x 28 pixels, in ten classes; held in memory.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
https://arxiv.org/abs/1708.07747. `data/sample` holds a tenth of it, so that a first run needs no download.
"""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.split import flatten, shuffled_groups, split_by_group, take
from engine.registry import load
from utils.errors import UserError

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SAMPLE_DIR = Path(__file__).parent / "sample"


def read_idx(path: str | Path) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or gzipped, as uint8 in the shape that the file states.

    The format: two zero bytes, the type of the elements (8), the number of dimensions, each dimension as a big-endian
    32-bit number, then the elements (http://yann.lecun.com/exdb/mnist/).

    Raises:
        UserError: when the file cannot be read, or is not a whole IDX file.
    """
    try:
        content = Path(path).read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        *kind, num_dimensions = struct.unpack_from(">3sB", content)
        if kind != [b"\0\0\x08"]:
            raise ValueError(f"it begins with {content[:3].hex(' ')}, not 00 00 08")
        shape = struct.unpack_from(f">{num_dimensions}I", content, 4)
        return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * num_dimensions).reshape(shape)
    except (OSError, EOFError, RuntimeError, ValueError, struct.error, zlib.error) as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"{path} is not an IDX file of unsigned bytes: {why}. Remove it, and get it again.") from None


def find_files(directory: Path) -> dict[str, Path]:
    """Return the path of each of the four files that is in `directory`, plain or as .gz, by its original name."""
    paths = [(name, directory / f"{name}{end}") for name in FILES for end in (".gz", "")]
    return {name: path for name, path in paths if path.is_file()}


def find_all_files(data_dir: str | Path) -> dict[str, Path]:
    """Return the paths of the four files, in `data_dir` or where torchvision keeps them below; {} if one is missing."""
    for place in (Path(data_dir, "FashionMNIST", "raw"), Path(data_dir)):
        if len(files := find_files(place)) == len(FILES):
            return files
    return {}


def find_or_download(data_dir: str | Path) -> dict[str, Path]:
    """Return the paths of the four files; torchvision downloads them when they are not there.

    Raises:
        UserError: when files are missing and cannot be downloaded.
    """
    if files := find_all_files(data_dir):
        return files
    if data_dir == SAMPLE_DIR:
        raise UserError(f"{SAMPLE_DIR} lacks some of its four files. Take them again from the repository.")
    load("extras.download_fashion_mnist:download", "data_type")(Path(data_dir))
    return find_all_files(data_dir)


def load_part(files: dict[str, Path], prefix: str) -> tuple[Tensor, Tensor]:
    """Read the pictures and labels of one part.

    Args:
        files: the paths of the four files by name.
        prefix: "train" or "t10k".

    Returns:
        images, (N, 1, 28, 28) uint8, 0 is the black background; labels, (N,) int64, 0 to 9.
    """
    image_path, label_path = (path for name, path in files.items() if name.startswith(prefix))
    images = read_idx(image_path)
    labels = read_idx(label_path)
    if images.shape[1:] != (28, 28):
        raise UserError(f"{image_path} holds data of shape {tuple(images.shape)}, not pictures of 28 x 28.")
    if labels.shape != images.shape[:1] or labels.max() >= len(CLASSES):
        raise UserError(f"{label_path} does not hold a label from 0 to 9 for each of {len(images)} pictures.")
    return images.unsqueeze(1), labels.long()


def already_batched(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the batch: the collate function of a data set whose `__getitems__` collates."""
    return batch


class FashionMNIST(Dataset):
    """Pictures and labels in memory, one byte a pixel.

    `__getitems__` gathers a whole batch, which is many times faster than stacking single samples. A DataLoader needs
    the `collate_fn` that fits:

        DataLoader(dataset, batch_size=128, collate_fn=dataset.collate_fn)

    Args:
        images: (N, 1, 28, 28) uint8.
        labels: (N,) int64, 0 to 9.
        names: the name of each sample, such as "train/00017": the file and the index in it.
        summary: one line for the log on how many samples each part holds.
    """

    collate_fn = staticmethod(already_batched)
    is_random = False  # a sample is the same each time: there is no augmentation
    in_memory = True
    found_options = {"n_channels": 1, "n_classes": len(CLASSES), "class_names": list(CLASSES)}

    def __init__(self, images: Tensor, labels: Tensor, names: Sequence[str], summary: str = ""):
        self.images = images
        self.labels = labels
        self.names = names
        self.summary = summary
        self.white = torch.tensor(255.0, device=self.device)  # by a plain 255 a GPU does not divide: it multiplies

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the pictures and labels are."""
        return self.labels.device

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the pictures and labels take."""
        return self.images.nbytes + self.labels.nbytes

    def to(self, device: torch.device | str) -> "FashionMNIST":
        """Return the same samples, held on `device`."""
        return FashionMNIST(self.images.to(device), self.labels.to(device), self.names, self.summary)

    @property
    def groups(self) -> list[str]:
        """Each sample is its own group, named by its pixels: so the same picture has one name in any file."""
        return [hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest() for image in self.images.numpy()]

    def fingerprint(self) -> str:
        """SHA-256 of the pixels and labels."""
        digest = hashlib.sha256(self.images.numpy())
        digest.update(self.labels.numpy())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one image, (1, 28, 28) float32 in [0, 1], and its label, () int64."""
        images, labels = self.__getitems__([range(len(self))[index]])  # range knows -1, and what is out of range
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the images, (B, 1, 28, 28) float32 in [0, 1], and the labels, (B,) int64, of a whole batch."""
        indices = torch.as_tensor(indices, device=self.device)
        images = self.images.index_select(0, indices)  # (B, 1, 28, 28) uint8; twice as fast as images[indices]
        return images.float().div_(self.white), self.labels.index_select(0, indices)


def build_fashion_mnist(
    data_dir: str | Path,
    *,
    train_val_sample_rate: float = 1.0,
    test_sample_rate: float = 1.0,
    val_split: float = 0.15,
    split_seed: int = 0,
) -> dict[str, FashionMNIST]:
    """Build the parts "train", "val" and "test" of the full data set, 60,000 and 10,000 pictures.

    Train and val are cut from the training file, test comes from the test file. Every part holds the classes in nearly
    equal shares.

    Args:
        data_dir: where the files are, or go when they have to be downloaded, see `find_or_download`.
        train_val_sample_rate: fraction (0 to 1) or count (above 1) of the training file to use.
        test_sample_rate: fraction or count of the test file to use.
        val_split: fraction or count of the used training samples that become the validation part.
        split_seed: the seed of the choice.

    Raises:
        UserError: when a file is unfit or a part would be empty.
    """
    files = find_or_download(data_dir)
    train = ("train", *load_part(files, "train"))
    test = ("test", *load_part(files, "t10k"))
    labels, test_labels = train[-1], test[-1]

    chosen = split_by_group(range(len(labels)), train_val_sample_rate, 0, val_split, split_seed, labels)
    groups = shuffled_groups(range(len(test_labels)), split_seed, test_labels)
    chosen["test"] = flatten(take(groups, test_sample_rate, "--test_sample_rate")[0])
    if not chosen["test"]:
        raise UserError(f"The test part is empty: --test_sample_rate {test_sample_rate:g} of {len(groups)} samples.")
    summary = (
        f"{len(chosen['train']):,} train and {len(chosen['val']):,} val of {len(labels):,} training images, "
        f"{len(chosen['test']):,} test of {len(test_labels):,} test images"
    )

    datasets = {}
    for part, (file, images, labels) in {"train": train, "val": train, "test": test}.items():
        indices = chosen[part]
        names = [f"{file}/{index:05d}" for index in indices]
        datasets[part] = FashionMNIST(images[indices], labels[indices], names, summary)
    return datasets


# The sample in `data/sample`, 6,000 and 1,000 pictures, with the other arguments of `build_fashion_mnist`.
build_fashion_mnist_sample = partial(build_fashion_mnist, SAMPLE_DIR)
build_fashion_mnist_sample.__name__ = "build_fashion_mnist_sample"  # for messages
