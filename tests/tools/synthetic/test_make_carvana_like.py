import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import tools.synthetic.make_carvana_like as maker
from tools.synthetic.make_carvana_like import main, make_carvana_like
from tools.synthetic.toy_car import Camera, Canvas, Painter, design_car
from utils.errors import UserError


def digests(directory):
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_pairs(directory):
    for path in sorted((directory / "train").iterdir()):
        mask = Image.open(directory / "train_masks" / f"{path.stem}_mask.gif")
        yield np.asarray(Image.open(path).convert("RGB"), dtype=float), np.asarray(mask.convert("L"))


def test_the_layout_is_that_of_carvana(tmp_path):
    make_carvana_like(tmp_path, cars=2, views=3, size=(96, 64))
    images = sorted(path.name for path in (tmp_path / "train").iterdir())
    masks = sorted(path.name for path in (tmp_path / "train_masks").iterdir())
    assert len(images) == len(masks) == 6
    assert all(re.fullmatch(r"[0-9a-f]{12}_0[123]\.jpg", name) for name in images)
    assert masks == [name.replace(".jpg", "_mask.gif") for name in images]
    with Image.open(tmp_path / "train_masks" / masks[0]) as mask:
        assert mask.mode == "P" and mask.size == (96, 64)
        assert sorted(value for _, value in mask.getcolors()) == [0, 1]
        assert mask.getpalette()[:6] == [0, 0, 0, 255, 255, 255]


def test_a_view_is_a_function_of_seed_car_and_view(tmp_path):
    make_carvana_like(tmp_path / "few", cars=1, views=4, size=(64, 48), seed=3)
    make_carvana_like(tmp_path / "many", cars=2, views=4, size=(64, 48), seed=3)
    make_carvana_like(tmp_path / "other", cars=1, views=4, size=(64, 48), seed=4)
    few, many, other = (digests(tmp_path / name) for name in ("few", "many", "other"))
    assert few.items() <= many.items() and len(many) == 16
    assert len(set(many.values())) == 16
    assert not few.keys() & other.keys() and not set(few.values()) & set(other.values())


def test_the_mask_covers_exactly_what_was_painted_as_car(monkeypatch):
    monkeypatch.setattr(Painter, "shadow", lambda self: None)
    for car in range(6):
        canvas = Canvas((192, 128), Camera(focal=250, distance=8, height=1.6, centre=(96, 50)))
        canvas.image.paste((255, 0, 255), (0, 0, 192, 128))
        Painter(canvas, design_car(0, car), angle=0.8 * car, light=np.array([0.3, -0.5, 0.8])).paint()
        painted = (np.asarray(canvas.image) != (255, 0, 255)).any(axis=-1)
        assert (painted == (np.asarray(canvas.parts) > 0)).all()
        assert 0.05 < painted.mean() < 0.5


def test_the_car_is_inside_the_picture_and_of_sensible_size(tmp_path):
    make_carvana_like(tmp_path, cars=6, views=4, size=(120, 80))
    for _, mask in read_pairs(tmp_path):
        assert 0.04 < (mask > 0).mean() < 0.5
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert not border.any()


def test_colour_alone_does_not_find_the_car(tmp_path):
    """Even with the true car at hand, no threshold on the distance from its median colour gives its mask."""
    make_carvana_like(tmp_path, cars=6, views=4, size=(120, 80))
    best, lookalikes = [], []
    for image, mask in read_pairs(tmp_path):
        car = mask > 0
        distance = np.abs(image - np.median(image[car], axis=0)).max(axis=-1)
        guesses = [distance < threshold for threshold in range(8, 128, 8)]
        best.append(max((guess & car).sum() / (guess | car).sum() for guess in guesses))
        lookalikes.append((guesses[3] & ~car).sum() / car.sum())
    assert np.mean(best) < 0.6
    assert np.median(lookalikes) > 0.35, "the background holds too little of the car's colour"


def test_each_car_has_scenes_of_its_own(tmp_path):
    make_carvana_like(tmp_path, cars=3, views=1, size=(120, 80))
    walls = [image[:4].mean(axis=(0, 1)) for image, _ in read_pairs(tmp_path)]  # the wall above all clutter
    assert all(np.abs(walls[i] - walls[j]).max() > 3 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_more_classes_mark_windows_and_wheels(tmp_path):
    make_carvana_like(tmp_path / "two", cars=1, views=1, size=(120, 80))
    make_carvana_like(tmp_path / "four", cars=1, views=1, size=(120, 80), n_classes=4)
    (image, two), (same_image, four) = next(read_pairs(tmp_path / "two")), next(read_pairs(tmp_path / "four"))
    assert (image == same_image).all() and ((two > 0) == (four > 0)).all()
    assert np.unique(four).tolist() == [0, 85, 170, 255]


def test_the_same_call_again_makes_the_same_files_and_mends_a_broken_one(tmp_path):
    make_carvana_like(tmp_path, cars=1, views=2, size=(64, 48))
    before = digests(tmp_path)
    next((tmp_path / "train").iterdir()).write_bytes(b"cut short")
    make_carvana_like(tmp_path, cars=1, views=2, size=(64, 48))
    assert digests(tmp_path) == before


@pytest.mark.parametrize("place", ["notes.txt", "train/mine.jpg"])
def test_a_directory_with_other_content_is_left_alone(tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("mine")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / place))):
        make_carvana_like(tmp_path, cars=1, views=1, size=(64, 48))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / place]


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--cars", "0"], "--cars 0"),
        (["--cars", "-1"], "--cars -1"),
        (["--cars", "two"], "'two'"),
        (["--cars", "1", "--views", "100"], "--views 100"),
        (["--cars", "1", "--size", "abc"], "'abc'"),
        (["--cars", "1", "--size", "64"], "'64'"),
        (["--cars", "1", "--size", "64x0"], "--size 0"),
        (["--cars", "1", "--size", "64x99999"], "--size 99999"),
        (["--cars", "1", "--seed", "-1"], "--seed -1"),
        (["--cars", "1", "--n_classes", "5"], "--n_classes 5"),
        (["--car", "1"], "--cars"),
        (["--cars", "1", "--sise", "64x48"], "--sise"),
    ],
)
def test_bad_values_end_with_status_2_and_one_line(tmp_path, capsys, flags, told):
    with pytest.raises(SystemExit) as ended:
        main(["--data_dir", str(tmp_path / "new"), *flags])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and told in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_directory_that_cannot_be_written_ends_with_status_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["--data_dir", str(tmp_path / "file" / "below"), "--cars", "1", "--size", "64x48"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and "cannot be written" in error and error.count("\n") == 1


def test_the_command_line_makes_data(tmp_path):
    command = [sys.executable, "-m", maker.__name__, "--data_dir", str(tmp_path / "new")]
    command += ["--cars", "1", "--views", "2", "--size", "64x48", "--seed", "3"]
    subprocess.run(command, check=True, timeout=60)
    make_carvana_like(tmp_path / "called", cars=1, views=2, size=(64, 48), seed=3)
    assert digests(tmp_path / "new") == digests(tmp_path / "called")
