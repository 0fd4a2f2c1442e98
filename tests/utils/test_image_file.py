import io
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from utils.errors import UserError
from utils.image_file import image_size, read_image, read_pixels, to_float

OBJECT = np.zeros((24, 36), dtype=np.uint8)  # unlike itself, however it is turned
OBJECT[2:8, 3:12] = 1
# By orientation, which says how a file is to be turned: how it is turned when it is stored.
STORED = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270, 99: None,
}  # fmt: skip


def load_image(*arguments):
    return to_float(torch.from_numpy(read_pixels(*arguments)))


def save_turned(path, pixels, orientation):
    """Save pixels as a camera would that was held in this orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    turned = image if STORED[orientation] is None else image.transpose(STORED[orientation])
    turned.save(path, exif=exif)


@pytest.mark.parametrize(
    "mode, colour, rgb",
    [
        ("RGB", (255, 51, 0), (1, 0.2, 0)),
        ("L", 51, (0.2, 0.2, 0.2)),
        ("1", 1, (1, 1, 1)),
        ("RGBA", (255, 51, 0, 255), (1, 0.2, 0)),
        ("LA", (51, 255), (0.2, 0.2, 0.2)),
        ("CMYK", (0, 204, 255, 0), (1, 0.2, 0)),
        ("I;16", 204 * 257, (0.8, 0.8, 0.8)),
    ],
)
def test_images_of_any_mode_become_rgb_or_grey(tmp_path, mode, colour, rgb):
    path = tmp_path / "image.tif"
    if mode == "I;16":
        Image.fromarray(np.full((20, 30), colour, dtype=np.uint16)).save(path)
    else:
        Image.new(mode, (30, 20), colour).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, grey = load_image(path, 3, (16, 12)), load_image(path, 1)
    assert image.shape == (3, 12, 16) and image.dtype == torch.float32
    rgb = torch.tensor(rgb, dtype=torch.float32)
    assert torch.allclose(image, rgb[:, None, None].expand(3, 12, 16), atol=0.006)
    assert grey.shape == (1, 20, 30)
    assert torch.allclose(grey, rgb @ torch.tensor([0.299, 0.587, 0.114]), atol=0.006)


@pytest.mark.parametrize("transparency", [2, b"\xff\xff\x00"])  # no pixel is transparent
def test_a_palette_image_gives_its_colours(tmp_path, transparency):
    path = tmp_path / "image.png"
    places = Image.fromarray(OBJECT).convert("P")
    places.putpalette([0, 0, 255, 255, 0, 0, 0, 0, 0])  # blue, red, black
    places.save(path, transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_image(path)
        places.save(path, transparency=1)
        with pytest.raises(UserError, match="has transparent pixels"):
            load_image(path)
        assert (np.asarray(read_image(path, is_mask=True)) == OBJECT).all()
    assert (image[0].numpy() == OBJECT).all() and (image[2].numpy() == 1 - OBJECT).all()


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_shrinking_averages_instead_of_dropping_pixels(tmp_path, extension):
    stripes = np.zeros((256, 256), dtype=np.uint8)
    stripes[:, ::8] = 255  # one column in eight
    Image.fromarray(stripes).save(tmp_path / f"image.{extension}", quality=100)
    image = load_image(tmp_path / f"image.{extension}", 1, (32, 32))
    assert image.shape == (1, 32, 32) and torch.allclose(image, torch.tensor(1 / 8), atol=0.05)


# ---- what a file says of its pixels ----------------------------------------------------------------------------------
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
def test_an_image_is_turned_upright(tmp_path, extension, orientation):
    path = tmp_path / f"a.{extension}"
    save_turned(path, OBJECT * 255, orientation)
    assert image_size(path) == (36, 24)
    assert ((read_pixels(path, 1)[0] > 127) == OBJECT).all()
    assert read_pixels(path, 1, (18, 12)).shape == (1, 12, 18)


def test_an_image_that_lies_on_its_side_is_decoded_no_smaller_than_asked(tmp_path):
    stripes = np.repeat(np.tile([0, 255], 64)[:, None], 512, axis=1).astype(np.uint8)  # (128, 512), one pixel each
    save_turned(tmp_path / "a.jpg", stripes, 6)  # (512, 128) in the file: half of it would be grey
    assert read_pixels(tmp_path / "a.jpg", 1, (256, 128)).std() > 60


def test_levels_of_16_bits_keep_their_place(tmp_path):
    levels = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    for extension in ("png", "tif"):
        Image.fromarray(levels).save(tmp_path / f"a.{extension}")
        assert read_pixels(tmp_path / f"a.{extension}", 1).tolist() == [[[0, 0, 1, 128, 255]]]


def test_levels_of_12_bits_in_16_are_refused_until_white_is_known(tmp_path):
    Image.fromarray(np.array([[0, 16, 2048, 4095]], dtype=np.uint16)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif holds levels from 0 to 4,095, and white is not known.*\.white"):
        read_pixels(tmp_path / "a.tif")
    assert read_pixels(tmp_path / "a.tif", 1, None, 4095).tolist() == [[[0, 1, 128, 255]]]
    assert read_pixels(tmp_path / "a.tif", 1, None, 65535).tolist() == [[[0, 0, 8, 15]]]  # a dark one of 16 bits
    with pytest.raises(UserError, match="to 4,095, and white is 4,000"):
        read_pixels(tmp_path / "a.tif", 1, None, 4000)


def test_a_black_image_of_16_bits_is_black(tmp_path):
    Image.new("I;16", (4, 4)).save(tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png", 1).max() == 0


def test_levels_of_32_bits_need_a_known_white(tmp_path):
    Image.fromarray(np.array([[0, 1 << 19, (1 << 20) - 1]], dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="white is not known"):
        read_pixels(tmp_path / "a.tif")
    assert read_pixels(tmp_path / "a.tif", 1, None, (1 << 20) - 1).tolist() == [[[0, 128, 255]]]
    Image.fromarray(np.array([[-1, 60000]], dtype=np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(UserError, match="from -1 to 60,000"):
        read_pixels(tmp_path / "b.tif", 1, None, 65535)


def write_deep_png(path, mode, level):
    """Write one opaque pixel with 16 bits for each colour, which Pillow cannot."""
    content = io.BytesIO()
    Image.new(mode, (1, 1)).save(content, "PNG")
    png = bytearray(content.getvalue())
    header = png.index(b"IHDR")
    png[header + 12] = 16  # bits
    png[header + 17 : header + 21] = zlib.crc32(png[header : header + 17]).to_bytes(4, "big")
    data = zlib.compress(b"\0" + level.to_bytes(2, "big") * len(mode.strip("A")) + b"\xff\xff" * ("A" in mode))
    chunk = b"IDAT" + data
    chunk = len(data).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(bytes(png[: png.index(b"IDAT") - 4]) + chunk + bytes(png[png.index(b"IEND") - 4 :]))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_of_16_bits_that_use_the_lower_ones_are_refused(tmp_path, mode):
    write_deep_png(tmp_path / "a.png", mode, 0xC0FF)
    assert read_pixels(tmp_path / "a.png").flatten().tolist() == [0xC0] * 3
    write_deep_png(tmp_path / "b.png", mode, 0x0FFF)  # white of 12 bits
    with pytest.raises(UserError, match=r"b\.png has 16 bits per colour, and uses the lower ones only"):
        read_pixels(tmp_path / "b.png")
    assert read_pixels(tmp_path / "b.png", white=65535).flatten().tolist() == [0x0F] * 3
    with pytest.raises(UserError, match="another white is for grey images only"):
        read_pixels(tmp_path / "b.png", white=4095)


@pytest.mark.parametrize("extension", ["png", "webp", "jpg"])
def test_a_damaged_block_of_exif_costs_the_orientation_only(tmp_path, extension):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x8769] = 6, "a description", {0x9286: "a comment"}
    block, path = exif.tobytes(), tmp_path / f"a.{extension}"
    damaged = [block[:end] for end in range(1, len(block), 3)]
    damaged += [b"Exif\0\0" + b"\xff" * 40, block[:14] + b"\xff" * (len(block) - 14)]
    for each in damaged:
        Image.new("RGB", (5, 3), "red").save(path, exif=each)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert read_image(path).size == image_size(path) == read_image(path, "RGB", (2, 2)).size
            assert read_pixels(path).shape in ((3, 3, 5), (3, 5, 3))


@pytest.mark.parametrize("extension", ["gif", "png", "tif", "webp"])
def test_several_pictures_in_a_file_are_refused(tmp_path, extension):
    first, second = Image.fromarray(OBJECT * 255), Image.fromarray(255 - OBJECT * 255)
    first.save(tmp_path / f"a.{extension}", save_all=True, append_images=[second])
    with pytest.raises(UserError, match=rf"a\.{extension} holds several pictures"):
        read_image(tmp_path / f"a.{extension}")


def test_a_photo_with_previews_is_one_picture(tmp_path):
    photo = Image.fromarray(OBJECT * 255).convert("RGB")
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[photo.resize((9, 6))])
    assert read_pixels(tmp_path / "a.jpg", 1).shape == (1, 24, 36)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_pixels_are_refused_and_opaque_ones_are_not(tmp_path, mode):
    image = Image.fromarray(OBJECT * 255).convert(mode)
    image.save(tmp_path / "a.png")
    assert (read_pixels(tmp_path / "a.png", 1)[0] == OBJECT * 255).all()
    image.putalpha(Image.fromarray(OBJECT * 255))  # the object alone is seen
    image.save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png has transparent pixels"):
        read_pixels(tmp_path / "a.png")


# ---- what is no image ------------------------------------------------------------------------------------------------
def test_an_image_of_the_original_size_is_no_bomb(tmp_path):
    Image.new("L", (1918, 1280)).save(tmp_path / "image.png")
    assert load_image(tmp_path / "image.png", 1).shape == (1, 1280, 1918)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.99])
def test_a_photo_that_is_cut_short_anywhere_is_named(tmp_path, keep):
    path = tmp_path / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=90)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match=r"photo\.jpg cannot be read as an image"):
        load_image(path)


def test_a_lack_of_memory_is_not_the_files_fault(tmp_path, monkeypatch):
    def load(self):
        raise MemoryError

    Image.fromarray(OBJECT).save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(MemoryError):
        load_image(tmp_path / "a.png")
