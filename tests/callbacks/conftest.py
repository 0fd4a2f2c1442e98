"""A stand-in for the trainer, for the tests of the callbacks."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from engine.checkpoints.checkpointer import Checkpointer
from engine.epoch_log import EpochLog
from engine.progress import Progress
from utils.earlystopper import EarlyStopper


@pytest.fixture
def trainer(tmp_path) -> SimpleNamespace:
    """The trainer that callbacks see: 3 epochs of 4 updates, 100 samples each; one network with its gradients."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network(torch.rand(5, 3)).sum().backward()
    return SimpleNamespace(
        networks={"model": network},
        device=torch.device("cpu"),
        optimizers={"model": torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.01)},
        in_eval_mode={},
        progress=Progress(),
        stopper=EarlyStopper("max", patience=2),
        should_stop=False,
        opt=SimpleNamespace(resume=None, max_skips=10, max_updates=None, logger=["tensorboard"]),
        guard=SimpleNamespace(num_skipped=0, stepped=[], check_earlier=lambda wait: None),
        train_loader=SimpleNamespace(num_samples=100, updates_per_epoch=4),
        val_loader=[],
        evaluator=SimpleNamespace(picture=lambda loader: None),
        epoch_log=EpochLog(),
        checkpointer=Checkpointer(tmp_path, "Vanilla"),
        run_dir=SimpleNamespace(path=tmp_path),
    )
