import copy
import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

import extras.pixel_cache
from data.Carvana import augment_batch, augment_pair, build_carvana
from data.loader import EvalLoader, UpdateLoader
from engine.checkpoints.file import load_checkpoint, save_checkpoint
from eval_seg_on_carvana import EvaluatorSeg
from extras.pixel_cache import KEPT, CachedCarvana, cache_directories, open_or_build, record_of
from trainer_seg_on_carvana import TrainerSeg
from utils.errors import UserError

SHAPE = (5, 4, 3, 2)
KEY = "0123456789abcdef" * 4
SHARES = {"train_val_sample_rate": 1, "test_sample_rate": 4, "val_split": 4}


def decode(index):
    """The record of sample `index`."""
    return np.random.default_rng(index).integers(0, 256, SHAPE[1:], dtype=np.uint8)


def never(index):
    raise AssertionError(f"sample {index} was decoded again")


def open_in(directory, decode=decode, key=KEY, **more):
    return open_or_build([directory], key, SHAPE, decode, **more)


def cache_file(directory):
    (path,) = directory.glob("*.npy")
    return path


def has_all(cache, otherwise=never):
    return all(np.array_equal(cache.gather([i], otherwise)[0].numpy(), decode(i)) for i in range(SHAPE[0]))


# ---- the file --------------------------------------------------------------------------------------------------------
def test_the_second_run_decodes_nothing(tmp_path):
    assert has_all(open_in(tmp_path / "new" / "cache"))
    assert has_all(open_in(tmp_path / "new" / "cache", never))


def test_records_come_in_the_order_they_are_asked_for(tmp_path):
    records = open_in(tmp_path).gather([3, 0, 3], never)
    assert records.dtype == torch.uint8 and records.shape == (3, *SHAPE[1:])
    assert all(np.array_equal(record, decode(index)) for record, index in zip(records.numpy(), [3, 0, 3], strict=True))


def test_another_key_is_decoded_anew(tmp_path):
    open_in(tmp_path)
    with pytest.raises(UserError, match="wrong"):
        open_in(tmp_path, refuse, key="f" * 64).gather([0], refuse)


def refuse(index):
    raise UserError(f"sample {index} is wrong")


def test_a_sample_that_cannot_be_decoded_raises_when_it_is_asked_for(tmp_path):
    def some(index):
        return refuse(index) if index == 2 else decode(index)

    for _ in range(2):
        cache = open_in(tmp_path, some)
        assert cache.gather([0, 4], never).shape[0] == 2
        for _ in range(2):
            with pytest.raises(UserError, match="sample 2 is wrong"):
                cache.gather([1, 2], some)


def test_a_lack_of_memory_ends_the_first_pass_and_leaves_nothing(tmp_path):
    def greedy(index):
        raise MemoryError

    with pytest.raises(MemoryError):
        open_in(tmp_path, greedy)
    assert list(tmp_path.glob("*.npy")) == list(tmp_path.glob(".*.tmp")) == []


def test_an_interruption_leaves_nothing_that_is_trusted(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_in(tmp_path)
    assert list(tmp_path.glob("*.npy")) == list(tmp_path.glob(".*.tmp")) == []
    assert has_all(open_in(tmp_path))


def test_a_cache_survives_pickling_and_copying(tmp_path):
    cache = open_in(tmp_path)
    for other in (pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)):
        assert has_all(other)
    assert len(pickle.dumps(cache)) < 1000


def test_a_cache_whose_file_is_removed_goes_on(tmp_path):
    cache = open_in(tmp_path)
    cache_file(tmp_path).unlink()
    assert has_all(cache)


# ---- damage ----------------------------------------------------------------------------------------------------------
def save_another_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros((5, 24), dtype=np.uint8))


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "only the header": lambda path: os.truncate(path, 128),
    "no array": lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
    "another array": save_another_array,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_noticed_when_a_file_is_opened_and_it_is_made_again(tmp_path, caplog, damage):
    open_in(tmp_path)
    path = cache_file(tmp_path)
    DAMAGE[damage](path)
    assert has_all(open_in(tmp_path))
    assert str(path) in caplog.text and "made again" in caplog.text
    caplog.clear()
    assert has_all(open_in(tmp_path, never)) and not caplog.text


def raise_error(number):
    def raise_it(*arguments, **keywords):
        raise OSError(number, os.strerror(number))

    return raise_it


