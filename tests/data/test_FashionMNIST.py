"""Reading, finding, downloading and cutting FashionMNIST, on made-up files and on the sample."""

import gzip
import http.client
import pickle
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch.utils.data import DataLoader

from data import FashionMNIST as module
from data.data_entry import with_found
from data.FashionMNIST import (
    CLASSES,
    FILES,
    SAMPLE_DIR,
    FashionMNIST,
    already_batched,
    build_fashion_mnist,
    build_fashion_mnist_sample,
    find_or_download,
    read_idx,
)
from engine.options.parser import Options, changed
from utils.errors import UserError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES


def idx(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def made_up_contents(num_train=200, num_test=50):
    """Four files, in which the first two pixels of an image spell its index."""
    contents = {}
    for count, images, labels in ((num_train, TRAIN_IMAGES, TRAIN_LABELS), (num_test, TEST_IMAGES, TEST_LABELS)):
        chance = np.random.default_rng(count)
        pixels = chance.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        pixels[:, 0, 0], pixels[:, 0, 1] = np.arange(count) // 256, np.arange(count) % 256
        contents[images] = idx(pixels)
        contents[labels] = idx(chance.permutation(np.arange(count) % 10).astype(np.uint8))
    return contents


@pytest.fixture
def contents():
    return made_up_contents()


def put(directory, contents, is_gzip=False):
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (directory / (name + ".gz" * is_gzip)).write_bytes(gzip.compress(data) if is_gzip else data)
    return directory


# --- read_idx


@pytest.mark.parametrize("shape", [(7,), (2, 28, 28), (2, 3, 4, 5)])
def test_read_idx_gives_what_was_written_plain_or_gzipped(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "packed.misnamed").write_bytes(gzip.compress(idx(array)))
    for path in tmp_path.iterdir():
        tensor = read_idx(path)
        assert tensor.dtype == torch.uint8
        assert np.array_equal(tensor.numpy(), array)


GOOD = idx(np.zeros((3, 28, 28), np.uint8))
PACKED = gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)))
BAD_FILES = {
    "empty": b"",
    "empty inside the gzip": gzip.compress(b""),
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "floats": b"\0\0\x0d\x01" + struct.pack(">If", 1, 1.0),
    "no dimension": b"\0\0\x08\0",
    "ends in the header": GOOD[:10],
    "one byte short": GOOD[:-1],
    "one byte long": GOOD + b"\0",
    "no samples": idx(np.zeros((0, 28, 28), np.uint8)),
    "gzip breaks off": PACKED[:-100],
    "gzip checksum": PACKED[:-8] + bytes(4) + PACKED[-4:],
    "gzip garbage": PACKED[:10] + b"\xff" * 200,
    "absurd header": b"\0\0\x08\x03" + b"\xff" * 12 + bytes(100),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_unfit_file_is_one_line_that_names_it(tmp_path, kind):
    (tmp_path / "some-file").write_bytes(BAD_FILES[kind])
    with pytest.raises(UserError, match=r"some-file is not an IDX file of unsigned bytes: .+\. Remove it") as caught:
        read_idx(tmp_path / "some-file")
    assert "\n" not in str(caught.value)


def test_missing_file_and_directory_are_errors(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match=path.name):
            read_idx(path)


# --- find_or_download


@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("is_gzip", [False, True])
def test_files_are_found_in_both_layouts_plain_or_gzipped(tmp_path, contents, layout, is_gzip):
    put(tmp_path / layout, contents, is_gzip)
    paths = find_or_download(tmp_path)
    assert list(paths) == list(FILES)
    assert all(path.parent == tmp_path / layout for path in paths.values())
    assert len(build_fashion_mnist(tmp_path)["test"]) == 50


def test_plain_file_is_taken_before_the_gzipped_one(tmp_path, contents):
    put(tmp_path, contents, is_gzip=True)
    put(tmp_path, contents)
    assert {path.suffix for path in find_or_download(tmp_path).values()} == {""}


def fake_torchvision(monkeypatch, contents, error=None):
    """Put a data set in torchvision's place that writes these files, then fails with `error`."""

    def download(root, download):
        assert download and 0 < socket.getdefaulttimeout() <= 60
        put(Path(root) / "FashionMNIST" / "raw", contents)
        if error is not None:
            raise error

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)


