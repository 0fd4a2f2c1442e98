import re

import pytest
import torch

from engine.checkpoints.file import load_checkpoint

FLAGS = ("--seed", "0", "--n_epoch", "2")


@pytest.fixture(scope="module")
def plain(command, tmp_path_factory):
    """The output of the plain loop, and its weights."""
    saved = tmp_path_factory.mktemp("plain") / "weights.pth"
    done = command("-m", "examples.plain_loop", *FLAGS, "--save", saved)
    assert done.returncode == 0, done.stderr
    return done.stdout, dict(torch.load(saved, weights_only=True))


@pytest.fixture
def train_vanilla(command, tmp_path):
    """A function that runs trainer_vanilla.py and returns what it prints and its weights."""

    # With as many threads as the plain loop: sums are rounded differently when they are shared out differently.
    def train_vanilla(*flags):
        done = command("trainer_vanilla.py", *FLAGS, "--gpu_devices", "cpu", "--output_dir", tmp_path / "runs", *flags)
        assert done.returncode == 0, done.stderr
        (last,) = tmp_path.glob("runs/*/Vanilla_last_ckpt.pth")
        return done.stdout, dict(load_checkpoint(last)["networks"]["model"])

    return train_vanilla


def test_the_plain_loop_and_the_trainer_end_with_the_same_weights(plain, train_vanilla, differences):
    trained = train_vanilla()
    assert len(plain[1]) == 6
    assert differences(plain[1], trained[1]) == []
    for pattern in (r"val/accuracy (0\.\d{4})", r"(?:: |train/)loss (\d\.\d{4})"):
        of_epochs = [re.findall(pattern, said) for said, _ in (plain, trained)]
        assert len(of_epochs[0]) == 2 and of_epochs[0] == of_epochs[1]


def test_a_trainer_with_another_option_would_be_seen(plain, train_vanilla, differences):
    assert differences(plain[1], train_vanilla("--weight_decay", "0.011")[1])
