import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from data.Carvana import build_carvana
from data.masks import ClassMap, load_mask, scan_masks
from extras.multi_image import MultiImageDataset, build_multi_image
from utils.errors import UserError
from utils.image_file import image_size, read_pixels, to_float

TRUTH = np.zeros((24, 36), dtype=np.uint8)  # classes of the masks below
TRUTH[6:18, 8:28] = 1
GREYS = ClassMap((0, 0xFFFFFF))


def load_image(*arguments):
    return to_float(torch.from_numpy(read_pixels(*arguments)))


def write_mask(directory, name, mask=None):
    """Write a mask, by default 0 and 255, and return its path."""
    path = directory / name
    (Image.fromarray(TRUTH * 255) if mask is None else mask).save(path)
    return path


def palette_mask(classes, colours):
    mask = Image.fromarray(classes).convert("P")
    mask.putpalette([level for colour in colours for level in colour])
    return mask


def colour_mask(classes, colours):
    return Image.fromarray(np.array(colours, dtype=np.uint8)[classes])


# Encodings of masks

BLACK, WHITE, RED, BLUE = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 0, 255)
TWICE = np.where(np.arange(36) < 4, 2, TRUTH).astype(np.uint8)  # black by index 0 and by index 2
ENCODINGS = {
    "0 and 1": (Image.fromarray(TRUTH), "png", "mode L, values 0, 1 -> classes 0, 1"),
    "0 and 255": (Image.fromarray(TRUTH * 255), "png", "mode L, values 0, 255 -> classes 0, 1"),
    "one bit": (Image.fromarray(TRUTH * 255).convert("1"), "png", "mode 1, values 0, 255"),
    "one bit gif": (Image.fromarray(TRUTH * 255).convert("1"), "gif", "values 0, 255"),
    "grey gif": (Image.fromarray(TRUTH * 255), "gif", "values 0, 255"),
    "16 bits": (Image.fromarray(TRUTH.astype(np.uint16) * 65535), "png", "mode I;16, values 0, 65535"),
    "grey and alpha": (Image.fromarray(TRUTH * 255).convert("LA"), "png", "values 0, 255"),
    "palette": (palette_mask(TRUTH, [BLACK, WHITE]), "gif", "mode P, values 0, 255"),
    "palette png": (palette_mask(TRUTH, [BLACK, WHITE]), "png", "mode P, values 0, 255"),
    "swapped palette": (palette_mask(1 - TRUTH, [WHITE, BLACK]), "gif", "mode P, values 0, 255"),
    "swapped palette png": (palette_mask(1 - TRUTH, [WHITE, BLACK]), "png", "mode P, values 0, 255"),
    "black twice in the palette": (palette_mask(TWICE, [BLACK, WHITE, BLACK]), "png", "mode P, values 0, 255"),
    "RGB": (colour_mask(TRUTH, [BLACK, WHITE]), "png", "mode RGB, values 0, 255"),
    "RGBA": (colour_mask(TRUTH, [BLACK, WHITE]).convert("RGBA"), "png", "mode RGBA, values 0, 255"),
    "colours": (colour_mask(TRUTH, [BLUE, RED]), "png", "mode RGB, values #0000ff, #ff0000 -> classes 0, 1"),
    "JPEG": (Image.fromarray(TRUTH * 255), "jpg", "JPEG cut at 128, values 0, 255 -> classes 0, 1"),
    "colour JPEG": (colour_mask(TRUTH, [BLACK, WHITE]), "jpg", "JPEG cut at 128, values 0, 255"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("n_classes", [1, 2])
def test_the_car_is_class_1_in_every_encoding(tmp_path, encoding, n_classes):
    mask, extension, told = ENCODINGS[encoding]
    path = write_mask(tmp_path, f"a_01_mask.{extension}", mask)
    class_map, report = scan_masks([path], n_classes)
    loaded = load_mask(path, class_map)
    assert loaded.dtype == torch.int64 and loaded.shape == (24, 36)
    assert (loaded.numpy() == TRUTH).all()
    assert told in report and report.startswith("masks: 1 files scanned, ")


def test_a_jpeg_mask_really_holds_noise(tmp_path):
    """Else the two cases of JPEG above would show nothing."""
    path = write_mask(tmp_path, "a_01_mask.jpg")
    with Image.open(path) as mask:
        assert len(mask.getcolors()) > 2


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(np.arange(24 * 36, dtype=np.uint8).reshape(24, 36) % 4),
        palette_mask(np.arange(24 * 36, dtype=np.uint8).reshape(24, 36) % 4, [BLACK, BLUE, RED, WHITE]),
        colour_mask(np.arange(24 * 36).reshape(24, 36) % 4, [BLACK, BLUE, RED, WHITE]),
    ],
)
def test_more_classes_follow_the_sorted_values(tmp_path, mask):
    path = write_mask(tmp_path, "a_01_mask.png", mask)
    class_map, report = scan_masks([path], n_classes=4)
    assert (load_mask(path, class_map).numpy() == np.arange(24 * 36).reshape(24, 36) % 4).all()
    assert "-> classes 0, 1, 2, 3 with 25.0 %, 25.0 %, 25.0 %, 25.0 % of the pixels" in report


VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]  # ascending, 1, 2, 3, 4 would be 4, 2, 1, 3
PLACES = np.arange(24 * 36, dtype=np.uint8).reshape(24, 36) % 5


def test_places_of_a_palette_with_colours_are_the_classes_for_every_data_type(tmp_path):
    for folder, image in (("train", Image.new("RGB", (36, 24))), ("train_masks", palette_mask(PLACES, VOC))):
        (tmp_path / folder).mkdir()
        for car in range(4):
            image.save(tmp_path / folder / f"{car}_1.png")
    class_map, report = scan_masks(sorted((tmp_path / "train_masks").iterdir()), n_classes=5)
    assert "values 0, #800000, #008000, #808000, #000080 -> classes 0, 1, 2, 3, 4" in report
    assert class_map.values == ["#000000", "#800000", "#008000", "#808000", "#000080"]
    assert scan_masks(sorted((tmp_path / "train_masks").iterdir()), 5, values=class_map.values)[0] == class_map
    shares = {"train_val_sample_rate": 1, "test_sample_rate": 1, "val_split": 1, "n_classes": 5}
    masks = [
        build_carvana(tmp_path, mode="padding", **shares)["test"][0][1],
        build_multi_image(["train", "train_masks"], data_dir=tmp_path, **shares)["test"][0][1],
        MultiImageDataset([tmp_path / "train", tmp_path / "train_masks"], kinds=("image", "mask"))[0][1],
    ]
    assert all((mask.numpy() == PLACES).all() for mask in masks)


def test_palettes_that_differ_give_classes_by_colour(tmp_path):
    paths = [
        write_mask(tmp_path, "a_mask.png", palette_mask(PLACES, VOC)),
        write_mask(tmp_path, "b_mask.png", palette_mask(4 - PLACES, VOC[::-1])),  # the same picture
    ]
    class_map, _ = scan_masks(paths, n_classes=5)
    by_colour = np.array([0, 3, 2, 4, 1])[PLACES]  # 0, #000080, #008000, #800000, #808000
    assert all((load_mask(path, class_map).numpy() == by_colour).all() for path in paths)


@pytest.mark.parametrize("kind", ["grey", "palette", "colours"])
def test_an_ignored_value_is_no_class(tmp_path, kind):
    places = np.where(PLACES == 3, 255, PLACES)  # 0, 1, 2, 4, and 255
    colours = VOC + [BLACK] * 250 + [(224, 224, 192)]
    mask = {
        "grey": Image.fromarray(places), "palette": palette_mask(places, colours),
        "colours": colour_mask(places, colours),
    }[kind]  # fmt: skip
    path = write_mask(tmp_path, "a_mask.png", mask)
    ignored = ["#e0e0c0"] if kind == "colours" else [255]
    class_map, report = scan_masks([path], n_classes=4, ignored=ignored)
    order = [0, 3, 2, 9, 1] if kind == "colours" else [0, 1, 2, 9, 3]  # ascending by colour
    assert (load_mask(path, class_map).numpy() == np.where(PLACES == 3, -100, np.array(order)[PLACES])).all()
    assert report.endswith(", ignored 255" if kind == "grey" else ", ignored #e0e0c0")
    with pytest.raises(UserError, match="hold 5 values"):
        scan_masks([path], n_classes=4)
    named, _ = scan_masks([path], n_classes=4, ignored=ignored, values=class_map.values[::-1])
    loaded = load_mask(path, class_map)
    assert torch.equal(load_mask(path, named), torch.where(loaded < 0, loaded, 3 - loaded))


