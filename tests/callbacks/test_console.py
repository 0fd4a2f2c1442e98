"""The log tells how the run goes, in lines that a person reads."""

import errno
import logging
import signal
import sys

import pytest
import torch

from callbacks import console
from callbacks.console import SECONDS_BETWEEN_LINES, Console
from engine.runs.signals import Terminated, TimeIsUp
from utils.errors import DivergedError, LoadingError
from utils.files import StorageError

ROW = {"epoch": 1, "update": 4, "train/loss": 0.5, "val/accuracy": 0.75, "lr": 1e-3, "time/train": 32.0,
       "time/data_wait": 8.0, "time/save": 0.0, "time/val": 6.0, "samples_per_second": 1234.5}  # fmt: skip


class Clock:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


@pytest.fixture
def watch(clock, monkeypatch) -> Console:
    monkeypatch.setattr("extras.data_advice.advise", lambda trainer: "")
    return Console(logging.getLogger("console"), "accuracy", num_epochs=3)


@pytest.fixture
def lines(caplog):
    """A function that returns the lines that were logged since it was last called."""
    caplog.set_level(logging.INFO)

    def lines() -> list[str]:
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return [message for message in messages if not message.startswith("Memory ")]

    return lines


def test_epoch_is_one_line(watch, trainer, clock, lines):
    watch.on_train_start(trainer)
    watch.on_epoch_start(trainer)
    clock.now += 60
    trainer.progress.update = 4
    trainer.stopper.update(0.75)
    watch.on_epoch_end(trainer, ROW)
    assert lines() == [
        "epoch 1/3: train/loss 0.5000, val/accuracy 0.7500, lr 0.001, 1,234 samples/s, 0:02:00 left (best); "
        "time: 40 % step, 13 % data, 10 % evaluation, 37 % other"
    ]


def test_memory_is_told_after_the_first_epoch_of_a_process(watch, trainer, caplog):
    caplog.set_level(logging.INFO)
    trainer.optimizers["model"] = torch.optim.AdamW(trainer.networks["model"].parameters())
    trainer.optimizers["model"].step()
    for _ in range(2):
        watch.on_epoch_start(trainer)
        watch.on_epoch_end(trainer, ROW)
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Memory ")]
    assert told == ["Memory of a process: parameters 0.0 MB, gradients 0.0 MB, optimizer state 0.0 MB"]


def test_saving_is_told_apart_from_the_step_and_from_other(watch, trainer, clock, lines):
    watch.on_train_start(trainer)
    watch.on_epoch_start(trainer)
    clock.now += 50
    watch.on_epoch_end(trainer, ROW | {"time/train": 28.0, "time/save": 4.0})
    clock.now += 10  # of which 6 were saving, which counts to the next epoch
    watch.on_epoch_start(trainer)
    clock.now += 40
    watch.on_epoch_end(trainer, ROW | {"time/train": 32.0, "time/save": 6.0})
    assert [line.split("time: ")[1] for line in lines()] == [
        "40 % step, 16 % data, 12 % evaluation, 8 % saving, 24 % other",
        "48 % step, 16 % data, 12 % evaluation, 12 % saving, 12 % other",
    ]


def test_what_an_earlier_process_spent_on_the_epoch_counts(watch, trainer, clock, lines):
    trainer.epoch_log.seconds = {"train": 30.0, "data_wait": 8.0}
    watch.on_train_start(trainer)
    watch.on_epoch_start(trainer)
    clock.now += 10
    watch.on_epoch_end(trainer, ROW)
    assert lines()[0].endswith("time: 60 % step, 20 % data, 15 % evaluation, 5 % other")


def test_advice_is_given_once_and_again_when_it_is_another(watch, trainer, clock, lines, monkeypatch):
    told = iter(["try this", "try this", "", "try this", "try that", "try that"])
    monkeypatch.setattr("extras.data_advice.advise", lambda trainer: next(told))
    waiting = ROW | {"time/train": 10.0, "time/data_wait": 5.0}
    watch.on_epoch_start(trainer)
    for _ in range(6):
        watch.on_epoch_end(trainer, waiting)
    watch.on_epoch_end(trainer, ROW | {"time/data_wait": 0.5})  # too little to ask: there is no seventh
    assert [line for line in lines() if not line.startswith("epoch")] == ["try this", "try that"]


def test_only_a_better_validation_is_called_best(watch, trainer, lines):
    watch.on_epoch_start(trainer)
    trainer.stopper.update(0.9)
    trainer.stopper.update(0.75)
    watch.on_epoch_end(trainer, ROW)
    without_validation = {name: value for name, value in ROW.items() if not name.startswith("val/")}
    trainer.stopper.update(1.0)
    watch.on_epoch_end(trainer, without_validation)
    assert not any("(best)" in line for line in lines())


def test_every_optimizer_has_its_learning_rate(watch, trainer, lines):
    row = {name: value for name, value in ROW.items() if name != "lr"} | {"lr/generator": 1e-3, "lr/critic": 2e-4}
    watch.on_epoch_start(trainer)
    watch.on_epoch_end(trainer, row)
    (line,) = lines()
    assert "lr/generator 0.001, lr/critic 0.0002" in line and "nan" not in line


def test_time_left_counts_from_where_this_process_began(watch, trainer, clock):
    trainer.progress.update = 4
    watch.on_train_start(trainer)
    assert watch.time_left(trainer) == "0:00:00"
    clock.now += 3600
    trainer.progress.update = 8  # 4 updates took an hour, 4 are left
    assert watch.time_left(trainer) == "1:00:00"


