import copy
import os
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.Carvana import CarvanaDataset, augment_pair, build_carvana, find_pairs
from data.loader import EvalLoader
from data.masks import ClassMap
from data.pairs import car_of
from extras.multi_image import build_multi_image
from tools.synthetic.make_carvana_like import make_carvana_like
from utils.errors import UserError

SHARES = {"train_val_sample_rate": 1, "test_sample_rate": 0.2, "val_split": 0.25}
TRUTH = np.zeros((24, 36), dtype=np.uint8)  # classes of the masks below
TRUTH[6:18, 8:28] = 1
GREYS = ClassMap((0, 0xFFFFFF))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Ten cars with four views each, 48 x 32 pixels. Tests only read it."""
    directory = tmp_path_factory.mktemp("made")
    make_carvana_like(directory, cars=10, views=4, size=(48, 32))
    return directory


def write_pair(directory, name, mask=None, image_end=".png", mask_end="_mask.png"):
    """Write a grey image and a mask, by default 0 and 255."""
    for folder in ("train", "train_masks"):
        (directory / folder).mkdir(exist_ok=True)
    mask = Image.fromarray(TRUTH * 255) if mask is None else mask
    Image.new("RGB", mask.size, (90, 90, 90)).save(directory / "train" / f"{name}{image_end}")
    path = directory / "train_masks" / f"{name}{mask_end}"
    mask.save(path)
    return path


# Pairing


def test_images_and_masks_pair_up_by_name_whatever_the_extension(tmp_path):
    write_pair(tmp_path, "b_01", image_end=".JPG", mask_end="_mask.GIF")
    write_pair(tmp_path, "a_b_02", image_end=".jpeg", mask_end="_mask.TIFF")
    write_pair(tmp_path, "a_b_10", image_end=".webp", mask_end="_mask.bmp")
    write_pair(tmp_path, "alone", image_end=".Png")
    (tmp_path / "train" / ".DS_Store").write_text("")
    (tmp_path / "train" / "._b_01.jpg").write_text("")
    (tmp_path / "train" / "Thumbs.db").write_text("")
    pairs = find_pairs(tmp_path)
    assert pairs.names == ["a_b_02", "a_b_10", "alone", "b_01"]
    assert CarvanaDataset(pairs, GREYS).groups == ["a_b", "a_b", "alone", "b"]
    files = [os.path.basename(image_path) for image_path, _ in pairs]
    assert files == ["a_b_02.jpeg", "a_b_10.webp", "alone.Png", "b_01.JPG"]
    assert os.path.basename(pairs[3][1]) == "b_01_mask.GIF"


def test_all_that_does_not_pair_up_is_told_in_one_error(tmp_path):
    for view in range(25):
        write_pair(tmp_path, f"lost_{view:02d}").unlink()
    write_pair(tmp_path, "shy_01")
    (tmp_path / "train" / "shy_01.png").unlink()
    write_pair(tmp_path, "twin_01")
    write_pair(tmp_path, "twin_01", image_end=".bmp")
    write_pair(tmp_path, "echo_01")
    write_pair(tmp_path, "echo_01", mask_end="_mask.gif")
    with pytest.raises(UserError) as raised:
        find_pairs(tmp_path)
    message = str(raised.value)
    assert "lost_09" in message and "lost_10" not in message and "15 more (25 in all)" in message
    assert "train lacks 1 of" in message and "names: shy_01" in message
    assert "twin_01.bmp, twin_01.png" in message and "echo_01_mask.gif, echo_01_mask.png" in message
    assert "<car>_<view>_mask.gif" in message


@pytest.mark.parametrize("present", [[], ["train"], ["train_masks"]])
def test_a_missing_directory_names_both_ways_to_get_data(tmp_path, present):
    for folder in present:
        (tmp_path / folder).mkdir()
    with pytest.raises(UserError) as raised:
        build_carvana(tmp_path)
    message = str(raised.value)
    assert "Carvana Image Masking Challenge" in message and "train_masks.zip" in message
    maker = "python -m tools.synthetic.make_carvana_like"
    assert f"{maker} --data_dir {tmp_path} --cars 32 --views 16 --size 480x320" in message


def test_an_empty_directory_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train_masks").mkdir()
    with pytest.raises(UserError, match="There is no file"):
        build_carvana(tmp_path)


# The data set


def test_samples_have_the_documented_types_and_ranges(made):
    parts = build_carvana(made, patch_size=16, **SHARES)
    assert list(parts) == ["train", "val", "test"]
    image, mask = parts["train"][0]
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and 0 <= image.min() < image.max() <= 1
    assert mask.shape == (16, 16) and mask.dtype == torch.int64 and mask.unique().tolist() == [0, 1]
    assert build_carvana(made, patch_size=16, n_channels=1, **SHARES)["test"][0][0].shape == (1, 16, 16)


def test_padding_leaves_val_and_test_at_their_own_size(made):
    parts = build_carvana(made, patch_size=16, mode="padding", **SHARES)
    assert parts["train"][0][0].shape == (3, 16, 16)
    for part in ("val", "test"):
        image, mask = parts[part][0]
        assert image.shape == (3, 32, 48) and mask.shape == (32, 48)
        with Image.open(parts[part].pairs[0][1]) as file:
            assert (mask.numpy() * 255 == np.asarray(file.convert("L"))).all()


def test_no_car_is_on_two_sides_and_names_fit_the_samples(made):
    parts = build_carvana(made, patch_size=16, **SHARES)
    cars = {part: set(dataset.groups) for part, dataset in parts.items()}
    assert not cars["train"] & cars["val"] and not cars["train"] & cars["test"] and not cars["val"] & cars["test"]
    assert set.union(*cars.values()) == set(map(car_of, find_pairs(made).names))
    for dataset in parts.values():
        assert len(dataset) == len(dataset.names) == len(dataset.groups)
        for name, car, (image_path, mask_path) in zip(dataset.names, dataset.groups, dataset.pairs, strict=True):
            assert name.startswith(f"{car}_") and os.path.basename(image_path) == f"{name}.jpg"
            assert os.path.basename(mask_path) == f"{name}_mask.gif"


def test_the_split_follows_the_split_seed(made):
    def names(seed):
        return {part: dataset.names for part, dataset in build_carvana(made, split_seed=seed, **SHARES).items()}

    assert names(0) == names(0) != names(1)


def test_summary_and_report_tell_what_is_used(made):
    all_of_it = build_carvana(made, **SHARES)["val"]
    assert all_of_it.summary == "40 images of 10 cars; using 24 for train, 8 for val, 8 for test"
    told = r"masks: 40 files scanned, mode P, values 0, 255 -> classes 0, 1 with \d+\.\d %, \d+\.\d % of the pixels; "
    assert re.fullmatch(told + "the foreground is 255", all_of_it.report)
    some = build_carvana(made, train_val_sample_rate=0.5, test_sample_rate=0.1, val_split=0.25)["train"].summary
    assert some == "40 images of 10 cars; using 12 for train, 4 for val, 4 for test; --train_val_sample_rate 1 uses all"


def test_the_class_map_does_not_depend_on_the_split(tmp_path):
    for car in range(8):  # one car alone shows class 2
        write_pair(tmp_path, f"car{car}_01", Image.fromarray(TRUTH * (2 if car == 5 else 1)))
    shares = {"train_val_sample_rate": 1, "test_sample_rate": 2, "val_split": 2, "n_classes": 3}
    maps = {part.class_map for seed in range(4) for part in build_carvana(tmp_path, split_seed=seed, **shares).values()}
    assert len(maps) == 1 and len(maps.pop().codes) == 3


def test_a_photo_that_a_phone_has_turned_lies_on_its_mask_for_every_data_type(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down, which no size shows
    corner = np.zeros((24, 24), dtype=np.uint8)
    corner[2:12, 3:15] = 255
    for car in range(4):
        write_pair(tmp_path, f"{car}_01", Image.fromarray(corner))
        photo = Image.fromarray(corner).rotate(180)
        photo.convert("RGB").save(tmp_path / "train" / f"{car}_01.png", exif=exif)
    shares = SHARES | {"test_sample_rate": 0.25, "val_split": 0.3}
    names = {"dirs": ["train", "train_masks"], "name_ends": ["", "_mask"]}
    of_files = build_carvana(tmp_path, cache=True, patch_size=24, **shares)
    of_dirs = build_multi_image(data_dir=tmp_path, **names, **shares)
    for dataset in (of_files["train"], of_files["train"].open_cache(), of_dirs["train"]):
        for image, mask in (dataset[i] for i in range(len(dataset))):
            assert torch.equal((image[0] > 0.5).long(), mask) and mask.sum() == 120


@pytest.mark.parametrize(
    "option, told",
    [
        ({"n_channels": 2}, "--n_channels 2"),
        ({"mode": "pading"}, "--mode pading .*did you mean 'padding'"),
        ({"patch_size": 0}, "--patch_size 0"),
        ({"n_classes": 0}, "--n_classes 0"),
    ],
)
def test_options_out_of_range_are_refused(made, option, told):
    with pytest.raises(UserError, match=told):
        build_carvana(made, **option)


def test_image_and_mask_of_different_sizes_are_named(tmp_path):
    write_pair(tmp_path, "a_01")
    Image.new("RGB", (30, 24)).save(tmp_path / "train" / "a_01.png")
    dataset = CarvanaDataset(find_pairs(tmp_path), GREYS, size=(16, 16))
    with pytest.raises(UserError, match=r"a_01.png has 30 x 24 .*a_01_mask\.png has 36 x 24"):
        dataset[0]


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "bmp"])
@pytest.mark.parametrize("keep", [0, 0.5])
@pytest.mark.parametrize("folder", ["train", "train_masks"])
def test_a_broken_file_is_named(tmp_path, extension, keep, folder):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 2, (48, 48), dtype=np.uint8) * 255)
    write_pair(tmp_path, "a_01", noise, image_end=f".{extension}", mask_end=f"_mask.{extension}")
    noise.save(tmp_path / "train" / f"a_01.{extension}")
    broken = next((tmp_path / folder).iterdir())
    content = broken.read_bytes()
    broken.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match=f"{broken.name} cannot be read as an image"):
        CarvanaDataset(find_pairs(tmp_path), GREYS, size=(16, 16))[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_files_are_left_out_on_request(tmp_path, num_workers):
    for i in range(10):
        write_pair(tmp_path, f"{'abcde'[i // 2]}_{i:02d}")
    (tmp_path / "train" / "a_00.png").write_bytes(b"no image")
    (tmp_path / "train_masks" / "b_02_mask.png").write_bytes(b"")
    Image.new("RGB", (30, 24)).save(tmp_path / "train" / "c_05.png")
    with pytest.raises(UserError, match=r"b_02_mask\.png cannot be read"):
        build_carvana(tmp_path, patch_size=16, **SHARES)
    datasets = build_carvana(tmp_path, patch_size=16, skip_bad_samples=3, **SHARES)
    assert "skipped" in datasets["train"].report and "b_02_mask.png" in datasets["train"].report
    left_out, given = set(), 0
    for dataset in datasets.values():
        loader = EvalLoader(dataset, 2, num_workers=num_workers, max_bad_samples=3)
        loader.bad.warn = lambda message: None
        given += sum(len(images) for images, _ in loader)
        left_out |= {dataset.names[index] for index in loader.bad.reasons}
    assert (left_out, given) == ({"a_00", "b_02", "c_05"}, 7)


def test_a_data_set_survives_pickling_and_copying(made):
    dataset = build_carvana(made, patch_size=16, **SHARES)["train"]
    content = pickle.dumps(dataset)
    assert len(content) < 400 * len(dataset) + 2000  # paths and names, no pixels
    for other in (pickle.loads(content), copy.deepcopy(dataset)):
        assert other.names == dataset.names and other.is_random is False
        assert all(torch.equal(a, b) for a, b in zip(other[3], dataset[3], strict=True))


def test_workers_by_spawn_read_the_same(made):
    dataset = build_carvana(made, patch_size=16, **SHARES)["test"]
    loader = DataLoader(dataset, batch_size=len(dataset), num_workers=1, multiprocessing_context="spawn")
    images, masks = next(iter(loader))
    assert torch.equal(images, torch.stack([image for image, _ in dataset]))
    assert torch.equal(masks, torch.stack([mask for _, mask in dataset]))


# Augmentation


def test_only_training_is_augmented_and_only_on_request(made):
    plain, augmented = build_carvana(made, **SHARES), build_carvana(made, augment=True, **SHARES)
    assert [dataset.is_random for dataset in plain.values()] == [False, False, False]
    assert [augmented[part].is_random for part in ("train", "val", "test")] == [True, False, False]


def test_augmentation_is_a_function_of_the_torch_seed(made):
    dataset = build_carvana(made, patch_size=16, augment=True, **SHARES)["train"]

    def sample(seed):
        torch.manual_seed(seed)
        np.random.seed(None)
        return dataset[0][0]

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))


def test_a_sample_without_augmentation_draws_nothing(made):
    dataset = build_carvana(made, patch_size=16, **SHARES)["train"]
    before = torch.get_rng_state()
    first, again = dataset[0][0], dataset[0][0]
    assert torch.equal(first, again) and torch.equal(before, torch.get_rng_state())


def test_augmentation_flips_both_and_changes_brightness_and_contrast_by_a_fifth_at_most():
    torch.manual_seed(0)
    mask = torch.zeros(4, 8, dtype=torch.int64)
    mask[:, :3] = 1
    image = 0.3 + 0.2 * mask.float().expand(3, 4, 8)  # mean 0.375
    flips, means, contrasts = [], [], []
    for _ in range(400):
        new_image, new_mask = augment_pair(image, mask)
        flipped = bool(new_mask[0, -1])
        assert torch.equal(new_mask, mask.flip(-1) if flipped else mask) and new_mask.sum() == mask.sum()
        high, low = new_image[:, new_mask == 1], new_image[:, new_mask == 0]
        assert high.max() - high.min() < 1e-6 and low.max() - low.min() < 1e-6 and high.min() > low.max()
        flips.append(flipped)
        means.append(float(new_image.mean() / image.mean()))
        contrasts.append(float((high.mean() - low.mean()) / 0.2) / means[-1])
    assert 0.4 < np.mean(flips) < 0.6
    for factors in (means, contrasts):
        assert 0.8 - 1e-4 <= min(factors) < 0.82 and 1.18 < max(factors) <= 1.2 + 1e-4
    assert abs(np.corrcoef(means, contrasts)[0, 1]) < 0.15 and abs(np.corrcoef(flips, means)[0, 1]) < 0.15


def test_augmentation_stays_in_range_and_leaves_its_input_alone():
    torch.manual_seed(0)
    image, mask = torch.rand(3, 8, 8).round(), torch.randint(0, 2, (8, 8))
    image_before, mask_before = image.clone(), mask.clone()
    for _ in range(30):
        new_image, _ = augment_pair(image, mask)
        assert new_image.min() >= 0 and new_image.max() <= 1
    assert torch.equal(image, image_before) and torch.equal(mask, mask_before)
