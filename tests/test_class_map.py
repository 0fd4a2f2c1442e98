"""The map from the values of masks to classes belongs to the checkpoint, whatever the masks at hand hold."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from eval_seg_on_carvana import EvaluatorSeg
from loss.dice_loss import DiceLoss
from trainer_seg_on_carvana import TrainerSeg
from utils.errors import UserError


def write_data(directory, *values):
    """Write ten pairs; each mask holds the values in columns of equal width."""
    for folder in ("train", "train_masks"):
        (directory / folder).mkdir(parents=True)
    for car in range(10):
        Image.new("RGB", (24, 24), (car, 90, 90)).save(directory / "train" / f"car{car}_1.png")
        mask = np.repeat(np.array(values, dtype=np.uint8), 24 // len(values))
        Image.fromarray(np.tile(mask, (24, 1))).save(directory / "train_masks" / f"car{car}_1_mask.png")
    return directory


CARVANA = ()
SEVERAL = ("--data_type", "MultiImage", "--data_args", '{"dirs": ["train", "train_masks"], "name_ends": ["", "_mask"]}')
FLAGS = ("--n_classes", 3, "--width", 2, "--patch_size", 24, "--train_val_sample_rate", 1, "--test_sample_rate", 0.4)


@pytest.fixture
def seen(tmp_path):
    return write_data(tmp_path / "seen", 0, 127, 255)


@pytest.fixture
def other(tmp_path):
    return write_data(tmp_path / "other", 0, 255)


@pytest.mark.parametrize("kind", [CARVANA, SEVERAL], ids=["carvana", "several images"])
def test_a_checkpoint_decides_in_evaluation_resume_and_pretraining(build, tmp_path, seen, other, kind):
    trainer = build("--data_dir", seen, *kind, *FLAGS, task=TrainerSeg)
    assert trainer.opt.mask_values == [0, 127, 255]
    trainer.save("last")
    checkpoint = trainer.checkpointer.path("last")

    opt = EvaluatorSeg.parse_options([
        *("--model_path", str(checkpoint), "--data_dir", str(other)),
        *(map(str, kind[2:])),
    ])
    assert opt.mask_values == [0, 127, 255]
    _, mask = EvaluatorSeg.build_datasets(opt)["test"][0]
    assert mask.unique().tolist() == [0, 2]  # alone, 255 would be class 1

    resumed = build("--resume", checkpoint, *kind[2:], task=TrainerSeg)
    assert resumed.opt.mask_values == [0, 127, 255]

    flags = ("--pretrained", "--model_path", checkpoint, "--data_dir", other, *kind)
    fine_tuned = build(*flags, *FLAGS, task=TrainerSeg)
    assert fine_tuned.opt.mask_values == [0, 127, 255]
    assert fine_tuned.datasets["train"][0][1].unique().tolist() == [0, 2]
    given = build(*flags, *FLAGS, "--mask_values", 255, 0, task=TrainerSeg)
    assert given.datasets["train"][0][1].unique().tolist() == [0, 1]
    assert int(given.datasets["train"][0][1][0, 0]) == 1  # 0 is the second class


def test_a_directory_of_scenes_without_an_object_is_a_test_part_alone(build, tmp_path, other):
    trainer = build("--data_dir", other, *FLAGS, task=TrainerSeg)
    trainer.save("last")
    empty = write_data(tmp_path / "empty", 0)
    flags = ("--model_path", trainer.checkpointer.path("last"), "--data_dir", empty, "--test_sample_rate", 1)
    parts = EvaluatorSeg.build_datasets(EvaluatorSeg.parse_options([*map(str, flags)]))
    assert len(parts["test"]) == 10 and parts["test"][0][1].unique().tolist() == [0]


def test_a_value_that_the_checkpoint_does_not_know_is_one_line(build, tmp_path, other):
    trainer = build("--data_dir", other, *FLAGS, task=TrainerSeg)
    trainer.save("last")
    unknown = write_data(tmp_path / "unknown", 0, 1, 255)
    opt = EvaluatorSeg.parse_options([
        *("--model_path", str(trainer.checkpointer.path("last")), "--data_dir", str(unknown)),
    ])
    with pytest.raises(UserError, match=r"holds the value 1, but the classes are 0, 255: those of the checkpoint"):
        EvaluatorSeg.build_datasets(opt)


@pytest.mark.parametrize("loss", ["PixelCE", "Dice"])
def test_ignored_values_count_in_no_loss_and_no_metric(build, seen, loss):
    flags = ("--ignored_values", 127, "--n_classes", 2, "--loss_type", loss, *FLAGS[2:])
    trainer = build("--data_dir", seen, *flags, task=TrainerSeg)
    batch = next(trainer.train_loader.updates(0)).micro_batches[0]
    images, masks = batch
    assert masks[0, 0].tolist() == [0] * 8 + [-100] * 8 + [1] * 8
    seen_columns = torch.cat([torch.arange(8), torch.arange(16, 24)])
    evaluator = trainer.evaluator
    trainer.model.eval()
    logits = evaluator.predict(images)
    loss_of = {"PixelCE": F.cross_entropy, "Dice": DiceLoss(2)}[loss]
    expected = loss_of(logits[..., seen_columns], masks[..., seen_columns])
    assert torch.allclose(trainer.criterion(logits, masks), expected)
    evaluator.num_in_batch, evaluator.loss_count = len(masks), int((masks >= 0).sum())
    evaluator.eval_step(batch)
    predicted, actual = logits.argmax(1)[..., seen_columns] == 1, masks[..., seen_columns] == 1
    dice = 2 * (predicted & actual).sum() / (predicted.sum() + actual.sum())
    assert evaluator.meters["dice"].compute() == pytest.approx(dice.item())
    assert evaluator.meters["loss"].compute() == pytest.approx(expected.item())
