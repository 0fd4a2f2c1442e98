"""The pictures of a classification show what counts, whatever the labels and the shape of the images."""

import logging
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from data.loader import EvalLoader
from engine.checkpoints.file import load_checkpoint
from eval_vanilla import EvaluatorVanilla
from extras.evaluation.table import Table
from loss.classification_loss import CrossEntropyLoss
from utils.precision import Precision

CPU = torch.device("cpu")


class Says(nn.Module):
    """Predicts class 1 for all."""

    def forward(self, images):
        return torch.tensor([0.0, 1.0, 0.0]).expand(len(images), 3)


def evaluator(tmp_path, ignored: int = 255) -> EvaluatorVanilla:
    opt = Namespace(n_classes=3, data_type="own:data", metrics=["accuracy"], metric_args={}, viz=True)
    criterion = CrossEntropyLoss(3, ignore_index=ignored)
    made = EvaluatorVanilla(opt, {"model": Says()}, criterion, CPU, Precision("no", CPU))
    made.output_dir = tmp_path
    return made


def batch(*labels: int, shape: tuple[int, ...] = (1, 8, 8), dtype: torch.dtype = torch.int64):
    return torch.rand(len(labels), *shape), torch.tensor(labels, dtype=dtype)


def report(made, images, labels) -> None:
    """Evaluate samples as a program does, and let the evaluator report."""
    loader = EvalLoader(TensorDataset(images, labels), 4)
    made.table = Table(made.criterion)
    made.evaluate(loader)
    made.table.indices = list(range(len(labels)))
    made.report(loader)


@pytest.mark.parametrize("ignored", [255, -1, -100, 1])
def test_what_is_ignored_is_in_no_picture_and_no_mistake(ignored, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    made = evaluator(tmp_path, ignored)
    monkeypatch.setattr("eval_vanilla.captioned_grid", lambda images, captions, **more: SimpleNamespace(**locals()))
    images, labels = batch(ignored, 0, ignored, 2, 7)
    drawn = made.draw((images, labels))
    assert drawn.captions == ["said 1, is 0", "said 1, is 2"] and torch.equal(drawn.images, images[[1, 3]])
    report(made, images[:4], labels[:4])
    assert caplog.text.count("Predicted:") == 2 and 'Predicted: "1", Actual: "2"' in caplog.text
    assert made.draw(batch(ignored, ignored)) is None


def test_labels_of_few_bits_are_not_taken_for_an_ignored_one(tmp_path):
    made = evaluator(tmp_path, -100)
    made.opt.n_classes = 200
    assert made.counts(torch.tensor([156, 255], dtype=torch.uint8)).tolist() == [True, False]


@pytest.mark.parametrize("shape", [(2, 8, 8), (4, 8, 8), (9,), (1, 4, 8, 8)])
def test_images_of_any_shape_end_no_run(shape, tmp_path):
    made = evaluator(tmp_path)
    picture = made.draw(batch(0, 1, shape=shape))
    assert (picture is None) == (len(shape) != 3)
    report(made, *batch(0, 1, shape=shape))


def test_predict_step_gives_probabilities_of_inputs_alone(vanilla_run):
    """They are those of the network, and the checkpoint says which evaluator made them."""
    path = vanilla_run / "Vanilla_best_ckpt.pth"
    state = load_checkpoint(path)
    assert state["evaluator"] == "eval_vanilla:EvaluatorVanilla"
    opt = EvaluatorVanilla.parse_options(["--model_path", str(path), "--gpu_devices", "cpu"])
    evaluator = EvaluatorVanilla.from_state(opt, state, torch.device("cpu"))
    images = torch.rand(3, 1, 28, 28)
    with evaluator.inference():
        outputs = evaluator.predict_step(images)
        assert torch.equal(outputs["probabilities"], evaluator.model(images).softmax(dim=1))
