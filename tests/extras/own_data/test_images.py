"""Class folders and tables of image files: what is found, how it is read, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.callback import Callback
from data.data_entry import build_datasets, seen_groups
from engine.options.parser import Options, changed
from extras.own_data import content
from extras.own_data.cut import cut_parts
from extras.own_data.folder import build_image_folder
from extras.own_data.image_table import build_image_table
from extras.own_data.images import ImageFiles, read_input
from utils.errors import UserError

RED, GREY = (255, 0, 0), 128


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (12, 10), colour=RED, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **how)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of ten files, whose colours differ."""
    for number in range(10):
        for which, name in enumerate(("cat", "dog")):
            save(
                tmp_path / "pictures" / name / f"p{number // 2}_{number}.png", colour=(20 * number, 100 * which, number)
            )
    return tmp_path / "pictures"


# ---- one file --------------------------------------------------------------------------------------------------------
def test_files_of_every_kind_give_the_same_picture(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png", "RGBA", colour=(*RED, 255))
    save(tmp_path / "c.tif", "CMYK", colour=(0, 255, 255, 0))
    Image.new("RGB", (12, 10), RED).quantize(4).save(tmp_path / "d.gif")
    for name in ("a.png", "b.png", "c.tif", "d.gif"):
        image = read_input(tmp_path / name, 3, 8)
        assert image.shape == (3, 8, 8) and image.dtype == torch.float32
        assert image.mean(dim=(1, 2)).tolist() == [1, 0, 0], name
    levels = np.full((4, 6), 65535, dtype=np.uint16)
    levels[:, :3] = 0
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert read_input(tmp_path / "deep.png", 1, None)[0, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_photo_is_turned_upright(tmp_path):
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[:, 3:] = 255  # white on the right
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise, which puts its right side below
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = read_input(tmp_path / "a.png", 1, None)
    assert image.shape == (1, 6, 4) and image[0, :3].max() == 0 and image[0, 3:].min() == 1


def test_transparent_pixels_are_refused_unless_a_background_is_given(tmp_path):
    path = save(tmp_path / "a.png", "RGBA", colour=(*RED, 0))
    with pytest.raises(UserError, match=r"has transparent pixels.*--set data_args.background=white"):
        read_input(path, 3, 8)
    assert read_input(path, 3, 8, background="white").min() == 1
    assert read_input(path, 3, None, background="#0000ff")[:, 0, 0].tolist() == [0, 0, 1]
    half = save(tmp_path / "b.png", "LA", colour=(0, 51))
    assert torch.allclose(read_input(half, 1, 8, background="white"), torch.tensor(204 / 255))
    opaque = save(tmp_path / "c.png")
    assert torch.equal(read_input(opaque, 3, 8, background="white"), read_input(opaque, 3, 8))


# ---- class folders ---------------------------------------------------------------------------------------------------
def test_folders_are_classes_in_the_order_of_their_names(folder):
    (folder / "cat" / "Thumbs.db").write_bytes(b"x")
    (folder / ".ipynb_checkpoints").mkdir()
    save(folder / "dog" / "deeper" / "x.JPG", size=(20, 30))
    whole = build_image_folder(folder)["all"]
    assert whole.targets == [0] * 10 + [1] * 11 and whole.names[0] == "cat/p0_0.png"
    assert whole.names[10] == "dog/p0_0.png" and "dog/deeper/x.JPG" in whole.names
    assert whole.found_options == {"n_classes": 2, "class_names": ["cat", "dog"], "n_channels": 3, "image_size": 30}
    image, label = whole[0]
    assert image.shape == (3, 30, 30) and label == 0
    assert "cat 10, dog 11" in whole.summary and "1 other files were passed over" in whole.summary


def test_links_are_followed_to_each_directory_once(folder):
    save(folder.parent / "elsewhere" / "deeper" / "x.png")
    (folder.parent / "elsewhere" / "deeper" / "back").symlink_to(folder.parent / "elsewhere")
    (folder / "dog" / "more").symlink_to(folder.parent / "elsewhere")
    for circle, target in {"self": folder / "cat", "up": folder, "root": "/"}.items():
        (folder / "cat" / circle).symlink_to(target)
    names = build_image_folder(folder)["all"].names
    assert len(names) == 21 and names[-1] == "dog/more/deeper/x.png"


def test_grey_files_have_one_channel_and_large_ones_are_shrunk(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name / "1.png", "L", (300, 200), GREY)
        save(tmp_path / name / "2.png", "I;16", (300, 200), 40000)
        save(tmp_path / name / "3.gif", "L", (300, 200), GREY)
    found = build_image_folder(tmp_path)["all"].found_options
    assert (found["n_channels"], found["image_size"]) == (1, 64)
    whole = build_image_folder(tmp_path, n_channels=3, image_size=16)["all"]
    assert whole[0][0].shape == (3, 16, 16)


def test_folders_of_parts_are_the_parts(folder):
    for part in ("train", "valid", "test"):
        (folder / part).mkdir()
    for name in ("cat", "dog"):
        (folder / name).rename(folder / "train" / name)
    save(folder / "valid" / "dog" / "new.png", colour=(1, 2, 3))
    save(folder / "test" / "cat" / "new.png", colour=(3, 2, 1))
    parts = build_image_folder(folder)
    assert {part: len(dataset) for part, dataset in parts.items()} == {"train": 20, "val": 1, "test": 1}
    assert parts["val"].targets == [1] and parts["val"].found_options["class_names"] == ["cat", "dog"]
    (folder / "val").mkdir()
    with pytest.raises(UserError, match="are both the val part"):
        build_image_folder(folder)


def test_copies_of_a_file_stay_in_one_part_and_are_found_across_given_parts(folder):
    for number in range(10):
        (folder / "cat" / f"copy{number}.png").write_bytes(
            (folder / "cat" / f"p{number // 2}_{number}.png").read_bytes()
        )
    opt = Options(train_val_sample_rate=1.0, test_sample_rate=0.3, val_split=0.3, split_seed=0, data_type="ImageFolder")
    parts = cut_parts(build_image_folder(folder), opt)
    seen_groups(parts)
    assert len(parts["train"]) + len(parts["val"]) + len(parts["test"]) == 30
    (folder / "train").mkdir()
    for name in ("cat", "dog"):
        (folder / name).rename(folder / "train" / name)
    (folder / "test" / "cat").mkdir(parents=True)
    (folder / "test" / "cat" / "other.png").write_bytes((folder / "train" / "cat" / "copy3.png").read_bytes())
    parts = cut_parts(build_image_folder(folder), changed(opt, test_sample_rate=None))
    words = r"1 of the 1 groups of the test part are in the (train|val) part, too, .*: test/cat/other\.png of test and"
    with pytest.raises(UserError, match=words + r" train/cat/(copy3|p1_3)\.png of (train|val) are of one group"):
        seen_groups(parts)
    assert len(seen_groups(parts, changed(opt, allow_shared=True, pretrained=None, resume=None)).data["train"]) > 0


def test_the_name_may_tell_the_group(folder):
    whole = build_image_folder(folder, group_until="_")["all"]
    assert whole.groups[:3] == ["p0", "p0", "p1"] and set(whole.groups) == {f"p{number}" for number in range(5)}


def test_files_of_the_same_content_in_two_classes_are_named(folder):
    (folder / "dog" / "z.png").write_bytes((folder / "cat" / "p0_1.png").read_bytes())
    words = "1 files are in another class, too, with the same content: cat/p0_1.png and dog/z.png"
    assert build_image_folder(folder)["all"].report == words


def test_a_link_to_nothing_is_a_sample_that_cannot_be_loaded(folder):
    """So --skip_bad_samples may skip it."""
    (folder / "cat" / "a.png").symlink_to(folder / "none.png")
    whole = build_image_folder(folder)["all"]
    assert len(whole) == 21 and len(set(whole.groups)) == 21 and len(whole.fingerprint()) == 64
    with pytest.raises(UserError, match=r"cat/a.png cannot be read as an image"):
        whole[0]


def test_groups_that_have_copies_of_a_file_are_one(folder):
    (folder / "cat" / "q_1.png").write_bytes((folder / "cat" / "p0_1.png").read_bytes())
    (folder / "cat" / "r_1.png").write_bytes((folder / "cat" / "q_1.png").read_bytes())
    whole = build_image_folder(folder, group_until="_")["all"]
    assert set(whole.groups) == {f"p{number}" for number in range(5)} and whole.groups[-12:-10] == ["p0", "p0"]
    assert whole.report == "2 groups were joined to others, which have a file of the same content"
    (folder / "test").mkdir()
    (folder / "cat" / "r_1.png").rename(folder / "r_1.png")
    for part in ("train", "test"):
        (folder / part / "cat").mkdir(parents=True)
        (folder / part / "dog").mkdir()
    (folder / "cat" / "q_1.png").rename(folder / "train" / "cat" / "q_1.png")
    (folder / "dog" / "p0_0.png").rename(folder / "train" / "dog" / "s_0.png")
    (folder / "r_1.png").rename(folder / "test" / "cat" / "r_1.png")
    (folder / "dog" / "p1_2.png").rename(folder / "test" / "dog" / "t_0.png")
    with pytest.raises(UserError, match=r"test/cat/r_1.png of test and train/cat/q_1.png of train are of one group"):
        seen_groups(build_image_folder(folder, group_until="_"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: save(d / "owl" / "x.txt.png").rename(d / "owl" / "x.txt"), "class folder .*owl has no image"),
        (lambda d: [path.rename(d / "x") for path in [d / "cat"]] and (d / "x").rename(d / "dog" / "cat"), "one class"),
        (lambda d: [(d / old).rename(d / new) for old, new in (("cat", "-cat"),)], "'-cat' cannot be the name"),
        (lambda d: ((d / "Training").mkdir(), [(d / c).rename(d / "Training" / c) for c in ("cat", "dog")]),
         "look like parts, not classes: name them train, val and test"),
        (lambda d: ((d / "train").mkdir(), [(d / c).rename(d / "train" / c) for c in ("cat", "dog")],
                    save(d / "test" / "1.png")), "test has no class folders. Images without a class are for predict"),
        (lambda d: ((d / "train").mkdir(), (d / "cat").rename(d / "train" / "cat"),
                    (d / "test").mkdir(), (d / "dog").rename(d / "test" / "dog")),
         "train has no folder of the class 'dog'"),
    ],
)  # fmt: skip
def test_what_makes_no_classes_is_refused(folder, change: Callable, words):
    change(folder)
    with pytest.raises(UserError, match=words):
        build_image_folder(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_channels": 4}, "--n_channels 4 does not fit images"), ({"white": -1}, "data_args.white '-1' is no level"),
        ({"background": "blu"}, "'blu' is no colour"), ({"group_until": 3}, "'3' is no text"),
        ({"class_names": ["cat"]}, "has the class 'dog', but the classes are cat"),
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(folder, arguments, words):
    with pytest.raises(UserError, match=words):
        build_image_folder(folder, **arguments)


def test_a_missing_or_empty_directory_is_named(tmp_path):
    with pytest.raises(UserError, match="There is no directory"):
        build_image_folder(tmp_path / "none")
    with pytest.raises(UserError, match="There are no class folders"):
        build_image_folder(tmp_path)


def test_names_given_twice_are_refused_and_those_without_images_are_told(folder):
    with pytest.raises(UserError, match="--class_names has 'cat' twice: give each class a name of its own"):
        build_image_folder(folder, class_names=["cat", "dog", "cat"])
    whole = build_image_folder(folder, class_names=["cat", "dog", "owl"])["all"]
    assert whole.summary.endswith("; no image is of owl: see --class_names")


def test_names_of_the_checkpoint_are_the_order_of_the_classes(folder):
    whole = build_image_folder(folder, class_names=["owl", "dog", "cat"])["all"]
    assert set(whole.targets) == {1, 2} and whole.found_options["n_classes"] == 3 and whole.targets[0] == 2


# ---- the content of the files ----------------------------------------------------------------------------------------
def test_the_fingerprint_covers_names_classes_and_contents(folder, monkeypatch):
    before = build_image_folder(folder)["all"].fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", before) and before == build_image_folder(folder)["all"].fingerprint()
    path = folder / "cat" / "p0_0.png"
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])  # of the same size
    assert build_image_folder(folder)["all"].fingerprint() != before
    monkeypatch.setattr(content, "MOST_BYTES", 10)
    large = build_image_folder(folder)["all"]
    assert large.fingerprint().endswith("(contents of 20 of 20 files)") and "copies were not looked for" in large.report
    assert large.groups[0].startswith("cat/p0_0.png ")