def test_download_ends_in_the_layout_of_torchvision(tmp_path, contents, monkeypatch):
    fake_torchvision(monkeypatch, contents)
    paths = find_or_download(tmp_path / "new" / "directory")
    raw = tmp_path / "new" / "directory" / "FashionMNIST" / "raw"
    assert sorted(raw.iterdir()) == sorted(paths.values())
    fake_torchvision(monkeypatch, {}, RuntimeError("nothing is downloaded twice"))
    assert find_or_download(tmp_path / "new" / "directory") == paths


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Error downloading train-images:\nTried http://one, got:\nno route\n"),
        OSError(28, "no route to the mirror, or no room"),
        http.client.IncompleteRead(b""),
        TimeoutError("timed out"),
    ],
)
def test_failed_download_is_one_error_that_names_the_way_out(tmp_path, contents, monkeypatch, capfd, error):
    fake_torchvision(monkeypatch, dict(list(contents.items())[:3]), error)
    with pytest.raises(UserError) as caught:
        find_or_download(tmp_path)
    message = str(caught.value)
    assert "--data_type FashionMNISTSample" in message and f"missing: {TEST_LABELS}" in message
    assert message.count("\n") <= 1
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    assert capfd.readouterr() == ("", "")
    assert socket.getdefaulttimeout() is None
    fake_torchvision(monkeypatch, contents)
    assert len(find_or_download(tmp_path)) == 4


def test_place_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--data_type FashionMNISTSample"):
        find_or_download(tmp_path / "file" / "data")


# --- the data set


@pytest.fixture(scope="module")
def sample():
    return build_fashion_mnist_sample()


def test_single_samples_and_batches_have_the_same_bits(sample):
    dataset = sample["val"]
    indices = [5, 0, len(dataset) - 1, 5]
    images, labels = dataset.__getitems__(indices)
    assert images.shape == (4, 1, 28, 28) and images.dtype == torch.float32
    assert labels.shape == (4,) and labels.dtype == torch.int64
    assert images.min() == 0 and images.max() == 1
    for row, index in enumerate(indices):
        image, label = dataset[index]
        assert image.shape == (1, 28, 28) and image.dtype == torch.float32
        assert label.shape == () and label.dtype == torch.int64
        assert torch.equal(image, images[row]) and torch.equal(label, labels[row])


def test_data_set_is_held_as_bytes(sample):
    assert sample["test"].images.dtype == torch.uint8 and sample["test"].images.shape == (1000, 1, 28, 28)
    assert sample["test"].labels.dtype == torch.int64


def test_what_is_fetched_can_be_changed_without_changing_the_data(sample):
    dataset = sample["val"]
    before = dataset.images.clone(), dataset.labels.clone()
    for image, label in (dataset[3], dataset.__getitems__([3, 4])):
        image.zero_(), label.fill_(99)
    assert torch.equal(dataset.images, before[0]) and torch.equal(dataset.labels, before[1])


def test_indices_are_those_of_a_sequence(sample):
    three = FashionMNIST(sample["val"].images[:3], sample["val"].labels[:3], ["a", "b", "c"])
    assert torch.equal(three[-1][0], three[2][0])
    assert len(list(three)) == 3
    for index in (3, -4):
        with pytest.raises(IndexError):
            three[index]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_takes_whole_batches(sample, num_workers):
    dataset = sample["val"]
    assert dataset.collate_fn is already_batched
    loader = DataLoader(dataset, batch_size=400, num_workers=num_workers, collate_fn=dataset.collate_fn)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [400, 400, 100]
    assert torch.equal(torch.cat([images for images, _ in batches]), dataset.images / 255)
    assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.labels)


def test_data_set_survives_pickling(sample):
    again = pickle.loads(pickle.dumps(sample["val"]))
    assert torch.equal(again[7][0], sample["val"][7][0])
    assert again.names == sample["val"].names and again.collate_fn is already_batched


def test_pictures_and_labels_are_those_that_torchvision_reads(tmp_path, sample):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in SAMPLE_DIR.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    for part, is_train in (("val", True), ("test", False)):
        oracle = torchvision.datasets.FashionMNIST(tmp_path, train=is_train)
        indices = [int(name.split("/")[1]) for name in sample[part].names]
        assert torch.equal(sample[part].images[:, 0], oracle.data[indices])
        assert torch.equal(sample[part].labels, oracle.targets[indices])
    assert list(CLASSES) == oracle.classes


# --- the parts


def test_sample_holds_six_hundred_and_one_hundred_of_each_class(sample):
    labels = torch.cat([sample["train"].labels, sample["val"].labels])
    assert labels.bincount().tolist() == [600] * 10
    assert sample["test"].labels.bincount().tolist() == [100] * 10
    assert sum(path.stat().st_size for path in SAMPLE_DIR.iterdir()) < 4 * 2**20


