import json
import shutil
import sys

import pytest
import webdataset

from data.Carvana import build_carvana
from data.pairs import find_pairs
from extras.shards import make_shards as module
from extras.shards.make_shards import main, make_shards
from utils.errors import UserError

CUT = {"train_val_sample_rate": 1.0, "test_sample_rate": 4.0, "val_split": 4.0, "split_seed": 0}


@pytest.fixture(scope="module")
def made(cars, tmp_path_factory):
    """The shards of 16, 4 and 4 samples, three in each. Tests only read them."""
    directory = tmp_path_factory.mktemp("shards")
    make_shards(cars, directory, samples_per_shard=3, **CUT)
    return directory


def test_the_library_reads_what_was_written(cars, made):
    urls = [str(path) for path in sorted(made.glob("*.tar"))]
    read = {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}
    files = find_pairs(cars)
    pairs = dict(zip(files.names, files, strict=True))
    assert read.keys() == pairs.keys() and len(urls) == 6 + 2 + 2
    for name, pair in pairs.items():
        for ending, path in zip(("jpg", "mask.gif"), pair, strict=True):
            with open(path, "rb") as file:
                assert read[name][ending] == file.read()


def test_the_parts_are_those_of_the_files(cars, made):
    index = json.loads((made / "index.json").read_text())
    for part, dataset in build_carvana(cars, patch_size=32, **CUT).items():
        shards = index["parts"][part]
        assert [sample[0] for shard in shards for sample in shard["samples"]] == dataset.names
        assert [sample[1] for shard in shards for sample in shard["samples"]] == dataset.groups
        assert all(len(shard["samples"]) == 3 for shard in shards[:-1])


def test_the_same_files_give_the_same_shards_bit_for_bit(cars, made, contents, tmp_path):
    make_shards(cars, tmp_path / "100%d of it", samples_per_shard=3, **CUT)
    assert contents(tmp_path / "100%d of it") == contents(made)


def test_the_index_comes_last_and_what_was_never_finished_is_made_again(cars, made, contents, tmp_path, monkeypatch):
    write, left = module.write_shard, [4]

    def write_until_the_disk_is_full(path, pairs):
        left[0] -= 1
        if left[0] < 0:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return write(path, pairs)

    monkeypatch.setattr(module, "write_shard", write_until_the_disk_is_full)
    with pytest.raises(UserError, match="No space left"):
        make_shards(cars, tmp_path, samples_per_shard=3, **CUT)
    assert not (tmp_path / "index.json").exists() and len(list(tmp_path.iterdir())) == 5
    monkeypatch.setattr(module, "write_shard", write)
    (tmp_path / "train-000077.tar").write_bytes(b"of a larger data set")
    make_shards(cars, tmp_path, samples_per_shard=3, **CUT)
    assert contents(tmp_path) == contents(made)


@pytest.mark.parametrize(("name", "said"), [("index.json", "finished shards"), ("notes.txt", "notes.txt")])
def test_nothing_else_is_overwritten(cars, name, said, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=said):
        make_shards(cars, tmp_path, **CUT)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["a.b_01", "a" * 90 + "_01"])
def test_a_name_that_a_shard_cannot_hold_is_refused(cars, name, tmp_path):
    shutil.copytree(cars, tmp_path / "cars")
    image_path, mask_path = find_pairs(cars)[0]
    shutil.copy(image_path, tmp_path / "cars" / "train" / f"{name}.jpg")
    shutil.copy(mask_path, tmp_path / "cars" / "train_masks" / f"{name}_mask.gif")
    with pytest.raises(UserError, match=f"{name}.jpg: .* at most 80 characters and no dot"):
        make_shards(tmp_path / "cars", tmp_path / "shards", **CUT)
    assert not (tmp_path / "shards").exists()


def test_without_the_library_it_says_what_to_install(cars, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(UserError, match="pip install webdataset"):
        make_shards(cars, tmp_path / "shards", **CUT)
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--samples_per_shard", "0"], "samples_per_shard"),
        (["--data_dir", "nowhere"], "nowhere"),
        (["--test_sample_rate", "99"], "--test_sample_rate 99"),
        (["--split_sed", "1"], "split_seed"),
    ],
)
def test_a_wrong_option_ends_with_one_line(cars, flags, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--data_dir", str(cars), "--shards_dir", str(tmp_path / "shards"), *flags])
    assert ended.value.code == 2 and said in capsys.readouterr().err