# ---- two runs, and a killed one --------------------------------------------------------------------------------------
SLOW = """
import os, sys, time
from pathlib import Path
import numpy as np
from extras.pixel_cache import open_or_build

def decode(index):
    with open(sys.argv[2], "a") as file:
        file.write(f"{index}\\n")
    time.sleep(float(sys.argv[3]))
    return np.random.default_rng(index).integers(0, 256, (4, 3, 2), dtype=np.uint8)

cache = open_or_build([Path(sys.argv[1])], "0123456789abcdef" * 4, (5, 4, 3, 2), decode)
print(int(cache.gather(range(5), decode).sum()))
"""


def start(root, directory, log, seconds):
    arguments = [sys.executable, "-c", SLOW, str(directory), str(log), str(seconds)]
    return subprocess.Popen(arguments, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_runs_at_once_one_decodes_and_the_other_waits(root, tmp_path):
    log = tmp_path / "log"
    runs = [start(root, tmp_path / "cache", log, 0.2) for _ in range(2)]
    sums = {run.communicate(timeout=120)[0] for run in runs}
    assert sums == {f"{sum(int(decode(index).sum()) for index in range(5))}\n"}
    assert sorted(log.read_text().split()) == list("01234")


def test_a_run_that_is_killed_leaves_nothing_that_is_trusted(root, tmp_path):
    log, directory = tmp_path / "log", tmp_path / "cache"
    run = start(root, directory, log, 60)
    while not log.exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=60)
    assert list(directory.glob(".*.tmp")) and not list(directory.glob("*.npy"))
    assert has_all(open_in(directory)) and not list(directory.glob(".*.tmp"))


# ---- the disk --------------------------------------------------------------------------------------------------------
def test_a_full_disk_is_told_and_the_run_goes_on_without(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(os, "fsync", raise_error(errno.ENOSPC))
    assert open_in(tmp_path, is_needed=True) is None
    assert len(caplog.records) == 1 and "full" in caplog.text and "without the cache" in caplog.text
    assert list(tmp_path.glob("*.npy")) == list(tmp_path.glob(".*.tmp")) == []


def test_a_disk_with_too_little_room_is_not_filled(tmp_path, monkeypatch, caplog):
    usage = namedtuple("Usage", "total used free")
    size = 5 * (1 + 24)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2 * size - 1))
    assert open_in(tmp_path, never) is None
    assert f"{size:,} bytes" in caplog.text and f"{2 * size - 1:,}" in caplog.text
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2 * size))
    assert has_all(open_in(tmp_path))
    assert cache_file(tmp_path).stat().st_size == 128 + size


