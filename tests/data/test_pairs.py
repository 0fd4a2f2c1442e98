import hashlib
import os
import pathlib
import pickle
import unicodedata

import pytest

from data.Carvana import CarvanaDataset, build_carvana
from data.data_entry import group_hashes
from data.masks import ClassMap
from data.pairs import car_of, find_pairs, match_files
from extras.pixel_cache import cache_key
from utils.errors import UserError

GREYS = ClassMap((0, 0xFFFFFF))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Empty files of 3,000 samples, 3 views of each car. Tests only read them."""
    directory = tmp_path_factory.mktemp("many")
    for folder, end in (("train", ".jpg"), ("train_masks", "_mask.gif")):
        (directory / folder).mkdir()
        for i in range(3000):
            (directory / folder / f"{i // 3 * 7919 % 1000:03d}_{i % 3}{end}").touch()
    return directory


def test_a_pair_is_put_together_when_it_is_asked_for(many):
    pairs = find_pairs(many)
    assert len(pairs) == 3000 and pairs.names == sorted(pairs.names)
    expected = (str(many / "train" / "000_1.jpg"), str(many / "train_masks" / "000_1_mask.gif"))
    assert pairs[1] == expected and pairs.names[-1] == "999_2" and list(pairs)[1] == expected
    assert pairs.paths(1) == [mask_path for _, mask_path in pairs]
    assert car_of("a_b_02") == "a_b" and car_of("alone") == "alone"
    some = pairs.select([2999, 1])
    assert list(some) == [pairs[2999], pairs[1]]
    with pytest.raises(IndexError):
        pairs[3000]


def test_a_sample_is_found_without_looking_at_the_directory_again(many, monkeypatch):
    pairs = find_pairs(many)

    def forbidden(*arguments):
        raise AssertionError("the directory was listed")

    for name in ("scandir", "listdir", "stat"):
        monkeypatch.setattr(os, name, forbidden)
    assert all(name in image_path for (image_path, _), name in zip(pairs, pairs.names, strict=True))


def test_the_index_holds_a_name_and_little_more_of_each_sample(many):
    pairs = find_pairs(many)
    assert len(pickle.dumps(pairs)) < 3000 * 20 + 1000
    assert len({id(ends) for ends in pairs.ends}) == 1
    assert len(set(map(id, CarvanaDataset(pairs, GREYS).groups))) == 1000
    pairs.status()
    assert len(pickle.dumps(pairs)) < 3000 * (20 + 32) + 1000


def test_a_file_is_asked_for_its_size_and_time_once(many, monkeypatch):
    pairs, asked, stat = find_pairs(many), [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: asked.append(path) or stat(path, **more))
    for _ in range(2):
        assert (pairs.status()[:, [0, 2]] == 0).all() and (pairs.status()[:, [1, 3]] > 0).all()
        CarvanaDataset(pairs, GREYS).fingerprint()
    assert len(asked) == 6000


def test_a_file_that_has_gone_has_no_size_and_is_named_when_it_is_loaded(tmp_path):
    for folder, end in (("train", ".jpg"), ("train_masks", "_mask.gif")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"a_1{end}").write_bytes(b"12345")
    pairs = find_pairs(tmp_path)
    (tmp_path / "train" / "a_1.jpg").unlink()
    assert pairs.status()[0, [0, 1, 2]].tolist() == [-1, -1, 5]
    with pytest.raises(ValueError, match=r"a_1\.jpg cannot be read"):
        CarvanaDataset(pairs, GREYS)[0]


def test_the_fingerprint_is_that_of_names_and_sizes_and_some_contents(cars, many):
    dataset = build_carvana(cars, train_val_sample_rate=1, test_sample_rate=4, val_split=4)["train"]
    for of in (dataset, CarvanaDataset(find_pairs(many), GREYS)):
        sizes = [tuple(map(os.path.getsize, paths)) for paths in of.pairs]
        lines = [f"{name} {image} {mask}" for name, (image, mask) in zip(of.names, sizes, strict=True)]
        digest = hashlib.sha256("\n".join(lines).encode())
        num = min(len(of), 128)
        for place in range(num):
            for path in of.pairs[place * len(of) // num]:
                content = hashlib.blake2b(pathlib.Path(path).read_bytes(), digest_size=8)
                digest.update(content.hexdigest().encode())
        assert of.fingerprint() == f"{digest.hexdigest()} (contents of {2 * num:,} of {2 * len(of):,} files)"


def test_names_that_are_no_unicode_have_a_fingerprint(tmp_path):
    for folder, end in (("train", ".jpg"), ("train_masks", "_mask.gif")):
        (tmp_path / folder).mkdir()
        with open(os.fsencode(tmp_path / folder) + b"/\xff_1" + end.encode(), "w"):
            pass
    dataset = CarvanaDataset(find_pairs(tmp_path), GREYS, size=(8, 8))
    assert len(dataset.fingerprint().partition(" ")[0]) == len(cache_key(dataset)) == 64
    assert len(group_hashes(dataset)) == 1


def touch(directory, *files):
    directory.mkdir(parents=True, exist_ok=True)
    for file in files:
        (directory / file).touch()
    return directory


def test_names_that_look_alike_pair_up_and_their_files_are_found(tmp_path):
    by_form = [unicodedata.normalize(form, "café_é") for form in ("NFC", "NFD")]
    assert by_form[0] != by_form[1]
    folders = [touch(tmp_path / str(i), f"{name}.png", "plain.png") for i, name in enumerate(by_form)]
    pairs = match_files(folders)
    assert pairs.names == [by_form[0], "plain"] and (pairs.status() == 0)[:, ::2].all()
    assert pairs.select([0])[0] == (f"{folders[0]}/{by_form[0]}.png", f"{folders[1]}/{by_form[1]}.png")
    touch(folders[0], f"{by_form[1]}.jpg")
    with pytest.raises(UserError, match="names with more than one file"):
        match_files(folders)


def test_one_directory_may_hold_images_and_masks(tmp_path):
    folder = touch(tmp_path, "a.jpg", "a_mask.png", "a_mask_2.png", "b_mask.jfif", "b.JFIF", "b_mask_2.png")
    ends = ["", "_mask", "_mask_2"]
    pairs = match_files([folder, f"{folder}/", folder], ends)
    assert [[os.path.basename(path) for path in paths] for paths in pairs] == [
        ["a.jpg", "a_mask.png", "a_mask_2.png"], ["b.JFIF", "b_mask.jfif", "b_mask_2.png"],
    ]  # fmt: skip
    touch(folder, "c_mask.png")
    with pytest.raises(UserError, match="lacks 1 of 3 names: c;"):
        match_files([folder] * 3, ends)


def test_names_that_differ_are_shown_beside_each_other(tmp_path):
    images = touch(tmp_path / "images", "img_001.png", "img_002.png")
    masks = touch(tmp_path / "masks", "seg_002.png", "seg_001.png")
    with pytest.raises(UserError, match=r"\. The nearest two are 'img_001' and 'seg_001'\. Add or"):
        match_files([images, masks])


def test_directories_in_a_directory_are_named(tmp_path):
    touch(tmp_path / "images" / "scene")
    with pytest.raises(UserError, match=r"no file .* in .*images, but it holds directories \(scene\), of which one"):
        match_files([tmp_path / "images"])


def test_the_home_directory_may_be_written_short(tmp_path, monkeypatch):
    touch(tmp_path / "train", "a.png")
    touch(tmp_path / "train_masks", "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_pairs("~")[0] == match_files(["~/train", "~/train_masks"])[0] == (
        f"{tmp_path}/train/a.png", f"{tmp_path}/train_masks/a.png"
    )  # fmt: skip
