import csv
import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from callbacks.callback import Callback
from engine.checkpoints.file import load_checkpoint, save_checkpoint
from eval_vanilla import EvaluatorVanilla
from tests import fork_server
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

OF_THE_LAUNCH = ("options", "callbacks", "seconds")  # differ between two runs that compute the same


class WithDropout(TrainerVanilla):
    """Draws random numbers in training, so that a random state that is not restored is seen in the weights."""

    def compute_loss(self, batch):
        images, labels = batch
        return self.criterion(self.model(F.dropout(images, 0.2)), labels)


class RaisesAfter(Callback):
    """Raises an exception after an update, or in another hook from that update on.

    It keeps the class and not an instance, whose traceback would keep the trainer and its loading processes alive.
    """

    def __init__(self, update, error, hook="on_update_end"):
        self.update, self.error, self.hook = update, error, hook

    def raise_if_due(self, hook, trainer):
        if hook == self.hook and trainer.progress.update == self.update:
            raise self.error("out of luck")

    def on_update_end(self, trainer, values):
        self.raise_if_due("on_update_end", trainer)

    def on_validation_end(self, trainer, results):
        self.raise_if_due("on_validation_end", trainer)

    def on_epoch_end(self, trainer, row):
        self.raise_if_due("on_epoch_end", trainer)


def rows_of(trainer) -> list[dict[str, str]]:
    """The rows of metrics.csv without the times."""
    with open(trainer.run_dir.path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    is_time = re.compile(r"time/|samples_per_second").match
    return [{name: value for name, value in row.items() if not is_time(name)} for row in rows]


def final_state(trainer) -> dict:
    return load_checkpoint(trainer.checkpointer.path("last"))


@pytest.fixture
def assert_same_end(differences):
    """A function that compares two finished runs: all of the last checkpoint, and metrics.csv, times apart."""

    def assert_same_end(whole, resumed):
        found = differences(final_state(whole), final_state(resumed), OF_THE_LAUNCH)
        assert found == []
        assert rows_of(resumed) == rows_of(whole)

    return assert_same_end


@pytest.fixture
def interrupt(build):
    """A function that trains until an error is raised and returns the trainer."""

    def interrupt(update, error, *flags, hook="on_update_end", **settings):
        trainer = build(*flags, callbacks=[RaisesAfter(update, error, hook)], **settings)
        with pytest.raises((error, UserError)):  # an error of a callback is explained in one line
            trainer.train()
        return trainer

    return interrupt


# ---- the end is the same ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("update", "error", "source"),
    [
        (3, KeyboardInterrupt, "run directory"), (3, RuntimeError, "checkpoint"),
        (8, KeyboardInterrupt, "checkpoint"), (8, RuntimeError, "run directory"),
        (11, KeyboardInterrupt, "run directory"), (11, RuntimeError, "checkpoint"),
    ],
)  # fmt: skip
def test_a_resumed_run_ends_like_one_that_was_not_interrupted(train, interrupt, assert_same_end, update, error, source):
    whole = train(task=WithDropout)
    broken = interrupt(update, error, task=WithDropout)
    checkpoint = broken.checkpointer.path("InT")
    state = load_checkpoint(checkpoint)
    assert state["progress"]["is_exact"] and state["progress"]["update"] == update

    torch.manual_seed(99)  # a new process would not have the random state either
    resumed = train("--resume", broken.run_dir.path if source == "run directory" else checkpoint, task=WithDropout)
    assert resumed.run_dir.path == broken.run_dir.path
    assert_same_end(whole, resumed)


@pytest.mark.parametrize("flags", [(), ("--micro_batch_size", 2)])
@pytest.mark.parametrize("update", [2, 6])
def test_resumed_segmentation_with_augmentation_and_workers(train, interrupt, assert_same_end, update, flags):
    flags = ("--augment", "--num_workers", 2, *flags)
    whole = train(*flags, task=TrainerSeg)
    broken = interrupt(update, KeyboardInterrupt, *flags, task=TrainerSeg)
    resumed = train("--resume", broken.run_dir.path, task=TrainerSeg)
    assert resumed.opt.augment and resumed.opt.num_workers == 2
    assert_same_end(whole, resumed)


