"""A checkpoint of the first edition can be evaluated and started from; a resume of it is refused in one line.

The file was written by version 0.4.0: `trainer_vanilla.py --model_type one_layer:OneLayer --train_val_sample_rate 60
--n_epoch 1 --seed 0 --optim sgd`. That version measured the results below.
"""

from pathlib import Path

import pytest
import torch

from engine.checkpoints.file import load_checkpoint
from eval_vanilla import EvaluatorVanilla
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

DIRECTORY = Path(__file__).parent / "first_edition"
CHECKPOINT = DIRECTORY / "OneLayer_best_ckpt.pth"


@pytest.fixture(autouse=True)
def one_layer(monkeypatch):
    monkeypatch.syspath_prepend(DIRECTORY)


def test_it_is_evaluated_to_the_same_results(tmp_path):
    flags = ("--model_path", CHECKPOINT, "--model_type", "one_layer:OneLayer", "--save_path", tmp_path, "--no-viz")
    evaluator = EvaluatorVanilla.run_test(EvaluatorVanilla.parse_options([*map(str, flags), "--gpu_devices", "cpu"]))
    assert evaluator.num_samples == 1000
    assert evaluator.results() == pytest.approx({"loss": 2.329049587249756, "accuracy": 0.105}, abs=1e-5)


def test_a_run_starts_from_it(build):
    trainer = build("--pretrained", "--model_path", CHECKPOINT, "--model_type", "one_layer:OneLayer")
    stored = load_checkpoint(CHECKPOINT)["networks"]["model"]
    assert all(torch.equal(value, stored[name]) for name, value in trainer.model.state_dict().items())


def test_it_is_not_resumed():
    with pytest.raises(UserError, match=r"an earlier version wrote it.*--pretrained --model_path"):
        TrainerVanilla.parse_options(["--resume", str(CHECKPOINT), "--model_type", "one_layer:OneLayer"])