# ---- tables ----------------------------------------------------------------------------------------------------------
def write(folder: Path, *lines: str) -> None:
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")


def test_a_table_names_files_labels_parts_and_groups(folder):
    write(
        folder, "file;label;split;group", "cat/p0_0.png;10;train;a", "cat/p0_1.png;9;train;b", "dog/p0_0.png;9;valid;c"
    )
    parts = build_image_table("labels.csv", data_dir=folder)
    assert {part: (dataset.names, dataset.targets, dataset.groups) for part, dataset in parts.items()} == {
        "train": (["cat/p0_0.png", "cat/p0_1.png"], [1, 0], ["a", "b"]), "val": (["dog/p0_0.png"], [0], ["c"])
    }  # fmt: skip
    assert parts["train"].found_options["class_names"] == ["9", "10"]
    write(folder, "name,kind", "cat/p0_0.png,x", "dog/p0_0.png,y")
    whole = build_image_table("labels.csv", data_dir=folder, file="name", label="kind")["all"]
    assert whole.targets == [0, 1] and isinstance(whole, ImageFiles)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (("file,lable", "cat/p0_0.png,x"), "has no column 'label' .did you mean 'lable'.*; it has file, lable"),
        (("file,label", "cat/p0_0.png,x", "cat/p0_1.png,"), "line 3: the column label is empty"),
        (("file,label", "cat/p0_0.png"), "line 2: it has not as many values"),
        (("file,label,split", "cat/p0_0.png,x,dev"), "'dev' is no part: give train, val or test"),
        (("file,label", "cat/p0_0.png,x", "cat/p0_0.png,y"), "names files twice: cat/p0_0.png"),
        (("file,label", "cat/p0_0.png,x", "./cat//p0_0.png,y"), "twice: cat/p0_0.png and ./cat//p0_0.png. Give each"),
        (("file,label", "cat/none.png,x"), "names files that are not there: .*cat/none.png"),
        (("file,label", "cat/p0_0.png,x"), "has one class only, 'x'"),
        (("file,label",), "has no line below a header"),
        (("",), "has no line below a header"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(folder, lines, words):
    write(folder, *lines)
    with pytest.raises(UserError, match=words):
        build_image_table("labels.csv", data_dir=folder)


def test_a_table_that_is_no_text_is_refused(folder):
    (folder / "labels.csv").write_bytes(b"file,label\n\xff\xfe,x\n")
    with pytest.raises(UserError, match="is not text in UTF-8"):
        build_image_table("labels.csv", data_dir=folder)
    with pytest.raises(UserError, match=r"none.csv cannot be read: No such file"):
        build_image_table("none.csv", data_dir=folder)


# ---- in a task -------------------------------------------------------------------------------------------------------
def test_a_run_keeps_the_classes_and_an_evaluation_reads_new_files_by_them(folder, train, tmp_path):
    trainer = train("--data_type", "ImageFolder", "--data_dir", folder, "--test_sample_rate", 4, "--val_split", 4)
    assert trainer.opt.class_names == trainer.evaluator.classes == ["cat", "dog"]
    assert (trainer.opt.n_classes, trainer.opt.n_channels, trainer.opt.image_size) == (2, 3, 12)
    assert trainer.networks["model"].layers[0].in_features == 3 * 12 * 12
    save(tmp_path / "new" / "dog" / "1.jpg", size=(500, 400))
    asked = {"test_sample_rate": 1.0, "data_dir": tmp_path / "new", "data_args": {}}
    parts = build_datasets(Options(**vars(trainer.opt) | asked | {"split": "test"}))
    image, label = parts["test"][0]
    assert image.shape == (3, 12, 12) and label == 1


class StopsAfter(Callback):
    """Stops the training after an update."""

    def __init__(self, update: int):
        self.update = update

    def on_update_end(self, trainer, values):
        trainer.should_stop = trainer.progress.update == self.update


def test_a_stopped_run_goes_on_to_the_same_weights(folder, train, weights):
    flags = ("--data_type", "ImageFolder", "--data_dir", folder, "--test_sample_rate", 4, "--batch_size", 4)
    whole = train(*flags)
    stopped = train(*flags, callbacks=[StopsAfter(3)])
    assert stopped.progress.update == 3 < whole.progress.update
    resumed = train("--resume", stopped.run_dir.path, "--num_workers", 1)
    assert resumed.progress.update == whole.progress.update
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_options_that_contradict_the_folders_are_refused(folder, build):
    flags = ("--data_type", "ImageFolder", "--data_dir", folder)
    with pytest.raises(UserError, match="--n_classes '3' contradicts the data, with '2': leave it out"):
        build(*flags, "--n_classes", 3)
    with pytest.raises(UserError, match="--image_size 16 has no effect"):
        build("--image_size", 16)
