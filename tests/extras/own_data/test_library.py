"""Data sets of torchvision by name, on made-up files and without a network."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from engine.registry import find
from extras.own_data.library import DATASETS, Decoded, InMemory, from_torchvision
from utils.errors import UserError


class Pictures:
    """Stands for a data set of torchvision."""

    classes = ["a", "b", "c"]

    def __init__(self, root=None, train=True, download=False):
        generator = np.random.default_rng(int(train))
        self.count = 12 if train else 6
        self.targets = [number % 3 for number in range(self.count)]
        self.data = generator.integers(0, 256, (self.count, 8, 8, 3), dtype=np.uint8)
        if not download and root is not None and not root.exists():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        if download:
            raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Image.fromarray(self.data[index]), self.targets[index]


@pytest.fixture
def cifar(monkeypatch, tmp_path):
    """A function that makes a data set of this name out of `Pictures`."""
    Pictures.__name__ = "CIFAR10"
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Pictures)
    return lambda **arguments: from_torchvision("CIFAR10")(tmp_path, **arguments)


def test_every_listed_name_is_one_of_torchvision():
    assert all(hasattr(torchvision.datasets, name) for name in DATASETS)


def test_pixels_that_are_in_memory_stay_there(cifar):
    parts = cifar()
    assert list(parts) == ["train", "test"] and all(type(part) is InMemory for part in parts.values())
    image, label = parts["train"][4]
    source = Pictures()
    assert torch.equal(image, torch.tensor(source.data[4]).permute(2, 0, 1) / 255) and label == 1
    assert parts["test"].found_options == {
        "n_channels": 3, "image_size": 8, "n_classes": 3, "class_names": ["a", "b", "c"]
    }  # fmt: skip
    some = parts["train"].select([3, 5]).to("cpu")
    assert some.names == some.groups == ["CIFAR10/train/00003", "CIFAR10/train/00005"] and some.targets == [0, 2]


def test_another_size_or_number_of_channels_is_decoded(cifar):
    part = cifar(image_size=16, n_channels=1)["train"]
    assert type(part) is Decoded and part[0][0].shape == (1, 16, 16) and part[2][1] == 2
    assert part.select([2, 1]).names == ["CIFAR10/train/00002", "CIFAR10/train/00001"]
    assert part.select([2, 1])[0][1] == 2 and part.found_options["image_size"] == 16
    part = cifar(n_channels=3, image_size=16)["train"]
    expected = Image.fromarray(Pictures().data[0]).resize((16, 16))
    assert torch.equal(part[0][0], torch.tensor(np.array(expected)).permute(2, 0, 1) / 255)


def test_what_cannot_be_downloaded_or_is_unknown_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Pictures)
    Pictures.__name__ = "CIFAR10"
    with pytest.raises(
        UserError, match=r"torchvision:CIFAR10 is not in .*none, and cannot be downloaded: .*resolution"
    ):
        from_torchvision("CIFAR10")(tmp_path / "none")
    with pytest.raises(UserError, match="did you mean 'CIFAR10'"):
        find("data", "torchvision:CIFAR11")


def test_a_set_without_parts_is_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(torchvision.datasets, "EuroSAT", lambda root, download: Pictures(root))
    assert list(from_torchvision("EuroSAT")(tmp_path)) == ["all"]
