"""The data of a task as the network gets it: shares, copies and pictures by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from extras.data_picture import caption, sample_cells, with_mask
from tests import own_data
from tools.look import main
from tools.looking.parts import copies, numbers_by_part, shares_in_masks


class Files:
    """Samples that are files."""

    def __init__(self, *paths):
        self.paths = self.names = self.groups = list(map(str, paths))

    def __len__(self):
        return len(self.paths)


def test_copies_are_found_by_their_content(tmp_path):
    for name, content in {"a": b"1", "b": b"1", "c": b"2", "d": b"2", "e": b"3"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c, d, e = (tmp_path / name for name in "abcde")
    lines = copies({"train": Files(a, c, d), "test": Files(b, e)})
    assert lines == ["copies in different parts: 1", f"  {a} (train) = {b} (test)", "copies within a part: 1"]


def test_shares_of_classes_in_masks():
    train = [torch.tensor([[0, 1], [1, -100]]), torch.tensor([[0, 0], [0, 0]])]
    masks = {"train": train, "val": [torch.tensor([[1, 0]])]}
    rows = shares_in_masks(masks, masks, None, ["ground", "car"])
    assert rows[1:] == [
        ["ignored", "", "12.5%, 1 of 2", "0.0%, 0 of 1"],
        ["ground", "", "62.5%, 2 of 2", "50.0%, 1 of 1"],
        ["car", "", "25.0%, 1 of 2", "50.0%, 1 of 1"],
    ]
    assert numbers_by_part({"train": [1.0, 4.0], "val": []})[1:] == [
        ["least", "1", ""], ["mean", "2.5", ""], ["largest", "4", ""],
    ]  # fmt: skip


def test_pictures_of_samples():
    mask = torch.tensor([[0, 1], [-100, 0]])
    picture = with_mask(torch.full((1, 2, 2), 0.5), mask)
    assert torch.equal(picture[:, 0, 0], torch.full((3,), 0.5))
    torch.testing.assert_close(picture[:, 0, 1], 0.45 * 0.5 + 0.55 * torch.tensor([255, 127, 14]) / 255)
    torch.testing.assert_close(picture[:, 1, 0], torch.full((3,), 0.45 * 0.5 + 0.55))
    assert caption(torch.tensor(-100), ["cat", "dog"]) == "ignored (-100)"
    assert caption(torch.tensor(1.25), ["cat", "dog"]) == "1.25"
    names = ["there/is a long name.png"]
    ((_, text, _),) = sample_cells(torch.zeros(1, 1, 2, 2), torch.tensor([1]), ["cat", "dog"], names)
    assert text == "is a long name...\ndog"


@pytest.fixture
def images(tmp_path):
    """Class folders with a copy of an image in another class."""
    dice = np.random.default_rng(0)
    own_data.make_images(tmp_path / "images", dice, num_each=16)
    return tmp_path / "images"


def test_normalized_input_is_told_as_the_network_gets_it(tmp_path, images, capsys):
    data = ["--data_type", "ImageFolder", "--data_dir", str(images), "--image_size", "32", "--model_type", "LeNet"]
    scale = ["--input_mean", "0.5", "0.5", "0.5", "--input_std", "0.25", "0.25", "0.25"]
    main(["--samples", "9", "trainer_vanilla.py", *data, *scale, "--seed", "0", "--output_dir", str(tmp_path / "runs")])
    (path,) = tmp_path.glob("runs/look/*/data.png")
    assert Image.open(path).width == 8 + 8 * 120
    text = capsys.readouterr().out
    assert "the network gets float32 of 3 x 32 x 32 for each of 32 samples" in text
    assert "  disc         11" in text and "copies in different parts: none" in text
    least = float(text.partition("channel 0: ")[2].split()[0])
    assert least < -1  # (0 - 0.5) / 0.25 is -2
    assert not list(tmp_path.glob("runs/*/*.pth"))


def test_a_run_saves_the_samples_of_its_first_update(tmp_path, train):
    trainer = train("--data_picture", "--max_updates", "2")
    with Image.open(trainer.run_dir.path / "data.png") as image:
        assert image.size == (8 + 8 * 120, image.height) and image.height > 4 * 112
