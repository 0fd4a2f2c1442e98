"""Lazy layers get their shapes by the first batch, and a run with them is that of layers with sizes."""

import pytest
import torch
from torch import nn

from eval_vanilla import EvaluatorVanilla
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError


def task_of(*layers):
    """Return the vanilla task with these layers; its function makes each layer when it is called."""

    class Evaluator(EvaluatorVanilla):
        @classmethod
        def build_networks(cls, opt):
            return {"model": nn.Sequential(nn.Flatten(), *(layer() for layer in layers))}

    return type("Task", (TrainerVanilla,), {"evaluator_class": Evaluator})


REST = (nn.ReLU, lambda: nn.Dropout(0.2))
LAZY = task_of(lambda: nn.LazyLinear(20), nn.LazyBatchNorm1d, *REST, lambda: nn.LazyLinear(10))
SIZED = task_of(lambda: nn.Linear(784, 20), lambda: nn.BatchNorm1d(20), *REST, lambda: nn.Linear(20, 10))


def test_a_run_with_lazy_layers_is_that_of_layers_with_sizes(train, build, weights, tmp_path):
    lazy, sized = train(task=LAZY), train(task=SIZED)
    expected = weights(sized)
    assert weights(lazy).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights(lazy).items())
    resumed = build("--resume", lazy.run_dir.path, "--n_epoch", 3, task=LAZY)
    assert resumed.model[1].weight.shape == (20, 784)
    flags = ["--model_path", str(lazy.checkpointer.path("best")), "--split", "val", "--save_path", str(tmp_path)]
    evaluator = LAZY.evaluator_class
    measured = evaluator.run_test(evaluator.parse_options(flags)).results()  # compares with the score in training
    assert measured == pytest.approx(lazy.score["results"])


def test_a_lazy_layer_without_data_is_named(build):
    class Head(nn.Linear):
        def __init__(self):
            super().__init__(784, 10)
            self.other = nn.LazyLinear(3)

    with pytest.raises(UserError, match=r"The lazy layer '1\.other' of 'model' gets no data"):
        build(task=task_of(Head))


def test_a_task_without_compute_loss_must_give_sizes(build):
    class Own(LAZY):
        def compute_loss(self, batch):
            raise NotImplementedError

    with pytest.raises(UserError, match="or give sizes"):
        build(task=Own)


class Net(nn.Sequential):
    """A user-defined network for --model_type."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.LazyLinear(10))


def test_a_lazy_network_may_be_named(build):
    assert build("--model_type", f"{__name__}:Net").model[1].weight.shape == (10, 784)


def test_the_loss_of_the_first_batch_may_look_at_the_position_and_the_evaluator(build):
    class Looking(LAZY):
        def compute_loss(self, batch):
            assert self.progress.update == 0 and "loss" in self.evaluator.meters
            return super().compute_loss(batch)

    assert build(task=Looking).model[1].weight.shape == (20, 784)
