"""An optimizer that makes its own average is validated and evaluated with it, and trains on as if it were not."""

import pytest
import torch
from torch import nn

from callbacks.callback import Callback
from engine.checkpoints.file import load_checkpoint, weights_of
from eval_vanilla import EvaluatorVanilla
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

BETA = 0.9


class ScheduleFreeSGD(torch.optim.Optimizer):
    """The method of Defazio et al. 2024: z makes the steps, x is their mean, and the weights are y between them."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "is_training": False, "count": 0})

    @torch.no_grad()
    def move(self, is_training, weight):
        for group in self.param_groups:
            if group["is_training"] != is_training:
                group["is_training"] = is_training
                for p in group["params"]:
                    if p in self.state:
                        p.lerp_(self.state[p]["z"], weight)

    def train(self):
        self.move(True, 1 - BETA)  # from x to y

    def eval(self):
        self.move(False, 1 - 1 / BETA)  # from y to x

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["is_training"], "the optimizer is in eval mode"
            group["count"] += 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.clone())
                share = 1 / group["count"]
                p.lerp_(z, share)  # x moves towards z, and y with it
                p.sub_(p.grad, alpha=group["lr"] * (1 - BETA * (1 - share)))
                z.sub_(p.grad, alpha=group["lr"])


class Task(TrainerVanilla):
    defaults = TrainerVanilla.defaults | {"lr_scheduler": "constant", "lr": 0.1, "monitor": "loss"}

    def build_optimizers(self):
        return {"model": ScheduleFreeSGD(self.model.parameters(), self.opt.lr)}


class StopAt(Callback):
    """Interrupts the run after an update."""

    def __init__(self, update):
        self.update = update

    def on_update_end(self, trainer, values):
        if trainer.progress.update == self.update:
            raise KeyboardInterrupt


def plain_loop(trainer, num_epochs):
    """Train as the optimizer's manual says, without the trainer's loop; return y, x, and the loss of x by epoch."""
    losses = []
    network, optimizer = trainer.model, trainer.optimizer
    for epoch in range(num_epochs):
        network.train()
        optimizer.train()
        for update in trainer.train_loader.updates(epoch):
            (batch,) = update.micro_batches
            optimizer.zero_grad()
            trainer.criterion(network(batch[0]), batch[1]).backward()
            optimizer.step()
        y = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network.eval()
        optimizer.eval()
        x = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        with torch.no_grad():
            batches = list(trainer.val_loader)
            images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
            losses.append(trainer.criterion(network(images), labels).item())
    return y, x, losses


def test_validation_checkpoint_and_evaluation_are_at_the_average(build, train, tmp_path):
    y, x, losses = plain_loop(build(task=Task), num_epochs=2)
    trainer = train(task=Task)
    state = load_checkpoint(trainer.checkpointer.path("best"))
    assert trainer.score["results"]["loss"] == pytest.approx(losses[-1], rel=1e-5)
    for name, tensor in weights_of(state)["model"].items():
        torch.testing.assert_close(tensor, x[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state["networks"]["model"][name], y[name], rtol=1e-5, atol=1e-6)
    assert any((x[name] - y[name]).abs().max() > 1e-3 for name in x)
    flags = ["--model_path", str(trainer.checkpointer.path("best")), "--split", "val", "--save_path", str(tmp_path)]
    evaluator = EvaluatorVanilla.run_test(EvaluatorVanilla.parse_options(flags))  # compares with the score, too
    assert evaluator.results()["loss"] == pytest.approx(losses[-1], rel=1e-5)


def test_a_validation_changes_no_bit_of_the_training_and_so_a_resume(build, train, weights):
    often, never = (weights(train("--val_every", every, task=Task)) for every in (1, 0))
    assert all(torch.equal(tensor, never[name]) for name, tensor in often.items())
    half = build(task=Task, callbacks=[StopAt(5)])
    with pytest.raises(KeyboardInterrupt):
        half.train()
    again = train("--resume", half.run_dir.path, task=Task)
    assert all(torch.equal(tensor, often[name]) for name, tensor in weights(again).items())


def test_another_average_beside_it_is_refused(build):
    with pytest.raises(UserError, match="leave out --ema"):
        build("--ema", 0.9, task=Task)


def test_optimizers_of_torch_have_no_modes():
    assert not hasattr(torch.optim.SGD(nn.Linear(1, 1).parameters()), "train")
