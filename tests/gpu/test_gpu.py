"""Tests on a CUDA GPU: the CPU does not wait for it, data arrives before it is needed, and the results are exact."""

import pytest
import torch
from torch import nn

from callbacks.callback import Callback
from data.dataloader import DataLoaderSource
from data.loader import MemorySource
from engine.checkpoints.file import load_checkpoint
from extras.late_nan_guard import DeferredNanGuard
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla
from utils.errors import DivergedError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
GPU = ("--gpu_devices", "0")


class NoWaiting(Callback):
    """Lets torch raise wherever the CPU waits for the GPU, in the middle of an epoch."""

    def __init__(self):
        self.num_watched = 0

    def on_update_end(self, trainer, values):
        in_the_middle = 64 <= trainer.progress.sample < trainer.train_loader.num_samples - 128
        torch.cuda.set_sync_debug_mode("error" if in_the_middle else "default")
        self.num_watched += in_the_middle

    def on_epoch_end(self, trainer, row):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "flags", [(), ("--amp", "bf16"), ("--num_workers", 1), ("--clip", 1), ("--micro_batch_size", 9)]
)
@pytest.mark.parametrize("optim", ["adamW", "sgd"])
def test_the_cpu_does_not_wait_in_an_update(train, flags, optim):
    watch = NoWaiting()
    try:
        trainer = train(*GPU, *flags, "--optim", optim, "--log_every", 1000, callbacks=[watch])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.num_watched >= 8 and isinstance(trainer.guard, DeferredNanGuard)


def test_a_wait_in_an_update_would_be_seen(build):
    class Waiting(TrainerVanilla):
        def compute_loss(self, batch):
            loss = super().compute_loss(batch)
            loss.item()
            return loss

    trainer = build(*GPU, "--log_every", 1000, task=Waiting, callbacks=[NoWaiting()])
    with pytest.raises(RuntimeError, match="synchroniz"):
        trainer.train()
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("flags", "source", "where"), [
    ((), MemorySource, "cuda"), (("--data_device", "cpu"), MemorySource, "cpu"),
    (("--num_workers", 1), DataLoaderSource, "cuda"),
])  # fmt: skip
def test_data_is_where_it_is_asked_for(build, flags, source, where):
    trainer = build(*GPU, *flags)
    assert type(trainer.train_loader.source) is source
    update = next(iter(trainer.train_loader.updates(0)))
    assert all(tensor.device.type == where for tensor in update.micro_batches[0])


def test_all_ways_of_loading_give_the_same_weights(train, weights):
    ways = ((), ("--data_device", "cpu"), ("--num_workers", 2), ("--num_workers", 2, "--micro_batch_size", 64))
    runs = [weights(train(*GPU, "--deterministic", *flags)) for flags in ways]
    assert all(torch.equal(value, other[name]) for other in runs[1:] for name, value in runs[0].items())


class Sick(TrainerVanilla):
    """Vanilla with batch normalization and dropout, whose loss is NaN in update 11."""

    def build_networks(self):
        (network,) = super().build_networks().values()
        return {"model": nn.Sequential(network, nn.BatchNorm1d(10), nn.Dropout(0.2))}

    def compute_loss(self, batch):
        loss = super().compute_loss(batch)
        return loss * float("nan") if self.progress.update + 1 == 11 else loss


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_what_is_not_finite_never_reaches_the_weights(build, differences, policy):
    flags = (*GPU, "--deterministic", "--log_every", 1000, "--nan_policy", policy)
    trainer = build(*flags, task=Sick)
    if policy == "skip":
        trainer.train()
        assert trainer.guard.num_skipped == 1
        assert all(value.isfinite().all() for value in trainer.networks["model"].state_dict().values())
        return
    with pytest.raises(DivergedError, match="Epoch 2, update 11"):
        trainer.train()
    left = load_checkpoint(trainer.checkpointer.path("InT"))
    assert left["progress"]["update"] == 10 and left["progress"]["is_exact"]

    class Stopping(Callback):
        def on_update_end(self, trainer, values):
            trainer.should_stop = trainer.progress.update == 10

    stopped = build(*flags, task=Sick, callbacks=[Stopping()])
    stopped.train()
    same = load_checkpoint(stopped.checkpointer.path("last"))
    parts = ("networks", "optimizers", "schedulers", "progress", "random", "epoch_log")
    assert differences({part: left[part] for part in parts}, {part: same[part] for part in parts}) == []


@pytest.mark.parametrize("task", [TrainerVanilla, TrainerSeg])
@pytest.mark.parametrize("amp", ["no", "bf16", "fp16"])
def test_resume_is_bitwise_equal(build, train, differences, task, amp):
    flags = (*GPU, "--deterministic", "--amp", amp, "--save_every_updates", 3)
    whole = load_checkpoint(train(*flags, task=task).checkpointer.path("last"))

    class Stopping(Callback):
        def on_update_end(self, trainer, values):
            trainer.should_stop = trainer.progress.update == 5

    stopped = build(*flags, task=task, callbacks=[Stopping()])
    stopped.train()
    resumed = load_checkpoint(train("--resume", stopped.run_dir.path, task=task).checkpointer.path("last"))
    parts = ("networks", "optimizers", "schedulers", "scaler", "progress", "random", "score")
    assert differences({part: whole[part] for part in parts}, {part: resumed[part] for part in parts}) == []


@pytest.mark.parametrize("task", [TrainerVanilla, TrainerSeg])
def test_compiled_networks_learn_the_same(train, task):
    plain, compiled = train(*GPU, task=task), train(*GPU, "--compile", task=task)
    assert compiled.score["results"]["loss"] == pytest.approx(plain.score["results"]["loss"], rel=0.05)
