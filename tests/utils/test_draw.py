"""Pictures have the layout, the colours and the size that they should, and need no display."""

import numpy as np
import pytest
import torch
from PIL import Image

from extras.confusion_matrix import save_confusion_matrix
from utils.draw import captioned_grid, contact_sheet, save_picture, to_pixels


def is_picture(picture: torch.Tensor) -> bool:
    return picture.dtype == torch.uint8 and picture.ndim == 3 and len(picture) == 3


def coloured(picture: torch.Tensor) -> int:
    """The number of pixels that are not grey."""
    return int((picture.amax(dim=0).int() - picture.amin(dim=0).int() > 40).sum())


def test_values_become_pixels():
    grey = torch.tensor([[[0.0, 0.5, 1.0, -3.0, 7.0]]])  # (1, 1, 5), the last two out of range
    assert to_pixels(grey)[0, :, 0].tolist() == [0, 128, 255, 0, 255]
    assert to_pixels(grey).shape == to_pixels(grey.expand(3, 1, 5).half().requires_grad_()).shape == (1, 5, 3)


@pytest.mark.parametrize(("num_channels", "mode"), [(1, "L"), (3, "RGB")])
def test_saved_picture_has_its_own_size(tmp_path, num_channels, mode):
    picture = torch.zeros(num_channels, 5, 7)
    picture[:, 1, 2] = 1
    save_picture(picture, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as saved:
        assert saved.size == (7, 5) and saved.mode == mode
        assert np.asarray(saved)[1, 2].max() == 255 and np.asarray(saved).astype(int).sum() == 255 * num_channels


@pytest.mark.parametrize(("num_images", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (5, 2, 3), (30, 4, 4)])
def test_grid_is_as_square_as_it_can_be_and_stops_at_the_limit(num_images, rows, columns):
    images, captions = torch.rand(num_images, 1, 8, 8), ["caption"] * num_images
    picture = captioned_grid(images, captions, max_images=16)
    assert is_picture(picture) and picture.shape[1:] == (8 + (14 + 8 + 112 + 8) * rows, 8 + 120 * columns)


def test_nothing_to_show_gives_an_empty_picture(tmp_path):
    picture = captioned_grid(torch.rand(0, 1, 8, 8), [], path=tmp_path / "empty.png")
    assert (picture == 255).all() and (tmp_path / "empty.png").exists()


def test_marked_captions_are_red_and_others_are_not():
    images, captions = torch.zeros(2, 1, 8, 8), ["Coat", "Bag"]
    assert coloured(captioned_grid(images, captions)) == 0
    one = coloured(captioned_grid(images, captions, marked=[False, True]))
    both = coloured(captioned_grid(images, captions, marked=[True, True]))
    assert 0 < one < both


def test_colours_arrive():
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 1
    assert coloured(captioned_grid(red, [""])) > 2000


@pytest.mark.parametrize("caption", ["a_$x$_b.jpg", r"$\broken{$", "ü 车"])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_caption_is_shown_as_it_is(caption):
    """Not as a formula: the name of a file may be none that can be parsed."""
    assert is_picture(captioned_grid(torch.zeros(1, 1, 8, 8), [caption]))
    assert is_picture(contact_sheet([[torch.zeros(1, 8, 8)]], [[caption]]))


def test_sheet_has_a_row_for_each_sample_and_is_saved(tmp_path):
    row = [torch.rand(3, 10, 20), torch.rand(1, 10, 20)]
    one = contact_sheet([row], [["image", "mask"]], path=tmp_path / "sheet.png")
    three = contact_sheet([row] * 3, [["image", "mask"]] * 3)
    assert is_picture(one) and one.shape[2] == three.shape[2] == 8 + 2 * 248
    assert (one.shape[1], three.shape[1]) == (8 + 150, 8 + 3 * 150)
    with Image.open(tmp_path / "sheet.png") as saved:
        assert saved.size == (one.shape[2], one.shape[1])


def test_sheet_with_a_caption_too_few_is_a_fault():
    with pytest.raises(ValueError, match="zip"):
        contact_sheet([[torch.zeros(1, 4, 4)] * 2], [["only one"]])


@pytest.mark.parametrize("names", [["cat", "dog", "bird"], ["too", "few"]])
def test_confusion_matrix_is_drawn_with_empty_rows_too(tmp_path, names):
    save_confusion_matrix(torch.tensor([[5, 1, 0], [0, 9, 0], [0, 0, 0]]), names, tmp_path / "matrix.png")
    with Image.open(tmp_path / "matrix.png") as saved:
        assert coloured(torch.from_numpy(np.array(saved)[..., :3]).permute(2, 0, 1)) > 1000  # the blue of the diagonal


def test_of_many_channels_the_first_are_shown(tmp_path):
    picture = torch.rand(5, 4, 4)
    for shown, given in ((3, 5), (1, 2)):
        assert (to_pixels(picture[:given]) == to_pixels(picture[:shown])).all()
    save_picture(picture, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as saved:
        assert saved.mode == "RGB"