def test_time_left_is_that_to_the_last_update(watch, trainer, clock):
    watch.on_train_start(trainer)
    clock.now += 20
    trainer.progress.update = 2
    assert watch.time_left(trainer) == "0:01:40"  # ten more
    trainer.opt.max_updates = 5
    assert watch.time_left(trainer) == "0:00:30"


def test_lines_in_between_come_now_and_then(watch, trainer, clock, lines, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    trainer.progress.update, trainer.progress.sample = 2, 50
    for _ in range(5):
        clock.now += SECONDS_BETWEEN_LINES / 2
        watch.on_log(trainer, {"loss": 0.123456, "lr": 1e-3})
    shown = lines()
    assert len(shown) == 2 and shown[0].startswith("epoch 1/3, sample 50 of 100: loss 0.1235, lr 0.001")


def test_where_a_progress_bar_is_drawn_there_are_none(watch, trainer, clock, lines, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    clock.now += 2 * SECONDS_BETWEEN_LINES
    watch.on_log(trainer, {"loss": 0.1})
    assert lines() == []


def test_resumed_run_says_from_where(watch, trainer, lines):
    watch.on_train_start(trainer)
    assert lines() == []
    trainer.opt.resume = "Results/1/Vanilla_last_ckpt.pth"
    trainer.progress.epoch, trainer.progress.update, trainer.progress.sample = 1, 6, 50
    watch.on_train_start(trainer)
    assert lines() == ["Resumed Results/1/Vanilla_last_ckpt.pth after update 6: 1 of 3 epochs and 50 samples done."]


def test_end_says_the_best_and_where_it_is(watch, trainer, lines):
    trainer.progress.epoch, trainer.progress.update = 3, 12
    trainer.stopper.update(0.75)
    watch.on_train_end(trainer)
    assert [line.split(":")[0] for line in lines()] == ["Finished after 12 updates. Best val/accuracy", "Curves"]
    trainer.opt.logger = ["csv"]
    watch.on_train_end(trainer)
    assert [line.split(":")[0] for line in lines()] == ["Finished after 12 updates. Best val/accuracy"]
    trainer.checkpointer.save({}, "best")
    watch.on_train_end(trainer)
    assert f"Best checkpoint: {trainer.checkpointer.path('best')}" in lines()


def test_a_run_that_had_ended_says_so(watch, trainer, lines):
    trainer.opt.resume = "Results/1/Vanilla_last_ckpt.pth"
    trainer.progress.epoch, trainer.progress.update = 3, 12
    watch.on_train_start(trainer)
    watch.on_train_end(trainer)
    assert any(line.startswith("Nothing was left to do: to continue, give a higher --n_epoch") for line in lines())
    trainer.progress.update = 13
    watch.on_train_end(trainer)
    assert not any(line.startswith("Nothing") for line in lines())


def test_end_says_why_it_is_early(watch, trainer, lines):
    trainer.progress.epoch, trainer.should_stop = 2, True
    watch.on_train_end(trainer)
    assert lines()[:2] == ["Stopped by a callback.", "Finished after 0 updates."]
    for accuracy in (0.75, 0.7, 0.7):
        trainer.stopper.update(accuracy)
    watch.on_train_end(trainer)
    assert lines()[0] == "Early stop: 2 validations without a better accuracy."


def test_exception_says_how_to_go_on_if_there_is_a_way(watch, trainer, lines):
    trainer.progress.update = 6
    watch.on_exception(trainer, KeyboardInterrupt())
    assert lines() == ["Stopped by Ctrl-C after update 6."]  # nothing was saved, so nothing can go on
    trainer.checkpointer.save({}, "InT")
    watch.on_exception(trainer, KeyboardInterrupt())
    assert lines()[1] == f"To go on: --resume {trainer.run_dir.path}"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "Ctrl-C"),
        (Terminated(signal.SIGTERM), "the signal SIGTERM"),
        (Terminated(signal.SIGINT), "the signal SIGINT"),
        (TimeIsUp(), "the time limit"),
        (StorageError("x"), "a full disk"),
        (OSError(errno.ENOSPC, "x"), "a full disk"),
        (OSError(errno.EACCES, "x"), "PermissionError"),
        (DivergedError("x"), "a loss or gradient that is not finite"),
        (LoadingError("x"), "a loading process that died or hangs"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_what_stopped_the_run_is_told_in_words(watch, trainer, lines, error, reason):
    trainer.progress.update = 1234
    watch.on_exception(trainer, error)
    assert lines() == [f"Stopped by {reason} after update 1,234."]


def test_run_that_diverged_is_told_how_to_leave_the_update_out(watch, trainer, lines):
    trainer.checkpointer.save({}, "InT")
    go_on = f"--resume {trainer.run_dir.path}"
    watch.on_exception(trainer, DivergedError("x"))
    assert lines()[1] == f"To go on without this update: {go_on} --nan_policy skip"
    trainer.guard.num_skipped = 10
    watch.on_exception(trainer, DivergedError("x"))
    assert lines()[1] == f"To go on without this update: {go_on} --nan_policy skip --max_skips 20"
    trainer.guard.stepped = ["critic"]  # it was half made, so it cannot be left out
    watch.on_exception(trainer, DivergedError("x"))
    assert lines()[1] == f"To go on: {go_on}"