@pytest.mark.parametrize(
    "flags",
    [
        ("--amp", "fp16"),
        ("--optim", "sgd", "--lr_scheduler", "linear", "--warmup_epoch", 1.5),
        ("--micro_batch_size", 10, "--clip", 0.1, "--save_every", 0.25),
        ("--n_epoch", 4, "--val_every", 2),
        ("--parallel", "dp"),
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_resuming_is_exact_with_other_options_too(train, interrupt, assert_same_end, flags):
    whole = train(*flags)
    broken = interrupt(11, KeyboardInterrupt, *flags)
    resumed = train("--resume", broken.run_dir.path)
    assert_same_end(whole, resumed)


def test_a_run_may_be_interrupted_many_times(train, interrupt, assert_same_end):
    whole = train(task=WithDropout)
    broken = interrupt(2, KeyboardInterrupt, task=WithDropout)
    for update in (7, 8, 13):
        interrupt(update, KeyboardInterrupt, "--resume", broken.run_dir.path, task=WithDropout)
    resumed = train("--resume", broken.run_dir.path, task=WithDropout)
    assert_same_end(whole, resumed)


def test_an_interrupted_validation_is_made_again(train, build, assert_same_end):
    class Interrupted(EvaluatorVanilla):
        num_steps = 0

        def eval_step(self, batch):
            self.num_steps += 1
            if self.num_steps == 4:  # the second batch of the second validation
                raise KeyboardInterrupt
            super().eval_step(batch)

    flags = ("--eval_batch_size", 64)  # two batches
    whole = train(*flags)
    broken = build(*flags, task=type("Task", (TrainerVanilla,), {"evaluator_class": Interrupted}))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert load_checkpoint(broken.checkpointer.path("InT"))["progress"]["sample"] == 510
    resumed = train("--resume", broken.run_dir.path)
    assert_same_end(whole, resumed)


def test_a_signal_during_a_validation_stops_it_between_two_batches(build):
    class Signalled(EvaluatorVanilla):
        num_steps = 0

        def eval_step(self, batch):
            super().eval_step(batch)
            self.num_steps += 1
            os.kill(os.getpid(), signal.SIGINT)

    trainer = build("--eval_batch_size", 64, task=type("Task", (TrainerVanilla,), {"evaluator_class": Signalled}))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.evaluator.num_steps == 1
    progress = load_checkpoint(trainer.checkpointer.path("InT"))["progress"]
    assert progress == {"epoch": 0, "update": 8, "sample": 510, "is_exact": True}


@pytest.mark.parametrize("hook", ["on_validation_end", "on_epoch_end"])
def test_what_a_callback_breaks_off_after_a_validation_is_resumed(train, interrupt, assert_same_end, hook):
    whole = train()
    broken = interrupt(16, OSError, hook=hook)
    resumed = train("--resume", broken.run_dir.path)
    assert_same_end(whole, resumed)
    best = [load_checkpoint(trainer.checkpointer.path("best")) for trainer in (whole, resumed)]
    assert best[0]["progress"] == best[1]["progress"]


def test_early_stopping_goes_on_counting(train, interrupt):
    class Constant(EvaluatorVanilla):
        def results(self):
            return {**super().results(), "accuracy": 0.5}

    task = type("Task", (TrainerVanilla,), {"evaluator_class": Constant})
    broken = interrupt(20, KeyboardInterrupt, "--n_epoch", 12, "--patience", 3, task=task)
    resumed = train("--resume", broken.run_dir.path, task=task)
    assert resumed.progress.epoch == 4
    again = train("--resume", broken.run_dir.path, task=task)
    assert again.progress.epoch == 4  # it has stopped for good


@pytest.mark.parametrize("part", ["networks", "optimizers", "schedulers", "progress", "epoch_log", "random"])
def test_a_part_that_is_not_restored_would_be_seen(train, interrupt, differences, part):
    whole = train(task=WithDropout)
    broken = interrupt(3, KeyboardInterrupt, task=WithDropout)
    fresh = interrupt(3, KeyboardInterrupt, "--seed", 1, task=WithDropout)
    path = broken.checkpointer.path("InT")
    state, other = load_checkpoint(path), load_checkpoint(fresh.checkpointer.path("InT"))
    if part == "progress":
        state[part]["sample"] -= 64
    elif part == "schedulers":
        state[part]["model"]["last_epoch"] = 0
    else:
        state[part] = other[part]
    save_checkpoint(state, path)
    resumed = train("--resume", path, task=WithDropout)
    found = differences(final_state(whole), final_state(resumed), OF_THE_LAUNCH)
    assert found or rows_of(resumed) != rows_of(whole)


# ---- what is resumed, and what is not --------------------------------------------------------------------------------
def test_resuming_a_finished_run_changes_nothing(train, differences):
    first = train()
    state, rows = final_state(first), rows_of(first)
    again = train("--resume", first.run_dir.path)
    found = differences(state, final_state(again), OF_THE_LAUNCH)
    assert found == []
    assert rows_of(again) == rows


def test_a_finished_run_goes_on_with_more_epochs(train):
    first = train("--lr_scheduler", "constant")
    longer = train("--resume", first.run_dir.path, "--n_epoch", 3)
    assert longer.progress.epoch == 3 and longer.progress.update == 24
    assert [row["epoch"] for row in rows_of(longer)] == ["1", "2", "3"]


def test_a_longer_run_with_a_constant_rate_is_the_same_as_one_from_the_start(train, assert_same_end):
    first = train("--lr_scheduler", "constant")
    longer = train("--resume", first.run_dir.path, "--n_epoch", 3)
    assert_same_end(train("--lr_scheduler", "constant", "--n_epoch", 3), longer)


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.005), ("weight_decay", 0.5), ("batch_size", 32), ("seed", 5), ("optim", "sgd")]
)
def test_an_option_that_makes_it_another_run_is_refused(train, interrupt, contents, name, value):
    broken = interrupt(3, KeyboardInterrupt)
    before = contents(broken.run_dir.path)
    with pytest.raises(UserError, match=f"--{name} {value} contradicts the run that is resumed"):
        train("--resume", broken.run_dir.path, f"--{name}", value)
    assert contents(broken.run_dir.path) == before


