"""predict.py: classes and masks of files, whatever their encoding; what cannot be read stops nothing else."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from data.masks import ClassMap, code_of, read_classes
from engine.checkpoints.file import load_checkpoint, save_checkpoint
from eval_seg_on_carvana import EvaluatorSeg
from eval_vanilla import EvaluatorVanilla
from extras.image_input import read_image
from tools.prediction.command import main
from tools.prediction.opening import open_evaluator
from tools.prediction.predictor import Predictor, load_predictor, mask_of
from tools.prediction.writing import contour, grown, overlay
from utils.errors import UserError


def rows_of(directory):
    with open(directory / "predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def classified(run, path, flip=False):
    """The probabilities of a file, by plain torch and the evaluator as an evaluation builds it."""
    checkpoint = run / "Vanilla_best_ckpt.pth"
    opt = EvaluatorVanilla.parse_options(["--model_path", str(checkpoint), "--gpu_devices", "cpu"])
    evaluator = EvaluatorVanilla.from_state(opt, load_checkpoint(checkpoint), torch.device("cpu"))
    image = read_image(path, opt)[None]
    images = [image, image.flip(-1)] if flip else [image]
    with torch.no_grad():
        return torch.stack([evaluator.model.eval()(one).softmax(1)[0] for one in images]).mean(0)


# ---- classification --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tta", ["none", "flip"])
def test_classes_of_files_of_any_encoding(vanilla_run, photos, predict, capsys, tta):
    status, out = predict(vanilla_run, photos, "--tta", tta)
    rows = rows_of(out)
    assert status == 1  # one is broken
    places = [row["file"].removeprefix(f"{photos}/") for row in rows]
    assert places == ["a.png", "a.tif", "deep.png", "rgba.PNG", "turned.png", "below/a.png"]
    best = classified(vanilla_run, photos / "a.png", flip=tta == "flip").sort(descending=True)
    (probability,) = {row["probability"] for row in rows}  # one picture, six times
    assert float(probability) == pytest.approx(float(best.values[0]), abs=1e-4)
    assert float(rows[0]["probability_3"]) == pytest.approx(float(best.values[2]), abs=1e-4)
    assert len({row["class"] for row in rows}) == 1 and rows[0]["class"] in load_predictor(vanilla_run).classes
    assert (out / "contact_sheet.png").exists()
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "broken.jpg" in said.err and "Predicted 6 of 7 files" in said.out
    assert "passed over: 1." in said.out  # the hidden one is not even counted


def test_the_size_of_batches_changes_no_result(vanilla_run, photos, predict):
    _, one = predict(vanilla_run, photos, "--batch_size", 1)
    _, other = predict(vanilla_run, photos, "--batch_size", 4)
    assert one != other and rows_of(one) == rows_of(other)  # each has a directory of its own


def test_averaged_weights_are_those_that_predict(vanilla_run, tmp_path):
    state = load_checkpoint(vanilla_run / "Vanilla_best_ckpt.pth")
    zeros = {name: torch.zeros_like(value) for name, value in state["networks"]["model"].items()}
    save_checkpoint(state | {"averaging": {"networks": {"model": zeros}, "num_averaged": 3}}, tmp_path / "a_ckpt.pth")
    image = torch.rand(1, 28, 28)
    (averaged,) = load_predictor(tmp_path / "a_ckpt.pth", device="cpu")(image)
    assert averaged["probabilities"].tolist() == [pytest.approx(0.1)] * 10
    evaluator, _ = open_evaluator(tmp_path / "a_ckpt.pth", use_average=False, devices="cpu")
    assert Predictor(evaluator)(image)[0]["probability"] > 0.11


def test_a_checkpoint_of_class_folders_reads_files_as_its_data_was_read(train, tmp_path):
    colours = {"blue": (0, 0, 255), "clear": (0, 0, 0, 0), "red": (255, 0, 0)}
    for name, colour in colours.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(6):
            image = Image.new("RGBA", (20 + number, 24), (*colour, 255)[:4])
            image.save(tmp_path / "data" / name / f"{number}.png")
    flags = ["--data_type", "ImageFolder", "--data_dir", tmp_path / "data", "--set", "data_args.background=white"]
    trainer = train(*flags, "--n_epoch", 1, "--batch_size", 4)
    (sample, target), name = trainer.datasets["test"][0], trainer.datasets["test"].names[0]
    predictor = load_predictor(trainer.run_dir.path, device="cpu")
    (made,) = predictor(trainer.datasets["test"].paths[0])
    (expected,) = predictor(sample)
    assert torch.equal(made["probabilities"], expected["probabilities"])
    assert predictor.classes == list(colours) and list(colours)[target] in name


# ---- segmentation ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "mode"), [(["0", "255"], "L"), (["7", "300"], "I;16"), (["#000000", "#ff8000"], "RGB")]
)
def test_masks_are_of_the_files_size_and_of_the_training_masks_values(seg_run, photos, predict, values, mode):
    status, out = predict(seg_run, photos, "--mask_values", *values)
    rows = rows_of(out)
    names = [row["mask"] for row in rows]
    assert status == 1 and len(set(names)) == 6 and names[:2] == ["masks/a.png", "masks/a_2.png"]
    assert names[-1] == "masks/below/a.png"
    codes = tuple(code_of(int(value) if value.isdigit() else value) for value in values)
    masks = [read_classes(out / name, ClassMap(codes)) for name in names]  # refuses other values
    assert {mask.shape for mask in masks} == {(24, 40)}
    assert Image.open(out / names[0]).mode == mode
    assert Image.open(out / "overlays/turned.jpg").size == (40, 24)  # upright
    share = next(value for name, value in rows[0].items() if name.startswith("share_"))
    assert float(share) == pytest.approx((masks[0] == 0).mean(), abs=1e-4)


@pytest.mark.parametrize(
    ("values", "said"), [("7", "give 2"), ("1 2 3", "give 2"), ("1 1", "twice"), ("255 #ffffff", "twice")]
)
def test_each_class_needs_a_value_of_its_own_in_the_masks(seg_run, photos, values, said):
    with pytest.raises(UserError, match=f"--mask_values {values} has .*{said}"):
        main([str(seg_run), str(photos), "--device", "cpu", "--mask_values", *values.split()])


def test_the_mask_is_that_of_the_network_resized_to_the_file(seg_run, photos):
    (made,) = load_predictor(seg_run, device="cpu")(photos / "a.png")
    checkpoint = seg_run / "UNet_best_ckpt.pth"
    opt = EvaluatorSeg.parse_options(["--model_path", str(checkpoint), "--gpu_devices", "cpu"])
    evaluator = EvaluatorSeg.from_state(opt, load_checkpoint(checkpoint), torch.device("cpu"))
    image = next(evaluator.read_samples(photos / "a.png"))[1][None]  # (1, 3, 32, 32)
    with torch.no_grad():
        probabilities = evaluator.model.eval()(image).softmax(1)
    resized = torch.nn.functional.interpolate(
        probabilities, (24, 40), mode="bilinear", align_corners=False, antialias=True
    )
    assert torch.equal(made["mask"], resized[0].argmax(0))


def test_images_of_their_own_size_make_batches_of_one_shape(seg_run, photos, tmp_path):
    Image.new("RGB", (50, 30)).save(tmp_path / "b.png")
    paths = [photos / "a.png", photos / "deep.png", tmp_path / "b.png"]
    predictor = load_predictor(seg_run, device="cpu", flags=["--mode", "padding"], batch_size=8)
    masks = [made["mask"] for made in predictor(paths)]
    assert [tuple(mask.shape) for mask in masks] == [(24, 40), (24, 40), (30, 50)]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(
        masks[0], load_predictor(seg_run, device="cpu", flags=["--mode", "padding"])(paths[0])[0]["mask"]
    )


def test_the_mirror_image_of_a_mask_is_turned_back(seg_run):
    image = torch.rand(3, 32, 48)
    predictor = load_predictor(seg_run, device="cpu", tta="flip")
    (one,), (other,) = predictor(image), predictor(image.flip(-1))
    assert torch.allclose(one["probabilities"], other["probabilities"].flip(-1), atol=1e-6)
    assert torch.equal(one["masks"], one["probabilities"].argmax(0))


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_classes_are_resized_one_by_one_as_together(num_classes):
    probabilities = torch.rand(num_classes, 9, 7)
    together = torch.nn.functional.interpolate(
        probabilities[None], (20, 30), mode="bilinear", align_corners=False, antialias=True
    )[0]
    wanted = together.argmax(0) if num_classes > 1 else (together[0] > 0.5).long()
    assert torch.equal(mask_of(probabilities, (20, 30)), wanted)


def test_a_contour_is_as_wide_as_asked_for_and_inside_of_its_class():
    mask = np.zeros((9, 12), np.int64)
    mask[2:9, 3:12] = 1  # up to the border of the image, where no contour is
    assert np.argwhere(contour(mask, 1)).tolist() == [[2, x] for x in range(3, 12)] + [[y, 3] for y in range(3, 9)]
    inner = mask.astype(bool)
    inner[:5] = inner[:, :6] = False
    assert (contour(mask, 3) == mask.astype(bool) & ~inner).all()
    points = np.random.default_rng(0).random((20, 31)) < 0.02
    for by in range(8):
        expected = np.zeros_like(points)
        for y, x in np.argwhere(points):
            expected[max(y - by, 0) : y + by + 1, max(x - by, 0) : x + by + 1] = True
        assert (grown(points, by) == expected).all()


def test_an_overlay_leaves_class_0_as_it_is():
    pixels = np.full((3, 8, 8), 100, np.uint8)
    mask = np.zeros((8, 8), np.int64)
    mask[:, 4:] = 1
    picture = overlay(pixels, mask, np.array([[0, 0, 0], [255, 0, 0]], np.float32))
    assert (picture[:, :4] == 100).all() and picture[0, 4].tolist() == [255, 0, 0]
    assert picture[0, 7].tolist() == [162, 60, 60]  # 0.6 * 100 + 0.4 * 255, and 0.6 * 100


# ---- notebooks -------------------------------------------------------------------------------------------------------
def test_a_function_takes_images_in_every_form(vanilla_run, photos):
    predictor = load_predictor(vanilla_run, device="cpu")
    with Image.open(photos / "a.png") as image:
        turned = Image.open(photos / "turned.png")
        pixels = np.asarray(image)
        found = predictor([photos / "a.png", str(photos / "a.tif"), image, image.convert("CMYK"), pixels, turned])
    expected = classified(vanilla_run, photos / "a.png")
    for one in found:
        assert torch.allclose(one["probabilities"], expected, atol=2e-2 if one is found[3] else 1e-6)
        assert one["class"] == predictor.classes[int(expected.argmax())]
    batch = torch.rand(3, 1, 28, 28)
    assert len(predictor(batch)) == 3
    assert torch.equal(predictor(batch)[1]["probabilities"], predictor(batch)[1]["probabilities"])
    with pytest.raises(UserError, match="no image: give a path"):
        predictor(3)


def test_an_array_of_a_type_whose_white_is_unknown_is_refused(vanilla_run, photos):
    predictor = load_predictor(vanilla_run, device="cpu")
    with Image.open(photos / "a.png") as image:
        pixels = np.asarray(image)
    expected = classified(vanilla_run, photos / "a.png")
    deep = pixels.astype(np.uint16) * 257
    for same in (deep, deep.astype(">u2"), Image.fromarray(deep.astype(np.int32))):
        assert torch.allclose(predictor(same)[0]["probabilities"], expected, atol=1e-6)
    black_and_white = predictor([pixels > 99, (pixels > 99).astype(np.uint8) * 255])
    assert torch.equal(*(one["probabilities"] for one in black_and_white))
    grey = (pixels / 255).astype(np.float32)
    others = [grey, grey.astype(float), pixels.astype(np.int32), pixels.astype(np.int64), Image.fromarray(grey)]
    for other in (*others, Image.fromarray(-pixels.astype(np.int32)), pixels[None, None].astype(np.float32)):
        with pytest.raises(UserError, match=r"no image as (float|int)\d\d .*: give uint8, uint16, bool \(H, W\)"):
            predictor(other)
    with pytest.raises(UserError, match=r"torch.int64 is no image: give uint8, or floating-point values in \[0, 1\]"):
        predictor(torch.full((1, 28, 28), 200))
    with pytest.raises(UserError, match="predicts for input 2 is not a number"):
        predictor([torch.rand(1, 28, 28), torch.full((1, 28, 28), torch.nan)])


# ---- what goes wrong -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["{photos}/broken.jpg"], "None of 1 files could be predicted"), (["{photos}/no.png"], "no such file"),
        (["{photos}/below", "--mode", "padding"], "unknown option '--mode"),
        (["{photos}", "--set", "split=val"], "has no effect on a prediction"),
        (["{photos}", "--set", "data_args.white=x"], "is no level"),
        (["{photos}", "--tta", "rotate"], "none, flip"),
        (["{photos}", "--device", "gpu"], "not one device"), (["{photos}", "--mode", "x"], "direct, padding"),
        (["{photos}", "--model_type", "LeNet"], "contradicts the checkpoint"),
    ],
)  # fmt: skip
def test_wrong_options_end_with_one_line_and_leave_nothing(vanilla_run, photos, tmp_path, capsys, flags, said):
    with pytest.raises((SystemExit, UserError)) as ended:
        main([str(vanilla_run), *(flag.format(photos=photos) for flag in flags), "--output_dir", str(tmp_path / "out")])
    if ended.type is SystemExit:
        assert ended.value.code == 2
    assert said in f"{ended.value} {capsys.readouterr().err}"
    assert not list((tmp_path / "out").glob("*/*"))


def test_an_image_size_has_no_effect_on_masks(seg_run, photos, capsys):
    with pytest.raises(SystemExit):
        main([str(seg_run), str(photos), "--image_size", "64"])
    assert "--image_size" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["os:system", "tests.own:Evaluator", 7, None])
def test_a_checkpoint_cannot_name_the_code_of_its_evaluator(vanilla_run, tmp_path, name):
    state = load_checkpoint(vanilla_run / "Vanilla_best_ckpt.pth")
    save_checkpoint(state | {"evaluator": name}, tmp_path / "a_ckpt.pth")
    with pytest.raises(UserError, match=r"whose code is used only when you name it yourself.*--task FILE\.py"):
        open_evaluator(tmp_path / "a_ckpt.pth")


def test_a_checkpoint_needs_neither_its_data_nor_its_loss(vanilla_run, tmp_path):
    """And it cannot have them imported: they are texts."""
    state = load_checkpoint(vanilla_run / "Vanilla_best_ckpt.pth")
    foreign = {
        "data_type": "nowhere:Data", "loss_type": "nowhere:Loss", "metrics": ["nowhere:Metric"], "import": ["nowhere"],
        "data_args": {"path": "http://nowhere", "white": 4095}, "data_dir": "/nowhere", "image_size": 28,
    }  # fmt: skip
    save_checkpoint(state | {"options": state["options"] | foreign}, tmp_path / "a_ckpt.pth")
    evaluator, _ = open_evaluator(tmp_path / "a_ckpt.pth", devices="cpu")
    assert evaluator.opt.data_args == {"white": 4095}
    save_checkpoint(state | {"options": state["options"] | {"model_type": "nowhere:Net"}}, tmp_path / "b_ckpt.pth")
    with pytest.raises(UserError, match="--model_type nowhere:Net"):
        open_evaluator(tmp_path / "b_ckpt.pth")


def test_an_older_checkpoint_tells_its_task_by_its_options(seg_run, tmp_path):
    state = load_checkpoint(seg_run / "UNet_best_ckpt.pth")
    del state["evaluator"]
    save_checkpoint(state, tmp_path / "a_ckpt.pth")
    assert type(open_evaluator(tmp_path / "a_ckpt.pth", devices="cpu")[0]) is EvaluatorSeg


def test_what_is_not_a_number_is_no_prediction(vanilla_run, tmp_path, photos, capsys):
    state = load_checkpoint(vanilla_run / "Vanilla_best_ckpt.pth")
    state["networks"]["model"]["layers.4.bias"][0] = float("nan")
    save_checkpoint(state, tmp_path / "a_ckpt.pth")
    with pytest.raises(UserError, match="None of 1 files"):
        main([str(tmp_path / "a_ckpt.pth"), str(photos / "a.png"), "--output_dir", str(tmp_path / "out")])
    assert "is not a number" in capsys.readouterr().err