def test_parts_are_disjoint_stratified_and_described(sample):
    assert {name: len(part) for name, part in sample.items()} == {"train": 5100, "val": 900, "test": 1000}
    assert not set(sample["train"].names) & set(sample["val"].names)
    assert sample["val"].labels.bincount().tolist() == [90] * 10
    for part in sample.values():
        assert len(part.groups) == len(set(part.groups)) == len(part.names) == len(part)
        assert part.is_random is False
        assert all(number in part.summary for number in ("5,100 train", "900 val", "1,000 test"))


def test_names_say_where_in_its_file_a_sample_is(tmp_path, contents):
    put(tmp_path, contents)
    parts = build_fashion_mnist(tmp_path, test_sample_rate=0.5)
    for part, file in (("train", "train"), ("val", "train"), ("test", "test")):
        pixels = parts[part].images.int()
        spelled = pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 0, 1]
        assert parts[part].names == [f"{file}/{index:05d}" for index in spelled.tolist()]


def test_group_is_named_by_the_picture_whatever_the_file(sample):
    few = FashionMNIST(sample["val"].images[5:8], sample["val"].labels[5:8], ["x/0", "x/1", "x/2"])
    assert few.groups == sample["val"].groups[5:8]
    assert not set(sample["test"].groups) & set(sample["train"].groups + sample["val"].groups)


def test_amounts_and_seed_choose_the_samples(tmp_path, contents):
    put(tmp_path, contents)
    amounts = {"train_val_sample_rate": 0.5, "test_sample_rate": 20, "val_split": 10}
    parts = build_fashion_mnist(tmp_path, **amounts, split_seed=1)
    assert {name: len(part) for name, part in parts.items()} == {"train": 90, "val": 10, "test": 20}
    for part in parts.values():
        assert part.labels.bincount(minlength=10).tolist() == [len(part) // 10] * 10
    again, other = build_fashion_mnist(tmp_path, **amounts, split_seed=1), build_fashion_mnist(tmp_path, **amounts)
    for name, part in parts.items():
        assert again[name].names == part.names
        assert other[name].names != part.names


@pytest.mark.parametrize(
    "options, message",
    [
        ({"test_sample_rate": 0}, "test part is empty.*--test_sample_rate 0"),
        ({"test_sample_rate": 51}, "--test_sample_rate 51"),
        ({"val_split": 0}, "val part is empty"),
        ({"train_val_sample_rate": 201}, "--train_val_sample_rate 201"),
    ],
)
def test_impossible_amount_is_an_error(tmp_path, contents, options, message):
    put(tmp_path, contents)
    with pytest.raises(UserError, match=message):
        build_fashion_mnist(tmp_path, **options)


@pytest.mark.parametrize(
    "name, array, message",
    [
        (TRAIN_IMAGES, np.zeros((200, 32, 32), np.uint8), "28 x 28"),
        (TRAIN_IMAGES, np.zeros(200, np.uint8), "28 x 28"),
        (TRAIN_LABELS, np.zeros(199, np.uint8), "of 200 pictures"),
        (TRAIN_LABELS, np.full(200, 10, np.uint8), "label from 0 to 9"),
    ],
)
def test_files_that_do_not_fit_together_are_an_error(tmp_path, contents, name, array, message):
    put(tmp_path, {**contents, name: idx(array)})
    with pytest.raises(UserError, match=message) as caught:
        build_fashion_mnist(tmp_path)
    assert name in str(caught.value)


def test_incomplete_sample_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "find_files", lambda directory: {})
    with pytest.raises(UserError, match="lacks"):
        build_fashion_mnist_sample()


@pytest.mark.parametrize(
    ("name", "wrong", "right"), [("n_channels", 3, 1), ("n_classes", 2, 10), ("class_names", ["a", "b"], list(CLASSES))]
)
def test_what_contradicts_the_data_is_refused(name, wrong, right):
    untold = Options(n_channels=None, n_classes=None, class_names=None)
    datasets = build_fashion_mnist_sample()
    assert vars(with_found(changed(untold, **{name: right}), datasets)) == vars(with_found(untold, datasets))
    with pytest.raises(UserError, match=f"--{name} .* contradicts the data, with"):
        with_found(changed(untold, **{name: wrong}), datasets)


def test_each_class_has_a_name_of_its_own():
    opt = Options(n_channels=None, n_classes=2, class_names=["a", "b", "a"])
    with pytest.raises(UserError, match="--class_names 'a b a': there are 2 classes, give each a name of its own"):
        with_found(opt, {"train": []})