def test_an_ignored_value_stays_so_in_the_cache(tmp_path):
    for folder, image in (("train", Image.new("RGB", (36, 24))), ("train_masks", Image.fromarray(PLACES))):
        (tmp_path / folder).mkdir()
        for car in range(4):
            image.save(tmp_path / folder / f"{car}_1.png")
    shares = {"train_val_sample_rate": 1, "test_sample_rate": 1, "val_split": 1, "n_classes": 4}
    test = build_carvana(tmp_path, patch_size=24, ignored_values=[1], **shares)["test"]
    assert (test[0][1].unique() == torch.tensor([-100, 0, 1, 2, 3])).all()
    assert torch.equal(test.open_cache()[0][1], test[0][1]) and test.open_cache() is not test


def test_masks_of_different_modes_agree_by_colour(tmp_path):
    paths = [
        write_mask(tmp_path, "a_01_mask.png", palette_mask(1 - TRUTH, [WHITE, BLACK])),
        write_mask(tmp_path, "a_02_mask.png", Image.fromarray(TRUTH * 255)),
        write_mask(tmp_path, "a_03_mask.png", colour_mask(TRUTH, [BLACK, WHITE])),
        write_mask(tmp_path, "a_04_mask.jpg"),
    ]
    class_map, report = scan_masks(paths)
    assert all((load_mask(path, class_map).numpy() == TRUTH).all() for path in paths)
    assert "JPEG cut at 128, mode L, mode P, mode RGB, values 0, 255" in report


def test_a_mask_of_background_alone_is_fine_and_stays_background(tmp_path):
    empty = write_mask(tmp_path, "a_01_mask.png", Image.new("L", (36, 24), 0))
    full = write_mask(tmp_path, "a_02_mask.png", Image.new("L", (36, 24), 255))
    class_map, _ = scan_masks([full, empty])
    assert load_mask(empty, class_map).max() == 0 and load_mask(full, class_map).min() == 1


@pytest.mark.parametrize("level, extension", [(0, "png"), (255, "png"), (3, "jpg")])
def test_one_value_in_all_masks_is_refused(tmp_path, level, extension):
    mask = Image.new("L", (36, 24), level)
    paths = [write_mask(tmp_path, f"a_{i}_mask.{extension}", mask) for i in range(2)]
    with pytest.raises(UserError, match=r"All 2 masks \(.*\) hold one value, "):
        scan_masks(paths)


@pytest.mark.parametrize("extension", ["png", "gif"])
@pytest.mark.parametrize("n_classes", [1, 2])
def test_a_surplus_value_is_named_with_its_file_and_the_mend(tmp_path, extension, n_classes):
    odd = TRUTH * 255
    odd[0, 0] = 128
    paths = [write_mask(tmp_path, f"a_{i}_mask.{extension}") for i in range(3)]
    paths[1] = write_mask(tmp_path, f"a_1_mask.{extension}", Image.fromarray(odd))
    with pytest.raises(UserError) as raised:
        scan_masks(paths, n_classes)
    assert f"3 values (0, 128, 255), but --n_classes {n_classes} allows 2" in str(raised.value)
    assert f"{paths[1]} (mode L) holds 0, 128, 255." in str(raised.value).replace("mode P", "mode L")
    assert "Most hold 0, 255" in str(raised.value) and "--n_classes 3" in str(raised.value)


def test_two_ways_to_write_one_class_and_the_noise_of_jpeg_are_named_as_such(tmp_path):
    paths = [write_mask(tmp_path, f"a_{i}_mask.png", Image.fromarray(TRUTH * (1 if i == 3 else 255))) for i in range(5)]
    with pytest.raises(UserError, match=r"(?s)Most hold 0, 255, but .*a_3_mask\.png.* holds 0, 1\..*If 1 and 255 are"):
        scan_masks(paths)
    paths[1] = write_mask(tmp_path, "a_1_mask.jpg")
    paths[3] = write_mask(tmp_path, "a_3_mask.png")
    with pytest.raises(UserError, match=r"(?s)Most hold 0, .*but .*a_1_mask\.jpg .* holds .*smoothed edges or JPEG"):
        scan_masks(paths, n_classes=3)


