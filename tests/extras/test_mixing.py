"""--mixup and --cutmix: right shares in images and labels, in training alone, and the same after a resume."""

import pytest
import torch

from tests.small_tasks import StopAt
from trainer_seg_on_carvana import TrainerSeg
from utils.errors import UserError

FLAGS = ("--train_val_sample_rate", 60, "--batch_size", 16, "--n_epoch", 2)


def test_images_and_labels_are_mixed_by_the_same_shares(build):
    loader = build(*FLAGS, "--mixup", 1).train_loader
    update = next(loader.updates(0))
    ((images, shares),) = update.micro_batches
    source, labels = loader.dataset.source.__getitems__(update.indices)
    share = next(row.max() for row, one, other in zip(shares, labels, labels.roll(1), strict=True) if one != other)
    one = torch.nn.functional.one_hot(labels, 10).float()
    close = [
        torch.allclose(images, lam * source + (1 - lam) * source.roll(1, 0), atol=1e-6)
        and torch.allclose(shares, lam * one + (1 - lam) * one.roll(1, 0), atol=1e-6)
        for lam in (share, 1 - share)
    ]
    assert any(close) and torch.allclose(shares.sum(1), torch.ones(16))


def test_pieces_of_other_images_are_put_in(build):
    loader = build(*FLAGS, "--cutmix", 1).train_loader
    update = next(loader.updates(0))
    ((images, shares),) = update.micro_batches
    source, _ = loader.dataset.source.__getitems__(update.indices)
    assert ((images == source) | (images == source.roll(1, 0))).all() and not torch.equal(images, source)
    assert shares.shape == (16, 10)


def test_neither_processes_nor_a_resume_change_a_run(train, build, weights, differences):
    flags = (*FLAGS, "--mixup", 0.4, "--cutmix", 1, "--augment", "light", "--class_weights", "sqrt")
    whole = weights(train(*flags))
    assert differences(whole, weights(train(*flags, "--num_workers", 1))) == []
    first = train(*flags, callbacks=[StopAt(5)])
    resumed = build("--resume", first.run_dir.path)
    resumed.train()
    assert differences(whole, weights(resumed)) == []
    assert resumed.val_loader.dataset is resumed.datasets["val"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--mixup 1 --micro_batch_size 8", "leave out --micro_batch_size"),
        ("--cutmix 1 --micro_batch_size auto", "leave out --micro_batch_size"),
        ("--mixup 1 --loss_type Focal", "take --loss_type CE"),
        ("--mixup 1 --set loss_args.ignore_index=3", "leave out loss_args.ignore_index"),
    ],
)
def test_what_cannot_be_mixed_is_refused(build, flags, words):
    with pytest.raises(UserError, match=words):
        build(*flags.split())


def test_masks_are_refused(build):
    with pytest.raises(UserError, match="take --loss_type CE"):
        build("--mixup", 1, task=TrainerSeg)
