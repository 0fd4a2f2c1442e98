"""--class_weights: the numbers, where they are kept, and that no size of the pieces changes them or the gradients."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from engine.checkpoints.file import load_checkpoint
from eval_vanilla import EvaluatorVanilla
from extras.class_weights import class_counts, weights_of
from tests.small_tasks import TrainerSmall64, largest_difference
from tests.small_tasks import build as build_small
from tests.small_tasks import train as train_small
from tests.small_tasks import weights_of as weights_in
from trainer_seg_on_carvana import TrainerSeg
from utils.errors import UserError

COUNTS = torch.tensor([1, 3, 12])


def test_balanced_is_that_of_scikit_learn_and_both_are_one_in_the_mean():
    balanced, root = weights_of(COUNTS, "balanced"), weights_of(COUNTS, "sqrt")
    assert torch.allclose(balanced, 16 / (3 * COUNTS))  # n / (k n_c)
    assert root[0] / root[2] == pytest.approx(12**0.5)
    for weights in (balanced, root):
        assert (COUNTS * weights).sum() / COUNTS.sum() == pytest.approx(1)


class Trainer64(TrainerSmall64):
    """With the weights in double precision, too."""

    def build_criterion(self):
        return super().build_criterion().double()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a run with weights in updates of one piece."""
    return trained(tmp_path_factory.mktemp("whole"))


def trained(output_dir, *flags):
    flags = ["--class_weights", "balanced", "--batch_size", 8, "--n_epoch", 1, "--max_updates", 6, *flags]
    return train_small(Trainer64, flags, output_dir)


def test_they_are_counted_in_the_training_part_and_stored_in_the_checkpoint(whole, tmp_path):
    labels = whole.datasets["train"].labels
    expected = (len(labels) / (10 * labels.bincount())).float()
    assert torch.allclose(whole.criterion.weight.float(), expected)
    (path,) = whole.run_dir.path.glob("*_best_ckpt.pth")
    state = load_checkpoint(str(path), tensors_of=("criterion",))
    assert torch.allclose(state["criterion"]["weight"].float(), expected)
    assert state["options"]["class_weights"] == ["balanced"]


@pytest.mark.parametrize("size", [4, 1])
def test_the_size_of_micro_batches_changes_no_weight(whole, tmp_path, size):
    assert largest_difference(weights_in(trained(tmp_path, "--micro_batch_size", size)), weights_in(whole)) < 1e-12


def test_the_value_is_that_of_plain_torch(tmp_path):
    trainer = build_small(Trainer64, ["--class_weights", *"1232123211", "--batch_size", 8], tmp_path)
    ((images, labels),) = next(trainer.train_loader.updates(0)).micro_batches
    weight = torch.tensor([1, 2, 3, 2, 1, 2, 3, 2, 1, 1]).double()
    logits = trainer.model(images.double())
    losses = F.cross_entropy(logits, labels, weight, reduction="none", label_smoothing=0.1)
    assert trainer.compute_loss((images, labels)).item() == pytest.approx(losses.mean().item(), rel=1e-12)


def test_pixels_of_the_training_masks_are_counted(build):
    trainer = build("--class_weights", "sqrt", task=TrainerSeg)
    masks = torch.stack([mask for _, mask in trainer.datasets["train"]])
    counts = masks.flatten().bincount()
    assert torch.equal(class_counts(trainer.datasets["train"], 2), counts)
    assert torch.equal(trainer.criterion.cross_entropy.weight, weights_of(counts, "sqrt"))
    assert "weights of the classes" in trainer.run_dir.log_path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--class_weights 1 2", "2 numbers for 10 classes"),
        ("--class_weights balanced 2", "alone"),
        ("--class_weights balanced --loss_type Focal", "takes no weights"),
        ("--class_weights balanced --set loss_args.weight=[1,1,1,1,1,1,1,1,1,1]", "same thing"),
    ],
)
def test_wrong_ones_are_refused(build, flags, words):
    with pytest.raises(UserError, match=words):
        build(*flags.split())


def test_a_class_that_does_not_occur_has_no_weight():
    with pytest.raises(UserError, match="class 1 does not occur"):
        weights_of(torch.tensor([3, 0]), "balanced")


def test_what_the_loss_leaves_out_is_not_counted(build):
    trainer = build("--class_weights", "balanced", "--set", "loss_args.ignore_index=3")
    labels = trainer.datasets["train"].labels
    counts = labels[labels != 3].bincount(minlength=10)
    expected = counts.sum() / (9 * counts)
    expected[3] = 1  # of no effect but by --label_smoothing
    assert torch.allclose(trainer.criterion.weight, expected.float())
    rest = TensorDataset(torch.zeros(5, 1), torch.tensor([0, 0, 1, 255, 255]))  # 255 is no class
    assert class_counts(rest, 2, {255}).tolist() == [2, 1]


def test_pixels_that_the_loss_leaves_out_are_not_counted(build):
    flags = ["--n_classes", 3, "--loss_type", "PixelCE", "--set", "loss_args.ignore_index=2"]
    trainer = build("--class_weights", "balanced", *flags, task=TrainerSeg)  # no pixel is of class 2
    counts = torch.stack([mask for _, mask in trainer.datasets["train"]]).flatten().bincount()
    assert torch.allclose(trainer.criterion.weight, torch.cat([weights_of(counts, "balanced"), torch.ones(1)]))


def test_an_evaluation_keeps_the_weights_of_the_run(whole):
    path = ["--model_path", str(whole.run_dir.path)]
    EvaluatorVanilla.parse_options([*path, "--class_weights", "balanced"])
    EvaluatorVanilla.parse_options([*path, "--set", "loss_args.ignore_index=3"])
    for flags in (["--class_weights", "sqrt"], ["--set", "loss_args.weight=[1,1,1,1,1,1,1,1,1,1]"]):
        with pytest.raises(UserError, match=r"contradicts the checkpoint .*, which has"):
            EvaluatorVanilla.parse_options([*path, *flags])