@pytest.mark.parametrize("values", [[0, 127, 255], [255, 0, 127], [7, "#ff8000", 0]])
def test_given_values_are_the_classes_in_their_order_whatever_occurs(tmp_path, values):
    codes = [int(value[1:], 16) if isinstance(value, str) else value * 0x010101 for value in values]
    colours = [(code >> 16, code >> 8 & 255, code & 255) for code in codes]
    whole = np.arange(24 * 36, dtype=np.uint8).reshape(24, 36) % 3
    few = write_mask(tmp_path, "few_mask.png", colour_mask(TRUTH * 2, colours))  # the second value does not occur
    all_three = write_mask(tmp_path, "all_mask.png", palette_mask(whole, colours))
    class_map, report = scan_masks([few], n_classes=3, values=values)
    assert list(class_map.codes) == codes and "-> classes 0, 1, 2 with " in report
    assert (load_mask(few, class_map).numpy() == TRUTH * 2).all()
    assert (load_mask(all_three, class_map).numpy() == whole).all()
    one = write_mask(tmp_path, "one_mask.png", colour_mask(TRUTH * 0, colours))
    assert (load_mask(one, scan_masks([one], 3, values=values)[0]) == 0).all()  # a scene without an object


def test_given_values_refuse_others_and_must_fit_the_classes(tmp_path):
    path = write_mask(tmp_path, "a_01_mask.png")
    with pytest.raises(UserError, match=r"a_01_mask\.png holds the value 255, but the classes are 0, 127: those of"):
        scan_masks([path], 2, values=[0, 127])
    for values in ([0, 127, 255], [0, 0]):
        with pytest.raises(UserError, match=r"--mask_values .*--n_classes 2"):
            scan_masks([path], 2, values=values)


def test_a_jpeg_mask_of_many_classes_and_a_photo_are_refused(tmp_path):
    rough = Image.fromarray((np.arange(24 * 36).reshape(24, 36) % 3 * 100).astype(np.uint8))
    with pytest.raises(UserError, match="PNG"):
        scan_masks([write_mask(tmp_path, "a_01_mask.jpg", rough)], n_classes=3)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8))
    path = write_mask(tmp_path, "a_02_mask.png", photo)
    with pytest.raises(UserError, match=r"a_02_mask\.png holds more than 256 values"):
        scan_masks([path])


def test_many_masks_are_sampled_evenly_and_a_value_met_later_names_its_file(tmp_path):
    paths = [write_mask(tmp_path, f"a_{i:02d}_mask.png", Image.fromarray(TRUTH[:, :9] * 255)) for i in range(20)]
    Image.fromarray(TRUTH[:, :9] * 128).save(paths[7])
    class_map, report = scan_masks(paths, max_scan=5)  # 0, 4, 8, 12, 16
    assert "5 of 20 files scanned" in report
    with pytest.raises(UserError, match=r"a_07_mask\.png holds the value 128, .*classes are 0, 255"):
        load_mask(paths[7], class_map)
    with pytest.raises(UserError, match="128"):
        scan_masks(paths, max_scan=20)


def test_a_class_that_the_sample_lacks_is_looked_for_in_all_masks(tmp_path):
    paths = [write_mask(tmp_path, f"a_{i:02d}_mask.png", Image.fromarray(TRUTH[:, :9])) for i in range(20)]
    Image.fromarray(TRUTH[:, :9] * 2).save(paths[7])
    class_map, report = scan_masks(paths, n_classes=3, max_scan=5)
    assert load_mask(paths[7], class_map).max() == 2 and "masks: 20 files scanned" in report


def test_a_class_that_the_sample_lacks_is_looked_for_beside_an_ignored_value(tmp_path):
    paths = [write_mask(tmp_path, f"a_{i:02d}_mask.png", Image.fromarray(TRUTH[:, :9] * 255)) for i in range(20)]
    Image.fromarray(TRUTH[:, :9] * 2).save(paths[7])
    class_map, _ = scan_masks(paths, n_classes=2, max_scan=5, ignored=[255])  # the sample holds 0 and 255
    assert load_mask(paths[7], class_map).max() == 1 and load_mask(paths[0], class_map).min() == -100


