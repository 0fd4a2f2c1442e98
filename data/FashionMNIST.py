"""FashionMNIST: 70,000 grey pictures of clothes, 28 x 28 pixels, in ten classes; held in memory.

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
https://arxiv.org/abs/1708.07747. `data/sample` holds a tenth of it, so that a first run needs no download.
"""

import contextlib
import gzip
import hashlib
import math
import os
import shutil
import socket
import struct
import tempfile
import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.split import amount, flatten, shuffled_groups, split_by_group, take
from engine.runs.lock import locked
from utils.errors import UserError

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# SHA-256 of each file as it is after decompression: gzip stores a time and a name, so two good .gz files may differ.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

SAMPLE_DIR = Path(__file__).parent / "sample"
UNSIGNED_BYTE = 0x08
CHUNK = 1 << 20
MAX_BYTES = 1 << 30  # the largest of the four files has 47 million bytes
TIMEOUT = 20  # seconds of silence after which a mirror counts as out of reach
SCRATCH = ".download_"  # begins the name of a directory of files that are not whole yet


def read_idx(path: str | Path, digest: str | None = None) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or gzipped.

    The format: two zero bytes, the type of the elements, the number of dimensions, each dimension as a big-endian
    32-bit number, then the elements (http://yann.lecun.com/exdb/mnist/).

    Args:
        path: the file; whether it is gzipped is seen from its first bytes, not from its name.
        digest: SHA-256 that the decompressed content must have, in hexadecimal; None takes any content.

    Returns:
        uint8 tensor in the shape that the file states.

    Raises:
        UserError: when the file cannot be read, is empty, foreign, truncated, too long, or not the expected one.
    """
    try:
        with open(path, "rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        with (gzip.open if is_gzip else open)(path, "rb") as file:
            header, shape = read_header(file, path)
            size = math.prod(shape)
            if size > MAX_BYTES:
                raise UserError(f"{path} states a size of {size} bytes; at most {MAX_BYTES} are read. Get it again.")
            # The header may lie, so memory grows with what is there and stops one chunk beyond what was stated.
            content = bytearray()
            while len(content) <= size and (chunk := file.read(CHUNK)):
                content += chunk
    except EOFError:
        raise UserError(f"{path} is truncated: its gzip stream breaks off. Get the file again.") from None
    except (OSError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if len(content) != size:
        problem = "truncated" if len(content) < size else "too long"
        raise UserError(f"{path} is {problem}: its header states {size} bytes of data, shape {shape}. Get it again.")
    if size == 0:
        raise UserError(f"{path} holds no samples: its header states the shape {shape}.")
    if digest is not None:
        actual = hashlib.sha256(header)
        actual.update(content)
        if actual.hexdigest() != digest:
            raise UserError(f"{path} is not the original file: its SHA-256 differs. Delete it and get it again.")
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape)


def read_header(file, path: str | Path) -> tuple[bytes, tuple[int, ...]]:
    """Read the header of an open IDX file: return its bytes and the shape in it."""
    magic = file.read(4)
    if not magic:
        raise UserError(f"{path} is empty. Get the file again.")
    if len(magic) < 4 or magic[:3] != bytes([0, 0, UNSIGNED_BYTE]) or magic[3] == 0:
        raise UserError(f"{path} is not an IDX file of unsigned bytes: it begins with {magic.hex(' ')}, not 00 00 08.")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise UserError(f"{path} is truncated: it ends within its header. Get the file again.")
    return magic + sizes, struct.unpack(f">{magic[3]}I", sizes)


def find_files(directory: Path) -> dict[str, Path]:
    """Return the path of each of the four files that is in `directory`, the plain file before the gzipped one."""
    found = {}
    for name in SHA256:
        for path in (directory / f"{name}.gz", directory / name):
            if os.path.isfile(path):
                found[name] = path
    return found


def find_or_download(data_dir: str | Path) -> dict[str, Path]:
    """Return the paths of the four files, keyed by their original names; download them when none is there.

    Looks in `data_dir/FashionMNIST/raw`, where torchvision keeps them, and in `data_dir` itself.

    Raises:
        UserError: when some of the four are missing, or none is there and the download fails.
    """
    data_dir = Path(data_dir).expanduser()
    places = {place: find_files(place) for place in (data_dir / "FashionMNIST" / "raw", data_dir)}
    for found in places.values():
        if len(found) == len(SHA256):
            return found
    for place, found in places.items():
        if found:
            missing = ", ".join(name for name in SHA256 if name not in found)
            raise UserError(
                f"{place} holds only a part of FashionMNIST; missing: {missing} (plain or .gz).\n"
                f"Add what is missing, or remove the rest to download all of it."
            )
    return download(data_dir)


def download(data_dir: Path) -> dict[str, Path]:
    """Download the four files with torchvision into its own layout under `data_dir` and return their paths.

    They come into a scratch directory, are checked there, and move all at once, so that an interrupted download leaves
    nothing behind that a later run would trust. Of several processes one downloads; the others wait for it.
    """
    raw = data_dir / "FashionMNIST" / "raw"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with locked(data_dir / ".FashionMNIST.lock", f"downloads FashionMNIST into {data_dir}") as is_alone:
            found = find_files(raw)
            if len(found) == len(SHA256):  # another process was faster
                return found
            for left_over in data_dir.glob(f"{SCRATCH}*") if is_alone else ():  # by a process that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            if raw.is_dir() and (others := os.listdir(raw)):
                raise UserError(f"FashionMNIST is to be downloaded into {raw}, but {others[0]} is there. Remove it.")
            with tempfile.TemporaryDirectory(dir=data_dir, prefix=SCRATCH) as scratch:
                whole = fetch(Path(scratch))
                raw.parent.mkdir(exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    raw.rmdir()  # an empty one would be in the way on Windows
                whole.rename(raw)
    except (RuntimeError, OSError, HTTPException) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(
            f"FashionMNIST is not in {data_dir}, and the download failed: {reason}\n"
            f"Put its four files there, or take the sample that comes with the code: --data_type FashionMNISTSample"
        ) from None
    return find_files(raw)


def fetch(scratch: Path) -> Path:
    """Download into `scratch`; return a directory in it with the four files alone, checked to be the original ones."""
    from torchvision import datasets

    earlier_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        datasets.FashionMNIST(scratch, download=True)
    finally:
        socket.setdefaulttimeout(earlier_timeout)
    whole = scratch / "whole"
    whole.mkdir()
    for name, digest in SHA256.items():
        path = scratch / "FashionMNIST" / "raw" / name
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise UserError(f"The download of {name} is not the original file: its SHA-256 differs. Try again.")
        path.rename(whole / name)
    return whole


def load_part(paths: dict[str, Path], prefix: str, digests: dict[str, str]) -> tuple[Tensor, Tensor]:
    """Read the pictures and labels of one part.

    Args:
        paths: the four paths, see `find_or_download`.
        prefix: "train" or "t10k".
        digests: the SHA-256 of each file by name; a name that is not in it is not checked.

    Returns:
        images, (N, 1, 28, 28) uint8, 0 is the black background; labels, (N,) int64, 0 to 9.
    """
    image_name, label_name = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    images = read_idx(paths[image_name], digests.get(image_name))
    labels = read_idx(paths[label_name], digests.get(label_name))
    if images.shape[1:] != (28, 28):
        raise UserError(f"{paths[image_name]} holds data of shape {tuple(images.shape)}, not pictures of 28 x 28.")
    if labels.shape != images.shape[:1]:
        raise UserError(f"{paths[label_name]} has the shape {tuple(labels.shape)}, for {len(images)} pictures.")
    if labels.max() >= len(CLASSES):
        raise UserError(f"{paths[label_name]} holds the label {int(labels.max())}, above the last class, 9.")
    return images.unsqueeze(1), labels.long()


def already_batched(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The collate function of a data set whose `__getitems__` returns a whole batch: nothing is left to do."""
    return batch


class FashionMNIST(Dataset):
    """Pictures and labels in memory, one byte a pixel.

    A batch is gathered in one go by `__getitems__`, which is many times faster than stacking single samples. A loader
    needs the fitting `collate_fn`:

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
    report = ""

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

    Args:
        data_dir: where the files are, or go when they have to be downloaded, see `find_or_download`.
        train_val_sample_rate, test_sample_rate, val_split, split_seed: how to cut, see `build_parts`.
    """
    paths = find_or_download(data_dir)
    return build_parts(paths, SHA256, train_val_sample_rate, test_sample_rate, val_split, split_seed)


def build_fashion_mnist_sample(
    *,
    train_val_sample_rate: float = 1.0,
    test_sample_rate: float = 1.0,
    val_split: float = 0.15,
    split_seed: int = 0,
) -> dict[str, FashionMNIST]:
    """Build the parts "train", "val" and "test" of the sample in `data/sample`, 6,000 and 1,000 pictures.

    Args:
        train_val_sample_rate, test_sample_rate, val_split, split_seed: how to cut, see `build_parts`.
    """
    paths = find_files(SAMPLE_DIR)
    if len(paths) < len(SHA256):
        raise UserError(f"{SAMPLE_DIR} lacks some of its four files. Take them again from the repository.")
    return build_parts(paths, {}, train_val_sample_rate, test_sample_rate, val_split, split_seed)


def build_parts(
    paths: dict[str, Path],
    digests: dict[str, str],
    train_val_sample_rate: float,
    test_sample_rate: float,
    val_split: float,
    split_seed: int,
) -> dict[str, FashionMNIST]:
    """Read the four files and cut them into "train", "val" and "test".

    Train and val are cut from the training file, test comes from the test file. Every part holds the classes in
    nearly equal shares.

    Args:
        paths: the four paths, see `find_or_download`.
        digests: the SHA-256 of each file by name, see `load_part`.
        train_val_sample_rate: fraction (0 to 1) or count (above 1) of the training file to use.
        test_sample_rate: fraction or count of the test file to use.
        val_split: fraction or count of the used training samples that become the validation part.
        split_seed: the seed of the choice.

    Raises:
        UserError: when a file is unfit or a part would be empty.
    """
    images, labels = load_part(paths, "train", digests)
    test_images, test_labels = load_part(paths, "t10k", digests)

    samples = range(len(labels))
    chosen = split_by_group(samples, train_val_sample_rate, 0, val_split, split_seed, strata=labels.tolist())
    order = shuffled_groups(range(len(test_labels)), split_seed, strata=test_labels.tolist())
    test, _ = take(order, amount(test_sample_rate, len(test_labels), "--test_sample_rate"))
    if not test:
        raise UserError(f"The test part is empty: --test_sample_rate {test_sample_rate:g} of {len(order)} samples.")
    chosen["test"] = flatten(test)

    summary = (
        f"{len(chosen['train']):,} train and {len(chosen['val']):,} val of {len(labels):,} training images, "
        f"{len(chosen['test']):,} test of {len(test_labels):,} test images"
    )
    return {
        "train": pick(images, labels, chosen["train"], "train", summary),
        "val": pick(images, labels, chosen["val"], "train", summary),
        "test": pick(test_images, test_labels, chosen["test"], "test", summary),
    }


def pick(images: Tensor, labels: Tensor, indices: list[int], file: str, summary: str) -> FashionMNIST:
    """Make a data set of the chosen samples; `file` ("train" or "test") says which file the indices count in."""
    names = [f"{file}/{index:05d}" for index in indices]
    return FashionMNIST(images[indices], labels[indices], names, summary)
