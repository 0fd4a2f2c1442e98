"""--crop: squares of images and masks at their own size, and the same run with any number of processes."""

import numpy as np
import pytest

from extras.crops import random_crop
from tests.small_tasks import StopAt
from trainer_seg_on_carvana import TrainerSeg
from utils.errors import UserError

FLAGS = ("--crop", 40, "--mode", "padding", "--augment")


def flags_of(small) -> list:
    """Return the flags of a small segmentation, without --patch_size, which --crop replaces."""
    flags = list(small(TrainerSeg))
    place = flags.index("--patch_size")
    return [*flags[:place], *flags[place + 2 :], "--seed", "0", *FLAGS]


@pytest.fixture
def cropped(small, tmp_path):
    """Return a function that builds a trainer with crops."""
    from tests.conftest import build_trainer

    return lambda *flags, callbacks=(): build_trainer(
        TrainerSeg, [str(flag) for flag in (*flags_of(small), *flags)], tmp_path / "runs", callbacks
    )


def test_image_and_mask_are_cut_at_one_place():
    classes = np.arange(30 * 40).reshape(30, 40)
    pixels = np.stack([classes, 2 * classes])
    cuts = [random_crop(pixels, classes, 16) for _ in range(200)]
    assert all(image.shape == (2, 16, 16) and (image[0] == mask).all() for image, mask in cuts)
    corners = {divmod(int(mask[0, 0]), 40) for _, mask in cuts}
    assert {0, 14} <= {top for top, _ in corners} and max(left for _, left in corners) == 24


def test_a_small_image_is_continued():
    image, mask = random_crop(np.arange(6).reshape(1, 2, 3), np.array([[0, 0, 1], [0, 1, 1]]), 4)
    assert mask.tolist() == [[0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]] and image.shape == (1, 4, 4)


def test_training_is_cut_and_validation_has_its_own_size(cropped):
    trainer = cropped()
    ((images, masks),) = next(trainer.train_loader.updates(0)).micro_batches
    assert images.shape[-2:] == masks.shape[-2:] == (40, 40)
    own = trainer.datasets["val"][0][0].shape
    assert next(iter(trainer.val_loader))[0].shape[1:] == own and max(own[1:]) > 40


def test_neither_processes_nor_a_resume_change_a_run(cropped, build, weights, differences):
    def trained(*flags, **settings):
        trainer = cropped(*flags, **settings)
        trainer.train()
        return trainer

    whole = weights(trained())
    assert differences(whole, weights(trained("--num_workers", 1))) == []
    first = trained(callbacks=[StopAt(6)])
    resumed = build("--resume", first.run_dir.path, task=TrainerSeg)
    resumed.train()
    assert differences(whole, weights(resumed)) == []


def test_another_scale_in_validation_and_idle_options_are_refused(cropped, build):
    with pytest.raises(UserError, match="add --mode padding"):
        cropped("--mode", "direct")
    with pytest.raises(UserError, match="--patch_size 32 has no effect with --crop 40"):
        build(*FLAGS, task=TrainerSeg)
