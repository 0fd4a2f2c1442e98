import hashlib
import os
import pickle

import pytest

from data.Carvana import CarvanaDataset, build_carvana
from data.masks import ClassMap
from data.pairs import car_of, find_pairs
from extras.pixel_cache import cache_key

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


def test_the_fingerprint_is_that_of_names_and_sizes(cars, many):
    dataset = build_carvana(cars, train_val_sample_rate=1, test_sample_rate=4, val_split=4)["train"]
    for of in (dataset, CarvanaDataset(find_pairs(many), GREYS)):
        sizes = [tuple(map(os.path.getsize, paths)) for paths in of.pairs]
        lines = [f"{name} {image} {mask}" for name, (image, mask) in zip(of.names, sizes, strict=True)]
        assert of.fingerprint() == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_names_that_are_no_unicode_have_a_fingerprint(tmp_path):
    for folder, end in (("train", ".jpg"), ("train_masks", "_mask.gif")):
        (tmp_path / folder).mkdir()
        with open(os.fsencode(tmp_path / folder) + b"/\xff_1" + end.encode(), "w"):
            pass
    dataset = CarvanaDataset(find_pairs(tmp_path), GREYS, size=(8, 8))
    assert len(dataset.fingerprint()) == len(cache_key(dataset)) == 64