def test_a_resized_mask_holds_no_mixed_classes(tmp_path):
    classes = (np.arange(24 * 36).reshape(24, 36) // 7 % 3).astype(np.uint8)
    path = write_mask(tmp_path, "a_01_mask.png", Image.fromarray(classes * 2))  # a mean of 0 and 4 would be 2
    flat = Image.fromarray(np.where(classes == 1, 0, classes * 2).astype(np.uint8))
    other = write_mask(tmp_path, "a_02_mask.png", flat)
    class_map, _ = scan_masks([path, other], n_classes=3)
    assert load_mask(other, class_map, size=(17, 17)).unique().tolist() == [0, 2]


def test_an_image_of_floats_is_refused(tmp_path):
    Image.new("F", (8, 8), 0.5).save(tmp_path / "image.tif")
    with pytest.raises(UserError, match=r"image\.tif holds floating-point"):
        load_image(tmp_path / "image.tif")
    with pytest.raises(UserError, match=r"image\.tif holds floating-point"):
        load_mask(tmp_path / "image.tif", GREYS)


def test_a_broken_mask_is_named_by_the_scan(tmp_path):
    paths = [write_mask(tmp_path, f"a_{i:02d}_mask.png") for i in range(8)]
    paths[5].write_bytes(b"")
    with pytest.raises(UserError, match=r"a_05_mask\.png cannot be read"):
        scan_masks(paths)


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    path = write_mask(tmp_path, "a_01_mask.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read in (load_image, lambda path: load_mask(path, GREYS), lambda path: scan_masks([path])):
        with pytest.raises(UserError, match=r"a_01_mask\.png is too large.*MAX_IMAGE_PIXELS"):
            read(path)


def write_bomb(path, width, height):
    """Write a grey PNG whose header promises so many pixels, in less than a kilobyte."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(9999))), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert path.stat().st_size < 1000


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 12_000, 13_400, 60_000, 2**31 - 1])  # Pillow by itself warns up to 13,377
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch, side):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("it was decoded"))
    write_bomb(tmp_path / "bomb.png", side, side)
    for read in (load_image, lambda path: load_mask(path, GREYS)):
        with pytest.raises(UserError, match=r"bomb\.png (is too large|cannot be read)"):
            read(tmp_path / "bomb.png")


@pytest.mark.parametrize("content", [b"", b"no image at all\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif"])
def test_what_is_no_image_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for read in (load_image, lambda path: load_mask(path, GREYS), image_size):
        with pytest.raises(UserError, match=rf"{name} cannot be read as an image"):
            read(tmp_path / name)


def test_the_scan_passes_over_bad_masks_with_a_warning_and_leaves_counting_to_the_loaders(tmp_path, caplog):
    paths = [write_mask(tmp_path, f"a_{i:02d}_mask.png") for i in range(8)]
    expected, report = scan_masks(paths)
    assert "skipped" not in report and not caplog.records
    for i in (5, 2):
        paths[i].write_bytes(b"")
    for max_bad in (1, 2):  # of the two that are bad, a run may use but one
        class_map, report = scan_masks(paths, max_bad=max_bad)
        assert class_map == expected
        assert report.endswith(f"skipped {paths[2]}, {paths[5]}")
        assert caplog.messages.pop() == f"2 of 8 masks cannot be used: {paths[2]}, {paths[5]}"
    with pytest.raises(UserError, match=r"a_02_mask\.png cannot be read"):
        scan_masks(paths)
    with pytest.raises(UserError, match=r"a_05_mask\.png cannot be read"):
        scan_masks([paths[5]], max_bad=9)  # none is left to tell the classes by


def test_many_bad_masks_are_not_all_named(tmp_path):
    paths = [write_mask(tmp_path, f"a_{i:02d}_mask.png") for i in range(14)]
    for path in paths[2:]:
        path.write_bytes(b"")
    assert scan_masks(paths, max_bad=1)[1].endswith(f"{paths[11]} and 2 more (12 in all)")
