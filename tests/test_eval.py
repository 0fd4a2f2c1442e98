import json
import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data import FashionMNIST
from data.data_entry import group_hashes
from data.loader import EvalLoader
from engine.checkpoints.file import load_checkpoint, save_checkpoint
from eval_seg_on_carvana import EvaluatorSeg
from eval_vanilla import EvaluatorVanilla
from extras.evaluation.masks import picture_name
from tools.synthetic.make_carvana_like import make_carvana_like
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError


@pytest.fixture
def evaluate(tmp_path):
    """A function that evaluates a checkpoint: `evaluate(EvaluatorVanilla, path, *flags)`."""

    def evaluate(evaluator_class, model_path, *flags):
        argv = ["--model_path", model_path, "--save_path", tmp_path / "test", *flags]
        return evaluator_class.run_test(evaluator_class.parse_options([str(text) for text in argv]))

    return evaluate


@pytest.fixture
def vanilla_best(vanilla_run):
    return vanilla_run / "Vanilla_best_ckpt.pth"


@pytest.fixture
def seg_best(seg_run):
    return seg_run / "UNet_best_ckpt.pth"


def record_of(evaluator) -> dict:
    return json.loads((evaluator.output_dir / "results.json").read_text())


def pictures(evaluator) -> dict[str, np.ndarray]:
    """The pictures that an evaluation saved, by file name."""
    return {path.name: np.asarray(Image.open(path)) for path in sorted(evaluator.output_dir.rglob("*.png"))}


# ---- the score -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("flags", [(), ("--eval_batch_size", 7), ("--num_workers", 2), ("--num_workers", "auto")])
def test_the_stored_score_of_the_best_checkpoint_is_found_again(evaluate, vanilla_best, seg_best, capfd, flags):
    for evaluator_class, path in ((EvaluatorVanilla, vanilla_best), (EvaluatorSeg, seg_best)):
        record = record_of(evaluate(evaluator_class, path, "--split", "val", *flags))
        stored = load_checkpoint(path)["score"]
        assert record["n"] == stored["num_samples"]
        assert record["results"] == pytest.approx(stored["results"], rel=1e-5)
        assert "The score agrees" in capfd.readouterr().out


def test_a_score_that_is_not_that_of_the_weights_is_noticed(evaluate, vanilla_best, tmp_path):
    state = load_checkpoint(vanilla_best)
    state["networks"]["model"]["layers.4.weight"] *= 0.9
    save_checkpoint(state, tmp_path / "changed.pth")
    with pytest.raises(UserError, match="stored with the checkpoint"):
        evaluate(EvaluatorVanilla, tmp_path / "changed.pth", "--split", "val")


def test_a_score_of_an_earlier_update_is_not_compared(build, evaluate):
    trainer = build("--save_every", 0.25, "--n_epoch", 1)
    updates = trainer.train_loader.updates(0)
    trainer.train()
    trainer.train_update(next(updates))  # on from the validation, as after an interruption
    trainer.save("InT")
    evaluator = evaluate(EvaluatorVanilla, trainer.checkpointer.path("InT"), "--split", "val")
    assert evaluator.num_samples == 90


@pytest.mark.parametrize("flags", [("--mode", "padding"), ("--amp", "bf16"), ("--patch_size", 48)])
def test_validation_under_other_conditions_is_no_error(evaluate, seg_best, flags):
    assert evaluate(EvaluatorSeg, seg_best, "--split", "val", *flags).num_samples == 4


def test_the_results_are_right(evaluate, vanilla_best):
    evaluator = evaluate(EvaluatorVanilla, vanilla_best)
    network = evaluator.networks["model"].eval()
    images, labels = FashionMNIST.build_fashion_mnist_sample()["test"].__getitems__(range(1000))
    with torch.no_grad():
        accuracy = (network(images).argmax(dim=1) == labels).double().mean().item()
    record = record_of(evaluator)
    assert record["n"] == 1000 and record["results"]["accuracy"] == pytest.approx(accuracy)
    low, high = record["intervals"]["accuracy"]
    assert low < accuracy < high < low + 0.1
    assert record["results"].keys() == {"loss", "accuracy"}


