"""The bar stands where the epoch stands, and is gone when the epoch is."""

import io
import sys

import pytest
import torch

from callbacks.progress_bar import ProgressBar


@pytest.fixture
def bar():
    """A bar for three epochs."""
    progress_bar = ProgressBar(num_epochs=3)
    yield progress_bar
    progress_bar.close()


def test_it_follows_the_samples_also_over_a_short_last_update(bar, trainer):
    bar.on_epoch_start(trainer)
    assert (bar.bar.n, bar.bar.total) == (0, 100) and bar.bar.desc.startswith("epoch 1/3")
    for size in (32, 32, 32, 4):
        trainer.progress.finish_update(size)
        bar.on_update_end(trainer, {})
        assert bar.bar.n == trainer.progress.sample
    assert bar.bar.n == 100


def test_resumed_epoch_begins_where_it_was_left(bar, trainer):
    trainer.progress.epoch, trainer.progress.sample = 1, 64
    bar.on_epoch_start(trainer)
    assert bar.bar.n == 64 and bar.bar.desc.startswith("epoch 2/3")


def test_loss_and_learning_rate_are_shown_when_they_are_logged(bar, trainer, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    bar.on_epoch_start(trainer)
    bar.on_log(trainer, {"loss": 0.123456, "lr": 1e-3, "grad_norm": 7.0})
    assert bar.bar.postfix == "loss=0.1235, lr=0.001"
    bar.bar.refresh()
    assert "loss=0.1235" in screen.getvalue() and "grad_norm" not in screen.getvalue()


def test_update_reads_nothing_from_the_device(bar, trainer):
    class Unread(torch.Tensor):
        def item(self):
            raise AssertionError("read")

        __float__ = item

    bar.on_epoch_start(trainer)
    trainer.progress.finish_update(32)
    bar.on_update_end(trainer, {"loss": torch.ones(()).as_subclass(Unread)})


@pytest.mark.parametrize(
    ("hook", "argument"), [("on_epoch_end", ({},)), ("on_train_end", ()), ("on_exception", (KeyboardInterrupt(),))]
)
def test_it_is_closed_at_the_end_and_closing_twice_is_fine(bar, trainer, hook, argument):
    getattr(bar, hook)(trainer, *argument)  # before it was opened
    bar.on_epoch_start(trainer)
    drawn = bar.bar
    getattr(bar, hook)(trainer, *argument)
    getattr(bar, hook)(trainer, *argument)
    assert bar.bar is None and drawn.disable