def test_a_directory_that_cannot_be_written_is_passed_over(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    blocked = tmp_path / "file" / "cache"
    assert has_all(open_or_build([blocked, tmp_path / "home"], KEY, SHAPE, decode))
    assert has_all(open_or_build([blocked, tmp_path / "home"], KEY, SHAPE, never))
    assert not caplog.records
    assert open_or_build([blocked], KEY, SHAPE, decode) is None and str(blocked) in caplog.text
    with pytest.raises(UserError, match=r"file/cache .*--cache_dir.*--no-cache"):
        open_or_build([blocked], KEY, SHAPE, decode, is_needed=True)


def test_a_cache_that_can_only_be_read_is_used(tmp_path, monkeypatch):
    open_in(tmp_path)
    monkeypatch.setattr(os, "utime", raise_error(errno.EROFS))
    monkeypatch.setattr(extras.pixel_cache, "locked", never)
    assert has_all(open_in(tmp_path, never))


def test_the_directory_is_the_one_given_or_beside_the_data_or_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/me/cache")
    assert list(map(str, cache_directories("/data", "/fast"))) == ["/fast"]
    assert list(map(str, cache_directories("/data"))) == ["/data/.cache", "/home/me/cache/plainloop"]


def test_only_so_many_files_are_kept_those_that_were_used_last(tmp_path):
    (tmp_path / "mine.npy").write_text("")
    keys = [f"{number:064d}" for number in range(KEPT + 2)]
    keys = [key[32:] + key[:32] for key in keys]
    for number, key in enumerate(keys[:-1]):
        open_in(tmp_path, key=key)
        os.utime(tmp_path / f"{key[:32]}.npy", (number, number))
    oldest = open_in(tmp_path, never, key=keys[1])  # used, and so the newest
    open_in(tmp_path, key=keys[-1])
    names = {path.name[:32] for path in tmp_path.glob("*.npy")} - {"mine.npy"}
    assert names == {key[:32] for key in [keys[1], *keys[3:]]}
    assert has_all(oldest)


# ---- Carvana ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def parts(cars, tmp_path):
    """A function that builds the three parts with a cache in a directory of this test."""
    return lambda directory=cars, **more: build_carvana(
        directory, **{"patch_size": 16, "cache_dir": tmp_path / "cache", **SHARES, **more}
    )


@pytest.fixture
def own_cars(cars, tmp_path):
    """A copy of the cars, to be changed; the times of the files are those of the original."""
    shutil.copytree(cars, tmp_path / "cars", ignore=shutil.ignore_patterns(".cache"))
    return tmp_path / "cars"


def same(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("augment", [False, True])
def test_samples_and_batches_have_the_same_bits_as_without_the_cache(parts, n_channels, augment):
    for plain in parts(n_channels=n_channels, augment=augment).values():
        cached = plain.open_cache()
        assert isinstance(cached, CachedCarvana) and cached.names == plain.names and cached.groups == plain.groups
        for index in (0, len(plain) - 1, -1):
            torch.manual_seed(5)
            expected = plain[index]
            torch.manual_seed(5)
            assert same(cached[index], expected)
        loaders = [EvalLoader(dataset, 3) for dataset in (plain, cached)]
        assert all(same(*batches) for batches in zip(*loaders, strict=True))
        assert len(plain) == len(cached) == sum(len(masks) for _, masks in loaders[1])
        with pytest.raises(IndexError):
            cached[len(plain)]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_updates_have_the_same_bits_as_without_the_cache(parts, augment, num_workers):
    plain = parts(augment=augment)["train"]
    expected = UpdateLoader(plain, 5, seed=3)
    given = UpdateLoader(plain.open_cache(), 5, 2, seed=3, num_workers=num_workers)
    for epoch in range(2):
        for a, b in zip(expected.updates(epoch), given.updates(epoch), strict=True):
            assert a.indices == b.indices and len(b.micro_batches) == -(-len(b.indices) // 2)
            assert same(a.micro_batches[0], map(torch.cat, zip(*b.micro_batches, strict=True)))


def test_augmentation_does_not_depend_on_the_number_of_threads_or_the_size_of_the_batch():
    images, masks = (torch.randint(0, 256, (4, 3, 256, 256)) / 255), torch.randint(0, 2, (4, 256, 256))
    draws, results = torch.rand(4, 3), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(augment_batch(images.clone(), masks.clone(), draws)[0])
            ones = [augment_batch(images[[i]], masks[[i]], draws[[i]])[0] for i in range(4)]
            results.append(torch.cat(ones))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_a_mean_in_single_precision_would_depend_on_the_number_of_threads():
    images = [torch.rand(3, 256, 256) for _ in range(20)]
    try:
        means = [image.mean() for image in images]
        torch.set_num_threads(2)
        assert any(image.mean() != mean for image, mean in zip(images, means, strict=True))
    finally:
        torch.set_num_threads(1)


def test_the_pair_is_augmented_by_its_own_three_numbers():
    images, masks = torch.rand(6, 3, 8, 8), torch.randint(0, 2, (6, 8, 8))
    torch.manual_seed(1)
    pairs = [augment_pair(image, mask) for image, mask in zip(images, masks, strict=True)]
    torch.manual_seed(1)
    draws = torch.stack([torch.rand(3) for _ in range(6)])
    assert same(augment_batch(images, masks, draws), map(torch.stack, zip(*pairs, strict=True)))


def count_decoded(dataset, monkeypatch):
    """Make the cache of a data set and return how many samples were decoded for it."""
    decoded = []
    with monkeypatch.context() as patch:
        counted = lambda dataset, index: decoded.append(index) or record_of(dataset, index)  # noqa: E731
        patch.setattr(extras.pixel_cache, "record_of", counted)
        dataset.open_cache()
    return len(decoded)


def test_only_the_samples_of_a_part_are_decoded_and_only_once(parts, monkeypatch):
    assert [count_decoded(parts()["val"], monkeypatch) for _ in range(2)] == [4, 0]
    assert count_decoded(parts()["train"], monkeypatch) == 16


@pytest.mark.parametrize("change", ["touch", "grow", "rename", "mask"])
def test_a_changed_file_is_decoded_anew(parts, own_cars, monkeypatch, change):
    dataset = parts(own_cars)["val"]
    count_decoded(dataset, monkeypatch)
    image_path, mask_path = dataset.pairs[2]
    status = os.stat(image_path)
    if change == "touch":
        os.utime(image_path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "grow":
        with open(image_path, "ab") as file:
            file.write(b"x")
        os.utime(image_path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "rename":
        os.rename(image_path, image_path.replace(".jpg", ".JPG"))
    else:
        os.utime(mask_path, ns=(0, 0))
    assert count_decoded(parts(own_cars)["val"], monkeypatch) == 4
    assert count_decoded(parts(own_cars)["val"], monkeypatch) == 0


@pytest.mark.parametrize("option", [{"patch_size": 17}, {"n_channels": 1}, {"n_classes": 3}, {"split_seed": 1}])
def test_another_option_is_decoded_anew(parts, monkeypatch, option):
    count_decoded(parts()["val"], monkeypatch)
    assert count_decoded(parts(**option)["val"], monkeypatch) == 4
    assert count_decoded(parts()["val"], monkeypatch) == 0


@pytest.mark.parametrize("version", ["PIXELS_VERSION", "decoder_versions"])
def test_other_code_decodes_anew(parts, monkeypatch, version):
    count_decoded(parts()["val"], monkeypatch)
    monkeypatch.setattr(f"extras.pixel_cache.{version}", 99 if version.isupper() else lambda: ("another",))
    assert count_decoded(parts()["val"], monkeypatch) == 4


def test_there_is_no_cache_for_images_of_their_own_size_or_when_it_is_not_wanted(parts, tmp_path):
    padded = parts(mode="padding")
    assert padded["val"].open_cache() is padded["val"] and padded["test"].open_cache() is padded["test"]
    unwanted = parts(cache=False)["train"]
    assert unwanted.open_cache() is unwanted and not (tmp_path / "cache").exists()
    assert isinstance(padded["train"].open_cache(), CachedCarvana)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_named_and_left_out_as_without_the_cache(parts, own_cars, num_workers):
    names = parts(own_cars)["train"].names
    (own_cars / "train" / f"{names[3]}.jpg").write_bytes(b"no image")
    Image.new("RGB", (30, 24)).save(own_cars / "train" / f"{names[5]}.jpg")
    (own_cars / "train_masks" / f"{names[8]}_mask.gif").write_bytes(b"")
    bad = []
    for _ in range(2):  # the cache is made, and found
        for cache in (False, True):
            loaded = parts(own_cars, cache=cache, skip_bad_samples=3)["train"].open_cache()
            loader = EvalLoader(loaded, 4, num_workers=num_workers, max_bad_samples=3, part="train")
            loader.bad.warn = lambda message: None
            assert sum(len(masks) for _, masks in loader) == 13
            bad.append(dict(loader.bad.reasons))
            strict = EvalLoader(loaded, 4, num_workers=num_workers, part="train")
            with pytest.raises(UserError) as raised:
                list(strict)
            bad[-1] |= {"strict": str(raised.value)}
    assert all(found == bad[0] for found in bad) and set(bad[0]) == {3, 5, 8, "strict"}


def test_a_cache_without_images_beside_the_data_does_not_keep_them_from_being_made_again(tmp_path):
    from tools.synthetic.make_carvana_like import make_carvana_like

    make_carvana_like(tmp_path, cars=3, views=2, size=(48, 32))
    build_carvana(tmp_path, patch_size=16, test_sample_rate=2, val_split=2, train_val_sample_rate=1)["val"].open_cache()
    assert list((tmp_path / ".cache").glob("*.npy"))
    make_carvana_like(tmp_path, cars=3, views=2, size=(48, 32))


@pytest.mark.parametrize("augment", ["--augment", "--no-augment"])
def test_the_weights_are_the_same_with_and_without_the_cache(train, weights, differences, tmp_path, augment):
    runs = [("--no-cache",), *(("--cache_dir", tmp_path / "cache", "--num_workers", n) for n in (0, 2, 2))]
    first, *others = (weights(train(*flags, augment, task=TrainerSeg)) for flags in runs)
    assert [differences(first, other) for other in others] == [[], [], []]
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2  # of train and val: nothing is decoded for nothing


def test_a_few_batches_are_no_reason_to_decode_all(build, tmp_path):
    build("--cache_dir", tmp_path / "cache", "--limit_batches", 1, task=TrainerSeg)
    assert not (tmp_path / "cache").exists()


def test_a_cache_directory_that_cannot_be_made_is_an_error_of_one_line(build, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--cache_dir"):
        build("--cache_dir", tmp_path / "file", task=TrainerSeg)


def test_a_checkpoint_outside_a_run_does_not_say_where_the_cache_is_written(seg_run, tmp_path):
    state = load_checkpoint(seg_run / "UNet_best_ckpt.pth")
    options = {**state["options"], "cache_dir": str(tmp_path / "theirs")}
    save_checkpoint({**state, "options": options}, tmp_path / "a.pth")
    assert EvaluatorSeg.parse_options(["--model_path", str(tmp_path / "a.pth")]).cache_dir is None
