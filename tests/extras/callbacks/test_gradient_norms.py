"""The norms of the layers are those of the logged update, and the weights do not change."""

import csv
import math

import pytest

from callbacks.callback import Callback
from extras.callbacks.gradient_norms import GradientNorms
from utils.errors import UserError


def rows_of(trainer):
    return list(csv.DictReader((trainer.run_dir.path / "gradients.csv").read_text().splitlines()))


class Norms(Callback):
    def __init__(self):
        self.seen = []

    def on_log(self, trainer, values):
        self.seen.append((trainer.progress.update, values["grad_norm"]))


def test_the_norms_of_the_layers_make_up_that_of_all(build, train, weights, differences):
    norms, trainer = Norms(), build("--log_every", 4)
    trainer.callbacks = type(trainer.callbacks)([norms, GradientNorms(trainer.run_dir.path)])
    trainer.train()
    assert len(norms.seen) == 4
    for update, whole in norms.seen:
        layers = [float(row["norm"]) for row in rows_of(trainer) if int(row["update"]) == update]
        assert len(layers) > 1 and math.hypot(*layers) == pytest.approx(whole, rel=1e-4)
    assert not differences(weights(trainer), weights(train("--log_every", 4)))
    assert len(list((trainer.run_dir.path / "summary" / "gradients").iterdir())) == 1


def test_rows_after_the_checkpoint_are_struck_out(build):
    trainer = build("--log_every", 1, "--limit_batches", 2)
    callback = GradientNorms(trainer.run_dir.path, tensorboard=False)
    callback.path.write_text("update,layer,norm\n1,a,0.5\n2,a,0.5\n")
    trainer.progress.update = 1
    callback.on_train_start(trainer)
    assert [row["update"] for row in rows_of(trainer)] == ["1"]


def test_a_network_that_is_cut_up_is_refused(build):
    trainer = build()
    trainer.distributed.is_sharded = True
    with pytest.raises(UserError, match="fsdp"):
        GradientNorms(trainer.run_dir.path).on_train_start(trainer)