def test_evaluating_leaves_the_mode_and_the_random_numbers_as_they_were(build):
    class Draws(EvaluatorVanilla):
        def eval_step(self, batch):
            torch.rand(3), np.random.rand(3)
            super().eval_step(batch)

    trainer = build(task=type("Task", (TrainerVanilla,), {"evaluator_class": Draws}))
    network = trainer.networks["model"]
    for is_training in (True, False):
        network.train(is_training)
        state = torch.get_rng_state(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
        trainer.evaluator.evaluate(trainer.val_loader)
        assert network.training == is_training
        assert torch.equal(torch.get_rng_state(), state[0])
        assert (np.random.get_state()[1].tolist(), np.random.get_state()[2]) == state[1:]


class Unreadable(torch.utils.data.Dataset):
    """Holds samples of which the first ones cannot be loaded."""

    is_random = False

    def __init__(self, num_samples: int, num_bad: int):
        self.num_samples, self.num_bad = num_samples, num_bad

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index < self.num_bad:
            raise UserError(f"sample {index} is bad")
        return torch.zeros(1, 28, 28), 0


def test_a_part_without_a_good_sample_is_named_and_has_no_picture(build):
    evaluator = build().evaluator
    bad, half = (EvalLoader(Unreadable(6, num_bad), 2, max_bad_samples=6) for num_bad in (6, 3))
    bad.bad.warn = half.bad.warn = lambda message: None
    assert evaluator.picture(bad) is None
    with pytest.raises(UserError, match=r"None of the 6 samples to evaluate can be loaded"):
        evaluator.evaluate(bad)
    assert evaluator.evaluate(half)["loss"] > 0 and len(half.bad) == 3
    evaluator.draw = lambda batch: batch[0]
    assert evaluator.picture(half).shape == (1, 1, 28, 28)  # of the first good sample
    assert evaluator.picture(bad) is None


def test_evaluating_leaves_a_frozen_layer_frozen(build):
    trainer = build()
    network = trainer.networks["model"].train()
    network.layers[1].eval()
    trainer.evaluator.evaluate(trainer.val_loader)
    assert network.training and not network.layers[1].training


def test_the_loss_is_in_eval_mode_with_the_networks(build):
    trainer = build()
    modes = []
    trainer.criterion.register_forward_hook(lambda criterion, *_: modes.append(criterion.training))
    trainer.compute_loss(next(iter(trainer.val_loader)))
    trainer.validate()
    assert modes[0] and not any(modes[1:]) and len(modes) > 1 and trainer.criterion.training


def test_the_batches_of_an_evaluation_carry_no_gradient(build, monkeypatch):
    trainer = build()
    seen = []
    forward = trainer.evaluator.criterion.forward
    monkeypatch.setattr(trainer.evaluator.criterion, "forward", lambda *a: seen.append(a[0]) or forward(*a))
    trainer.evaluator.evaluate(trainer.val_loader)
    assert seen and not any(logits.requires_grad for logits in seen)


# ---- the options -----------------------------------------------------------------------------------------------------
def test_a_checkpoint_needs_no_other_flag(vanilla_best, seg_best, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for evaluator_class, path, n in ((EvaluatorVanilla, vanilla_best, 1000), (EvaluatorSeg, seg_best, 4)):
        evaluator = evaluator_class.run_test(evaluator_class.parse_options(["--model_path", str(path)]))
        assert evaluator.num_samples == n
        assert evaluator.output_dir.resolve().parent == tmp_path / "test_viz"


def test_the_options_of_the_run_may_be_given_as_a_file(evaluate, vanilla_run, vanilla_best):
    (config,) = vanilla_run.glob("config_*.json")
    assert evaluate(EvaluatorVanilla, vanilla_best, "--config", config).num_samples == 1000


@pytest.mark.parametrize(
    ("flag", "value"), [("n_classes", 3), ("model_type", "UNetpp"), ("width", 8), ("up", "transposed")]
)
def test_contradicting_the_network_of_a_checkpoint_is_refused(seg_best, tmp_path, capfd, flag, value):
    with pytest.raises(SystemExit) as end:
        EvaluatorSeg.main(["--model_path", str(seg_best), "--save_path", str(tmp_path / "test"), f"--{flag}={value}"])
    assert end.value.code == 2
    assert f"--{flag} {value} contradicts the checkpoint" in capfd.readouterr().err
    assert not (tmp_path / "test").exists()


def test_the_same_value_is_no_contradiction(evaluate, seg_best):
    assert evaluate(EvaluatorSeg, seg_best, "--n_classes", 2, "--model_type", "UNet").num_samples == 4


def test_a_sample_of_the_test_part_can_be_asked_for(evaluate, vanilla_best):
    assert record_of(evaluate(EvaluatorVanilla, vanilla_best, "--test_sample_rate", 100))["n"] == 100


def test_debug_evaluates_a_few_batches(evaluate, vanilla_best):
    assert evaluate(EvaluatorVanilla, vanilla_best, "--debug", "--eval_batch_size", 5).num_samples == 15


@pytest.mark.parametrize("flags", [("--amp", "bf16"), ("--amp", "fp16"), ("--channels_last",), ("--deterministic",)])
def test_the_machine_options_change_rounding_only(evaluate, seg_best, flags):
    exact, other = (record_of(evaluate(EvaluatorSeg, seg_best, *more))["results"] for more in ((), flags))
    torch.use_deterministic_algorithms(False)
    assert other == pytest.approx(exact, abs=0.02)


# ---- seen data -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("part", ["test", "val"])
def test_data_that_a_run_has_seen_is_refused(evaluate, seg_best, part):
    flags = ("--split", part, "--split_seed", 3)
    with pytest.raises(UserError, match=r"groups of the .* part were in the .* part of the checkpoint's run"):
        evaluate(EvaluatorSeg, seg_best, *flags)
    if part == "test":
        assert evaluate(EvaluatorSeg, seg_best, *flags, "--allow_seen").num_samples == 4


def test_another_split_of_the_validation_part_is_refused(evaluate, vanilla_best):
    with pytest.raises(UserError, match="train part"):
        evaluate(EvaluatorVanilla, vanilla_best, "--split", "val", "--split_seed", 1)


def test_the_training_part_is_evaluated_when_it_is_asked_for(evaluate, vanilla_best):
    assert evaluate(EvaluatorVanilla, vanilla_best, "--split", "train").num_samples == 510


def test_the_training_part_is_evaluated_without_augmentation(train, evaluate, cars):
    trainer = train("--augment", task=TrainerSeg)
    evaluator = evaluate(EvaluatorSeg, trainer.checkpointer.path("last"), "--split", "train", "--n_snap", 1)
    for name, origin in pictures(evaluator).items():
        if name.endswith("_origin.png"):
            source = Image.open(cars / "train" / name.replace("_origin.png", ".jpg")).resize((32, 32), Image.BOX)
            assert np.abs(origin.astype(int) - np.asarray(source).astype(int)).mean() < 4


# ---- what is printed and drawn: FashionMNIST -------------------------------------------------------------------------
def test_the_first_fifty_predictions_are_printed(evaluate, vanilla_best, capfd):
    evaluator = evaluate(EvaluatorVanilla, vanilla_best)
    lines = re.findall(r'^Predicted: "(.+)", Actual: "(.+)"$', capfd.readouterr().out, flags=re.MULTILINE)
    assert len(lines) == 50
    images, labels = FashionMNIST.build_fashion_mnist_sample()["test"].__getitems__(range(50))
    with torch.no_grad():
        predicted = evaluator.networks["model"](images).argmax(dim=1)
    names = FashionMNIST.CLASSES
    assert lines == [(names[p], names[a]) for p, a in zip(predicted.tolist(), labels.tolist(), strict=True)]


def test_the_accuracy_per_class_is_printed(evaluate, vanilla_best, capfd):
    confusion = evaluate(EvaluatorVanilla, vanilla_best).meters["confusion"].compute()
    printed = capfd.readouterr().out
    for name, row in zip(FashionMNIST.CLASSES, confusion, strict=True):
        share = f"{row[FashionMNIST.CLASSES.index(name)] / row.sum():.1%}"
        assert re.search(rf"^ *{name} +{share}", printed, flags=re.MULTILINE)


def test_the_pictures_of_a_classifier_are_saved(evaluate, vanilla_best):
    found = pictures(evaluate(EvaluatorVanilla, vanilla_best))
    assert found.keys() == {"confusion_matrix.png", "mistakes.png", "curves.png", "calibration.png"}
    for picture in found.values():
        height, width, _ = picture.shape
        assert 400 < height < 2000 and 400 < width < 2000
        assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50


@pytest.mark.parametrize("flags", [("--viz", "False"), ("--no-viz",)])
def test_no_pictures_when_none_are_wanted(evaluate, vanilla_best, seg_best, flags):
    for evaluator_class, path in ((EvaluatorVanilla, vanilla_best), (EvaluatorSeg, seg_best)):
        evaluator = evaluate(evaluator_class, path, *flags)
        assert not pictures(evaluator)
        assert record_of(evaluator)["results"]["loss"] > 0


def test_a_classifier_without_a_mistake_has_no_mistakes_to_draw(evaluate, vanilla_best, monkeypatch):
    def right(self, batch):
        _, labels = batch
        logits = 9.0 * torch.nn.functional.one_hot(labels, 10)
        self.record(logits, labels)
        for name, meter in self.meters.items():
            meter.update(*((torch.tensor(0.0), len(labels)) if name == "loss" else (logits, labels)))

    monkeypatch.setattr(EvaluatorVanilla, "eval_step", right)
    assert evaluate(EvaluatorVanilla, vanilla_best).num_samples == 1000


# ---- what is drawn: segmentation -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mode", "shape"), [("padding", (64, 96)), ("direct", (32, 32))])
def test_origin_mask_and_prediction_are_saved(evaluate, seg_best, seg_run, mode, shape):
    evaluator = evaluate(EvaluatorSeg, seg_best, "--mode", mode, "--n_snap", 1)
    found = pictures(evaluator)
    names = json.loads((seg_run / "split.json").read_text())["test"]
    kinds = ("origin", "mask", "pred")
    others = {"contact_sheet.png", "mistakes.png", "curves.png", "calibration.png"}
    assert found.keys() == {f"{name}_{kind}.png" for name in names for kind in kinds} | others
    for name in names:
        origin, mask, predicted = (found[f"{name}_{kind}.png"] for kind in kinds)
        assert origin.shape == (*shape, 3) and mask.shape == predicted.shape == shape
        assert set(np.unique(mask)) == {0, 255} and set(np.unique(predicted)) <= {0, 255}


def test_with_padding_the_pictures_are_those_of_the_files(evaluate, seg_best, cars):
    found = pictures(evaluate(EvaluatorSeg, seg_best, "--mode", "padding", "--n_snap", 1))
    for name, picture in found.items():
        stem, _, kind = name.removesuffix(".png").rpartition("_")
        if kind == "origin":
            source = np.asarray(Image.open(cars / "train" / f"{stem}.jpg").convert("RGB")).astype(int)
            assert np.abs(picture.astype(int) - source).max() <= 1
            assert len(np.unique(picture)) > 50
        elif kind == "mask":
            source = np.asarray(Image.open(cars / "train_masks" / f"{stem}_mask.gif").convert("L"))
            assert np.array_equal(picture, source)


def test_images_of_any_size_are_evaluated_with_padding(evaluate, seg_best, tmp_path):
    make_carvana_like(tmp_path / "odd", cars=3, views=2, size=(70, 51), seed=5)
    flags = ("--data_dir", tmp_path / "odd", "--test_sample_rate", 2, "--val_split", 2, "--mode", "padding")
    evaluator = evaluate(EvaluatorSeg, seg_best, *flags, "--n_snap", 1, "--allow_seen")
    shapes = {picture.shape[:2] for name, picture in pictures(evaluator).items() if "_pred" in name}
    assert shapes == {(51, 70)}


@pytest.mark.parametrize("eval_batch_size", [2, 4])
def test_every_nth_image_is_saved_in_whatever_batches_they_come(evaluate, seg_best, seg_run, eval_batch_size):
    found = pictures(evaluate(EvaluatorSeg, seg_best, "--n_snap", 3, "--eval_batch_size", eval_batch_size))
    names = json.loads((seg_run / "split.json").read_text())["test"]
    predictions = [name for name in found if name.endswith("_pred.png")]
    assert predictions == [f"{names[0]}_pred.png", f"{names[3]}_pred.png"]


def test_samples_without_names_or_with_one_name_have_pictures_of_their_own(tmp_path):
    class Samples(list):
        names = ("a/car", "b/car", "bus")

    (tmp_path / "car_origin.png").touch()
    assert [picture_name(Samples("abc"), i, tmp_path) for i in range(3)] == ["car_0", "car_1", "bus"]
    assert picture_name(Samples("abcd"), 3, tmp_path) == "3"  # its names are those of classes


def test_a_network_without_a_divisor_gets_images_of_their_own_size():
    class Sizes(nn.Module):
        def forward(self, images):
            seen.append(tuple(images.shape[2:]))
            return images

    seen, evaluator = [], Namespace(model=Sizes())
    for divisor in (None, 4):
        if divisor:
            evaluator.model.divisor = divisor
        assert EvaluatorSeg.predict(evaluator, torch.ones(1, 3, 5, 7)).shape == (1, 3, 5, 7)
    assert seen == [(5, 7), (8, 8)]


def test_results_are_saved_before_pictures_are_drawn(evaluate, vanilla_best, tmp_path, monkeypatch):
    class Clumsy(EvaluatorVanilla):
        def report(self, loader):
            raise ZeroDivisionError(self.output_dir)

    with pytest.raises(ZeroDivisionError) as caught:
        evaluate(Clumsy, vanilla_best)
    assert json.loads((caught.value.args[0] / "results.json").read_text())["n"] == 1000


@pytest.mark.parametrize("n_classes", [1, 3])
def test_one_and_three_classes_are_drawn(train, evaluate, tmp_path, n_classes):
    make_carvana_like(tmp_path / "made", cars=6, views=4, size=(96, 64), n_classes=max(2, n_classes))
    trainer = train("--data_dir", tmp_path / "made", "--n_classes", n_classes, task=TrainerSeg)
    path = trainer.checkpointer.path("last")
    assert record_of(evaluate(EvaluatorSeg, path, "--split", "val"))["n"] == 4
    found = pictures(evaluate(EvaluatorSeg, path, "--n_snap", 1))
    values = {kind: set() for kind in ("mask", "pred")}
    for name, picture in found.items():
        kind = name.removesuffix(".png").rpartition("_")[2]
        if kind in values:
            values[kind] |= set(np.unique(picture).tolist())
    levels = {0, 255} if n_classes == 1 else {0, 128, 255}
    assert values["mask"] == levels and values["pred"] <= levels


def test_unetpp_with_deep_supervision_is_evaluated(train, evaluate):
    trainer = train("--model_type", "UNetpp", "--deep_supervision", task=TrainerSeg)
    best = trainer.checkpointer.path("best")
    assert record_of(evaluate(EvaluatorSeg, best, "--split", "val"))["n"] == 4
    assert pictures(evaluate(EvaluatorSeg, best))


def test_what_pretrained_weights_have_seen_is_not_forgotten(train, seg_best):
    before = load_checkpoint(seg_best)["groups"]
    tuned = train("--pretrained", "--model_path", seg_best, "--split_seed", 3, task=TrainerSeg)
    after = load_checkpoint(tuned.checkpointer.path("last"))["groups"]
    own = group_hashes(tuned.datasets["train"])
    assert not torch.isin(before["train"], own).all()  # the other split trains on other cars
    assert torch.isin(torch.cat([before["train"], own]), after["train"]).all()