def test_rows_beyond_the_checkpoint_that_is_resumed_are_dropped(train):
    first = train("--n_epoch", 3, "--monitor_mode", "min")  # the accuracy rises, so the first epoch is the best
    best = first.checkpointer.path("best")
    rows = rows_of(first)
    assert load_checkpoint(best)["progress"]["epoch"] == 1 and len(rows) == 3
    assert rows_of(train("--resume", best)) == rows


def test_a_checkpoint_that_was_copied_away_starts_a_directory_of_its_own(interrupt, train, tmp_path, contents):
    broken = interrupt(3, KeyboardInterrupt)
    copy = tmp_path / "elsewhere" / "copied.pth"
    copy.parent.mkdir()
    shutil.copy(broken.checkpointer.path("InT"), copy)
    before = contents(broken.run_dir.path)
    resumed = train("--resume", copy)
    assert resumed.run_dir.path != broken.run_dir.path and resumed.progress.update == 16
    assert contents(broken.run_dir.path) == before


def test_exception_in_the_loss_before_any_checkpoint_leaves_one_of_the_update_before(build, train, assert_same_end):
    class Breaks(WithDropout):
        def compute_loss(self, batch):
            loss = super().compute_loss(batch)  # has drawn random numbers
            if self.progress.update == 8:
                raise RuntimeError("out of luck")
            return loss

    flags = ("--save_every", 3)
    broken = build(*flags, task=Breaks)
    with pytest.raises(RuntimeError, match="out of luck"):
        broken.train()
    (broken.run_dir.path / "Vanilla_best_ckpt.pth").unlink()
    assert [path.name for path in broken.run_dir.path.glob("*.pth")] == ["Vanilla_InT_ckpt.pth"]
    resumed = train("--resume", broken.run_dir.path, task=WithDropout)
    assert_same_end(train(*flags, task=WithDropout), resumed)


def test_update_whose_step_was_made_is_not_resumed_from(build, train, assert_same_end):
    class Breaks(TrainerVanilla):
        def optimizer_step(self, name=None):
            norm = super().optimizer_step(name)
            if self.progress.update == 5:
                raise RuntimeError("out of memory")
            return norm

    broken = build("--save_every", 0.25, task=Breaks)
    with pytest.raises(RuntimeError, match="out of memory"):
        broken.train()
    resumed = build("--resume", broken.run_dir.path)
    assert resumed.opt.resume == str(broken.checkpointer.path("last"))
    resumed.train()
    assert_same_end(train("--save_every", 0.25), resumed)


