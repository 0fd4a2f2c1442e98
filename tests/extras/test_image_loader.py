import io
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import extras.image_loader
from extras.image_loader import jpeg_decoder, load_pixels
from utils.errors import UserError
from utils.image_file import read_pixels

ENCODINGS = {
    "4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True}, "quality 10": {"quality": 10}, "quality 100": {"quality": 100},
    "restart markers": {"restart_marker_blocks": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def photo():
    """An image with fine detail, 101 x 67 pixels: no whole number of blocks."""
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    rough = rough.resize((101, 67), Image.Resampling.BICUBIC)
    noise = rng.integers(-20, 21, (67, 101, 3))
    return Image.fromarray((np.asarray(rough).astype(int) + noise).clip(0, 255).astype(np.uint8))


def plain(path, mode="RGB", size=None):
    """Return the image as Pillow decodes it without any hint, int64 (C, H, W)."""
    with Image.open(path) as image:
        image = image.convert(mode)
        image = image if size is None else image.resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image).reshape(image.height, image.width, -1)).permute(2, 0, 1).long()


def largest_difference(pixels, expected):
    assert pixels.dtype == torch.uint8 and pixels.shape == expected.shape
    return int((pixels.long() - expected).abs().max())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_jpeg_gives_the_bytes_of_pillow(tmp_path, photo, encoding):
    photo.save(tmp_path / "a.jpg", **ENCODINGS[encoding])
    assert largest_difference(load_pixels(tmp_path / "a.jpg"), plain(tmp_path / "a.jpg")) == 0
    assert torch.equal(load_pixels(tmp_path / "a.jpg", 1), torch.from_numpy(read_pixels(tmp_path / "a.jpg", 1)))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("size", [(64, 48), (33, 20), (16, 16), (150, 90)])
def test_a_resized_jpeg_is_within_one_level_of_pillow(tmp_path, photo, encoding, size):
    photo.save(tmp_path / "a.jpg", **ENCODINGS[encoding])
    assert largest_difference(load_pixels(tmp_path / "a.jpg", 3, size), plain(tmp_path / "a.jpg", size=size)) <= 1


def test_a_draft_is_what_pillow_decodes_smaller_and_another_picture(tmp_path, photo):
    photo.save(tmp_path / "a.jpg")
    draft = load_pixels(tmp_path / "a.jpg", 3, (30, 20), draft=True)
    assert torch.equal(draft, torch.from_numpy(read_pixels(tmp_path / "a.jpg", 3, (30, 20))))
    assert largest_difference(draft, plain(tmp_path / "a.jpg", size=(30, 20))) > 1  # so the tests above can fail
    little = load_pixels(tmp_path / "a.jpg", 3, (60, 30), draft=True)  # 101 is less than twice 60
    assert torch.equal(little, load_pixels(tmp_path / "a.jpg", 3, (60, 30)))


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "palette.png", "alpha.png", "cmyk.jpg", "grey.jpg"])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_other_files_are_read_by_pillow_as_ever(tmp_path, photo, name, n_channels):
    mode = {"palette": "P", "alpha": "RGBA", "cmyk": "CMYK", "grey": "L"}.get(name.split(".")[0], "RGB")
    photo.convert(mode).save(tmp_path / name)
    expected = torch.from_numpy(read_pixels(tmp_path / name, n_channels))
    assert torch.equal(load_pixels(tmp_path / name, n_channels), expected)
    small = load_pixels(tmp_path / name, n_channels, (40, 30))
    assert small.shape == (n_channels, 30, 40) and small.dtype == torch.uint8


def test_the_extension_does_not_matter(tmp_path, photo):
    photo.save(tmp_path / "a.jpg")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.jpg").read_bytes())
    assert torch.equal(load_pixels(tmp_path / "b.png"), load_pixels(tmp_path / "a.jpg"))


def test_without_torchvisions_decoder_the_bytes_are_the_same(tmp_path, photo, monkeypatch):
    photo.save(tmp_path / "a.jpg")
    with_it = [load_pixels(tmp_path / "a.jpg", channels, size) for channels in (1, 3) for size in (None, (40, 30))]
    monkeypatch.setattr(extras.image_loader, "jpeg_decoder", lambda: None)
    without = [load_pixels(tmp_path / "a.jpg", channels, size) for channels in (1, 3) for size in (None, (40, 30))]
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))


def test_torchvisions_decoder_is_used_and_does_not_warn(tmp_path, photo, monkeypatch):
    photo.save(tmp_path / "a.jpg")
    monkeypatch.setattr(extras.image_loader, "read_pixels", lambda *_: pytest.fail("Pillow decoded it"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jpeg_decoder.cache_clear()
        load_pixels(tmp_path / "a.jpg")
    assert [str(warning.message) for warning in caught] == []


# ---- orientation -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8, 99])
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_an_image_is_turned_upright(tmp_path, photo, orientation, extension):
    path, exif = tmp_path / f"a.{extension}", Image.Exif()
    exif[0x0112] = orientation
    photo.save(path, exif=exif)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    assert torch.equal(load_pixels(path), expected)
    for draft in (False, True):
        small = load_pixels(path, 3, (40, 25), draft=draft).long()
        resized = np.array(upright.resize((40, 25), Image.Resampling.BILINEAR))
        far = (small - torch.from_numpy(resized).permute(2, 0, 1)).abs()
        assert small.shape == (3, 25, 40) and far.max() <= 1 + 50 * draft


# ---- what is no image ------------------------------------------------------------------------------------------------
def test_what_cannot_be_read_is_named(tmp_path, photo):
    with pytest.raises(UserError, match=r"none\.jpg cannot be read as an image"):
        load_pixels(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"text\.jpg cannot be read as an image"):
        load_pixels(tmp_path / "text.jpg")
    photo.save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-300])
    with pytest.raises(UserError, match=r"cut\.jpg cannot be read as an image \(.*truncated"):
        load_pixels(tmp_path / "cut.jpg")


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, photo, monkeypatch, name):
    photo.save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 101 * 67 - 1)
    monkeypatch.setattr(extras.image_loader, "decode_jpeg_file", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match="is too large"):
        load_pixels(tmp_path / name)


def test_damaged_files_are_refused_or_read_as_by_pillow(tmp_path, photo):
    """A few bytes of a JPEG are changed: no crash, and no other pixels than Pillow's."""
    content, rng = io.BytesIO(), np.random.default_rng(1)
    photo.save(content, "JPEG")
    path, outcomes = tmp_path / "a.jpg", {"read": 0, "refused": 0}
    for _ in range(300):
        damaged = bytearray(content.getvalue())
        for place in rng.integers(2, len(damaged), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            expected = torch.from_numpy(read_pixels(path))
        except UserError:
            with pytest.raises(UserError, match=r"a\.jpg (cannot be read|is too large)"):
                load_pixels(path)
            outcomes["refused"] += 1
        else:
            assert torch.equal(load_pixels(path), expected)
            outcomes["read"] += 1
    assert min(outcomes.values()) > 10


def test_the_loader_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(load_pixels)) is load_pixels
