"""Drawing the sample of FashionMNIST, from made-up files."""

import gzip
import struct

import numpy as np
import pytest
import torch

from data.FashionMNIST import FILES, SAMPLE_DIR, read_idx
from tools.synthetic.make_sample import main, make_sample, write_idx
from utils.errors import UserError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES


@pytest.fixture
def source(tmp_path):
    """Four files of 20 training and 5 test images a class, in which the first two pixels spell an image's index."""
    directory = tmp_path / "source"
    directory.mkdir()
    for count, images, labels in ((200, TRAIN_IMAGES, TRAIN_LABELS), (50, TEST_IMAGES, TEST_LABELS)):
        chance = np.random.default_rng(count)
        pixels = chance.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        pixels[:, 0, 0], pixels[:, 0, 1] = np.arange(count) // 256, np.arange(count) % 256
        classes = chance.permutation(np.arange(count) % 10).astype(np.uint8)
        write_idx(directory / f"{images}.gz", torch.from_numpy(pixels))
        write_idx(directory / f"{labels}.gz", torch.from_numpy(classes))
    return directory


def written(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_file_is_in_the_original_format(tmp_path):
    write_idx(tmp_path / "file.gz", torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3))
    header = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3])
    assert gzip.decompress((tmp_path / "file.gz").read_bytes()) == header + bytes([0, 1, 2, 3, 4, 5])


def test_sample_repeats_byte_for_byte(tmp_path, source):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        make_sample(source, tmp_path / name, train_per_class=5, test_per_class=2, seed=seed)
    assert written(tmp_path / "one") == written(tmp_path / "two")
    assert sorted(written(tmp_path / "one")) == sorted(f"{name}.gz" for name in FILES)
    assert written(tmp_path / "one")[f"{TRAIN_IMAGES}.gz"] != written(tmp_path / "other")[f"{TRAIN_IMAGES}.gz"]


@pytest.mark.parametrize("directory", ["made", "kept"])
def test_gzip_header_holds_no_time_and_no_name(tmp_path, source, directory):
    if directory == "made":
        make_sample(source, tmp_path / "made", train_per_class=5, test_per_class=2)
    for path in (tmp_path / "made" if directory == "made" else SAMPLE_DIR).glob("*.gz"):
        magic, flags, time = struct.unpack("<HxBI", path.read_bytes()[:8])
        assert (magic, flags, time) == (0x8B1F, 0, 0)


def test_sample_keeps_the_order_and_each_class_alike(tmp_path, source):
    make_sample(source, tmp_path / "made", train_per_class=5, test_per_class=2)
    for images, labels, count in ((TRAIN_IMAGES, TRAIN_LABELS, 5), (TEST_IMAGES, TEST_LABELS, 2)):
        small, classes = read_idx(tmp_path / "made" / f"{images}.gz"), read_idx(tmp_path / "made" / f"{labels}.gz")
        assert classes.bincount().tolist() == [count] * 10
        indices = (small[:, 0, 0].int() * 256 + small[:, 0, 1]).tolist()
        assert indices == sorted(set(indices))
        assert torch.equal(small, read_idx(source / f"{images}.gz")[indices])
        assert torch.equal(classes, read_idx(source / f"{labels}.gz")[indices])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--train_per_class", "21"], "1 to 20"),
        (["--test_per_class", "6"], "1 to 5"),
        (["--source", "."], "lacks"),
    ],
)
def test_impossible_sample_ends_with_status_two_and_one_line(tmp_path, source, capsys, options, message):
    arguments = ["--source", str(source), "--train_per_class", "5", "--test_per_class", "2"]
    assert main([*arguments, "--output", str(tmp_path / "made"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("options", [["--test_per_class", "0"], ["--seed", "-1"], ["--sorce", "x"], ["--output", ""]])
def test_wrong_flag_ends_with_status_two_and_one_line(tmp_path, source, capsys, options):
    with pytest.raises(SystemExit) as ended:
        main(["--source", str(source), "--output", str(tmp_path / "made"), *options])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and options[0] in error and error.count("\n") == 1
    assert not (tmp_path / "made").exists()


def test_sample_never_overwrites_its_source(source):
    before = written(source)
    with pytest.raises(UserError, match="source itself"):
        make_sample(source, source / ".." / "source", train_per_class=5, test_per_class=2)
    assert written(source) == before


def test_command_line_makes_the_sample(tmp_path, source):
    options = ["--source", str(source), "--output", str(tmp_path / "made"), "--train_per_class", "5"]
    assert main([*options, "--test_per_class", "2"]) == 0
    assert len(read_idx(tmp_path / "made" / f"{TRAIN_LABELS}.gz")) == 50