def test_a_run_whose_first_update_was_cut_short_has_nothing_to_resume(build):
    class Breaks(TrainerVanilla):
        def compute_loss(self, batch):
            raise RuntimeError("out of memory")

    broken = build(task=Breaks)
    with pytest.raises(UserError, match="out of memory"):
        broken.train()
    with pytest.raises(UserError, match="no such run directory"):
        build("--resume", broken.run_dir.path)


def test_a_checkpoint_of_another_network_leaves_the_run_as_it_was(interrupt, build, contents):
    broken = interrupt(3, KeyboardInterrupt)
    before = contents(broken.run_dir.path)
    with pytest.raises(UserError, match="--n_classes 11 contradicts"):
        build("--resume", broken.run_dir.path, "--n_classes", 11).train()
    after = contents(broken.run_dir.path)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= {f"{broken.run_dir.name}_log.txt"}


def test_the_provenance_of_the_beginning_is_kept(interrupt, train):
    broken = interrupt(3, KeyboardInterrupt)
    path = broken.run_dir.path / "provenance.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"git_commit": "of the beginning"}))
    resumed = train("--resume", broken.run_dir.path)
    kept = [json.loads(file.read_text()).get("git_commit") for file in resumed.run_dir.path.glob("provenance*.json")]
    assert "of the beginning" in kept


def test_a_pretrained_run_resumes_without_the_file_it_started_from(vanilla_run, tmp_path, interrupt, train):
    start = tmp_path / "start.pth"
    shutil.copy(vanilla_run / "Vanilla_best_ckpt.pth", start)
    broken = interrupt(3, KeyboardInterrupt, "--pretrained", "--model_path", start)
    start.unlink()
    assert train("--resume", broken.run_dir.path).progress.update == 16


def test_option_whose_type_is_numpy_s_is_saved_as_a_number(build):
    class WithOption(TrainerVanilla):
        @classmethod
        def add_options(cls, parser):
            parser.add_argument("--gain", type=np.float64, default=np.float64(2))

    options = build(task=WithOption).state_dict()["options"]
    assert type(options["gain"]) is float and options["gain"] == 2


# ---- signals, in a process of its own --------------------------------------------------------------------------------
def start_and_stop(output_dir, signum, *flags, whole_group=False):
    """Train in a subprocess, send a signal after the first epoch, and return its end and its run directory."""
    words = ["trainer_vanilla.py", "--output_dir", output_dir, *flags]
    process = fork_server.Program(words, new_session=True)
    deadline = time.monotonic() + 60
    while not list(output_dir.glob("*/metrics.csv")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    (os.killpg if whole_group else os.kill)(process.pid, signum)
    _, stderr = process.communicate(timeout=60)
    (run_dir,) = output_dir.iterdir()
    return process.returncode, stderr, run_dir


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_its_status_and_a_checkpoint(small, train, tmp_path, assert_same_end, signum, status):
    # Without validations, so that it is the loop over the updates that stops.
    flags = [*small(TrainerVanilla), "--n_epoch", "25", "--val_every", "25", "--seed", "0"]
    code, stderr, run_dir = start_and_stop(tmp_path / "stopped", signum, *flags)
    assert (code, stderr) == (status, "")
    state = load_checkpoint(run_dir / "Vanilla_InT_ckpt.pth")
    assert state["progress"]["is_exact"] and 8 <= state["progress"]["update"] < 200
    whole = train("--n_epoch", 25, "--val_every", 25)
    resumed = train("--resume", run_dir)
    assert_same_end(whole, resumed)


@pytest.mark.parametrize(
    ("signum", "status"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
    ],
)
def test_a_signal_to_the_loading_processes_too_ends_alike(small, tmp_path, signum, status):
    # Ctrl-C and job schedulers signal a whole group of processes.
    flags = [*small(TrainerVanilla), "--n_epoch", "200", "--num_workers", "2"]
    code, stderr, run_dir = start_and_stop(tmp_path / "stopped", signum, *flags, whole_group=True)
    assert (code, stderr) == (status, "")
    assert load_checkpoint(run_dir / "Vanilla_InT_ckpt.pth")["progress"]["is_exact"]
