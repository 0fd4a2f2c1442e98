"""User-defined steps with more than one pass, and their exact resume."""

import re
from pathlib import Path

import pytest
import torch

from callbacks.callback import Callback
from engine.checkpoints.file import load_checkpoint
from examples.lbfgs import TrainerLBFGS
from examples.sam import TrainerSAM
from utils.errors import DivergedError, UserError

OF_THE_LAUNCH = ("options", "callbacks", "seconds")
SMALL = ("--max_iter", 3, "--batch_size", 150)  # updates of 150, 150, 150 and 60


class Interrupts(Callback):
    def on_update_end(self, trainer, values):
        if trainer.progress.update == 6:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("task", "flags"), [(TrainerSAM, ()), (TrainerLBFGS, SMALL)])
def test_a_resumed_run_ends_like_one_that_was_not_interrupted(build, train, differences, task, flags):
    whole = train(*flags, task=task)
    broken = build(*flags, task=task, callbacks=[Interrupts()])
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = train("--resume", broken.run_dir.path, task=task)
    states = [load_checkpoint(trainer.checkpointer.path("last")) for trainer in (whole, resumed)]
    assert differences(*states, OF_THE_LAUNCH) == []
    assert states[0]["progress"]["update"] > 6 and states[0]["optimizers"]["model"]["state"]


def test_sam_is_its_formula(build, weights):
    plain, ours = build("--optim", "sgd", "--momentum", 0), build("--optim", "sgd", "--momentum", 0, task=TrainerSAM)
    update = next(iter(plain.train_loader.updates(0)))
    ((images, labels),) = update.micro_batches
    network = plain.networks["model"]
    parameters = list(network.parameters())
    first = torch.autograd.grad(plain.criterion(network(images), labels), parameters)
    norm = torch.cat([gradient.flatten() for gradient in first]).norm()
    before = weights(plain)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, first, strict=True):
            parameter += 0.05 * gradient / norm
    second = torch.autograd.grad(plain.criterion(network(images), labels), parameters)
    ours.train_update(update)
    for (name, start), gradient in zip(before.items(), second, strict=True):
        expected = start - 1e-3 * (gradient + 0.01 * start)
        torch.testing.assert_close(weights(ours)[name], expected, atol=1e-6, rtol=1e-5)


def test_sam_without_a_way_uphill_is_the_plain_step(train, weights):
    plain, ours = train("--n_epoch", 1), train("--n_epoch", 1, "--rho", 0, task=TrainerSAM)
    assert all(torch.equal(value, weights(ours)[name]) for name, value in weights(plain).items())


def test_lbfgs_learns_in_pieces_as_in_one(train):
    whole, pieces = (train(*SMALL, *more, task=TrainerLBFGS) for more in ((), ("--micro_batch_size", 40)))
    for trainer in (whole, pieces):
        assert trainer.score["results"]["accuracy"] > 0.5
    assert whole.score["results"]["loss"] == pytest.approx(pieces.score["results"]["loss"], rel=0.05)


@pytest.mark.parametrize("task", [TrainerSAM, TrainerLBFGS])
def test_what_is_not_finite_never_reaches_the_weights(build, weights, task):
    class Bad(task):
        def compute_loss(self, batch):
            return super().compute_loss(batch) * float("nan")

    trainer = build(task=Bad)
    before = weights(trainer)
    with pytest.raises(DivergedError):
        trainer.train()
    assert trainer.progress.is_exact
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def test_lbfgs_refuses_what_it_cannot_have(build):
    with pytest.raises(UserError, match="no --amp fp16"):
        build("--amp", "fp16", task=TrainerLBFGS)


def test_what_the_documentation_shows_is_the_code():
    root = Path(__file__).resolve().parent.parent.parent
    page = (root / "docs" / "own_step.md").read_text(encoding="utf-8")
    files = ("extras/gan/trainer_gan.py", "examples/sam.py", "examples/lbfgs.py")
    code = "".join((root / name).read_text() for name in files)
    blocks = re.findall(r"```python\n(.*?)\n```", page, flags=re.DOTALL)
    assert len(blocks) == 4 and all(block in code for block in blocks)
