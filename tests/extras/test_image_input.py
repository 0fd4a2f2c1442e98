"""Images of a user, read as the training data was."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from extras.image_input import read_for_masks, read_image
from utils.errors import UserError

OPTIONS = {"n_channels": 1, "data_type": "FashionMNISTSample", "data_args": {}}
MASKS = {"n_channels": 3, "data_type": "Carvana", "data_args": {}, "patch_size": 16}


@pytest.fixture
def photo(tmp_path):
    """A photo whose left half is red, 40 x 20 pixels as it is seen, and lies on its side in the file."""
    image = Image.new("RGB", (40, 20))
    image.paste((255, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image.rotate(90, expand=True).save(tmp_path / "a.png", exif=exif)
    return tmp_path / "a.png"


def test_a_classifier_gets_the_size_of_its_training_images(photo):
    image = read_image(photo, Namespace(**OPTIONS))
    assert image.shape == (1, 28, 28) and image.dtype == torch.float32
    assert image[0, 0, 0] == pytest.approx(76 / 255) and image[0, 0, 27] == 0  # red is 0.299 of white, upright
    assert read_image(photo, Namespace(**OPTIONS | {"image_size": 8})).shape == (1, 8, 8)


def test_a_size_that_nobody_tells_is_asked_for(photo):
    with pytest.raises(UserError, match="give --image_size N"):
        read_image(photo, Namespace(**OPTIONS | {"data_type": "mine:Data", "image_size": None}))


@pytest.mark.parametrize(("mode", "shape"), [("direct", (3, 16, 16)), ("padding", (3, 20, 40))])
def test_a_segmentation_network_gets_the_size_that_it_is_evaluated_on(photo, mode, shape):
    assert read_for_masks(photo, Namespace(mode=mode, **MASKS)).shape == shape


def test_the_level_of_white_is_that_of_training(tmp_path):
    Image.fromarray(np.full((28, 28), 2048, np.uint16)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", Namespace(**OPTIONS | {"data_args": {"white": 4095}}))
    assert image.unique().tolist() == [pytest.approx(128 / 255)]
    with pytest.raises(UserError, match="white is not known"):
        read_image(tmp_path / "a.png", Namespace(**OPTIONS))


def test_what_is_behind_transparent_pixels_is_that_of_training(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"--set data_args\.background=white"):
        read_image(tmp_path / "a.png", Namespace(**OPTIONS))
    image = read_image(tmp_path / "a.png", Namespace(**OPTIONS | {"data_args": {"background": "white"}}))
    assert image.unique().tolist() == [1]
    with pytest.raises(UserError, match="is no colour"):
        read_image(tmp_path / "a.png", Namespace(**OPTIONS | {"data_args": {"background": 7}}))
