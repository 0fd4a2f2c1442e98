"""--augment NAME: what it changes, and that neither loading processes, threads nor a resume change a run."""

import pytest
import torch

from extras.augmentation import Augmentation, build_augmentation
from tests.small_tasks import StopAt
from trainer_seg_on_carvana import TrainerSeg
from utils.errors import UserError
from utils.seed import seed_cpu

FLAGS = ("--augment", "light", "--train_val_sample_rate", 60, "--batch_size", 16, "--lr_scheduler", "constant")


def to_nothing(image):
    """Return no tensor."""
    return None


def no_transform() -> str:
    return "nothing"


@pytest.mark.parametrize("name", ["light", "trivial", "randaugment"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_images_stay_images_and_labels_stay(name, num_channels):
    change = build_augmentation(name)
    seed_cpu(0)
    image = torch.rand(num_channels, 20, 24)
    changed = [change((image, 7)) for _ in range(30)]
    assert all(label == 7 and one.shape == image.shape and one.dtype == torch.float32 for one, label in changed)
    assert all(one.min() >= 0 and one.max() <= 1 for one, _ in changed)
    assert sum(not torch.equal(one, image) for one, _ in changed) > 10


@pytest.mark.parametrize("name", ["light", "trivial", "randaugment"])
def test_the_number_of_threads_changes_no_bit(name):
    image = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0))
    change, found = build_augmentation(name), []
    before = torch.get_num_threads()
    for num_threads in (1, 4):
        torch.set_num_threads(num_threads)
        seed_cpu(1)
        found.append(torch.stack([change((image, 0))[0] for _ in range(8)]))
        assert torch.get_num_threads() == num_threads
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_neither_processes_nor_a_resume_change_a_run(train, build, weights, differences):
    whole = weights(train(*FLAGS, "--n_epoch", 2))
    assert differences(whole, weights(train(*FLAGS, "--num_workers", 2, "--n_epoch", 2))) == []
    first = train(*FLAGS, "--n_epoch", 2, callbacks=[StopAt(5)])  # within the second epoch
    resumed = build("--resume", first.run_dir.path)
    resumed.train()
    assert differences(whole, weights(resumed)) == []
    assert differences(whole, weights(train(*FLAGS, "--n_epoch", 2, "--augment", "none"))) != []


def test_only_training_is_changed_and_one_epoch_is_unlike_another(build):
    trainer = build(*FLAGS)
    loader, images = trainer.train_loader, trainer.datasets["train"]
    first, again, second = (next(loader.updates(epoch)).micro_batches[0][0] for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first.sort().values, second.sort().values)
    assert next(iter(trainer.val_loader))[0].shape[0] and trainer.val_loader.dataset is trainer.datasets["val"]
    assert torch.equal(images[0][0], images[0][0])


def test_a_transform_of_a_library_is_named(build):
    loader = build(*FLAGS[2:], "--augment", "torchvision.transforms.v2:RandomErasing").train_loader
    assert type(loader.dataset.change.transform).__name__ == "RandomErasing"


def test_a_sample_that_comes_twice_is_changed_twice(build):
    trainer = build(*FLAGS, "--sampler", "balanced", "--train_val_sample_rate", 30)
    labels = trainer.datasets["train"].labels
    trainer.datasets["train"].labels = labels.where(labels == 0, 1)  # one class is rare
    loader, _ = trainer.build_loaders()
    updates = list(loader.updates(0))
    indices = [index % len(labels) for update in updates for index in update.indices]
    images = torch.cat([update.micro_batches[0][0] for update in updates])
    twice = next(index for index in indices if indices.count(index) > 1)
    one, other, *_ = (image for index, image in zip(indices, images, strict=True) if index == twice)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--augment", "--augment True has no effect"),
        ("--augment nowhere:light", "no module"),
        ("--augment tests.extras.test_augmentation:no_transform", "makes str"),
        ("--augment tests.extras.test_augmentation:to_nothing", "needs the argument image"),
    ],
)
def test_wrong_ones_are_refused(build, flags, words):
    with pytest.raises(UserError, match=words):
        build(*flags.split())


def test_masks_and_other_data_are_refused(build):
    with pytest.raises(UserError, match="without its mask"):
        build("--augment", "light", task=TrainerSeg).train()
    with pytest.raises(UserError, match="changes images"):
        Augmentation(lambda image: image, "mine")({"values": 1})
    with pytest.raises(UserError, match="must make a tensor"):
        Augmentation(to_nothing, "mine")((torch.rand(1, 2, 2), 0))


@pytest.mark.parametrize("name", ["light", "trivial", "randaugment"])
def test_images_that_are_normalized_already_are_refused(name):
    image = torch.linspace(-1.5, 1.5, 3 * 8 * 8).reshape(3, 8, 8)
    with pytest.raises(UserError, match=r"in \[0, 1\], and this one goes from -1\.5 to 1\.5.*--input_mean"):
        build_augmentation(name)((image, 0))
    build_augmentation(name)((image.clamp(-1e-6, 1 + 1e-6), 0))  # rounding
    Augmentation(lambda image: image, "mine")((image, 0))
