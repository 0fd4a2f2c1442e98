"""Lightning as the referee: its loop and ours make the same weights of a task, from the same start and order."""

import csv
import os
import re
import signal
import sys

import pytest
import torch

pytest.importorskip("lightning", reason="the referee is not installed: pip install lightning")

import lightning
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data.sampler import epoch_order
from engine.checkpoints.file import load_checkpoint
from engine.runs.signals import Terminated
from extras.gan import trainer_gan
from extras.gan.trainer_gan import TrainerGAN
from extras.lightning import train_pl
from tests.small_tasks import (
    SEG,
    VANILLA,
    EvaluatorSmall,
    TrainerDropout,
    TrainerSmall,
    largest_difference,
    train,
    weights_of,
)
from tools.digest import digests
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla
from utils.errors import DivergedError, UserError

NAMES = {TrainerSmall: "tests.small_tasks:TrainerSmall", TrainerDropout: "tests.small_tasks:TrainerDropout",
         TrainerSeg: "trainer_seg_on_carvana:TrainerSeg", TrainerGAN: "trainer_gan:TrainerGAN"}  # fmt: skip
GAN = ("--train_val_sample_rate", "150", "--val_split", "50", "--batch_size", "32", "--n_epoch", "2", "--width", "4",
       "--latent", "8", "--gpu_devices", "cpu", "--seed", "0")  # fmt: skip


def referee(task, flags, output_dir):
    """Train under Lightning; return the task's trainer."""
    base = SEG if task is TrainerSeg else () if task is TrainerGAN else VANILLA
    flags = list(map(str, flags))
    if "--resume" not in flags:
        flags = [*base, "--output_dir", str(output_dir), *flags]
    own, rest = train_pl.parse([NAMES[task], *flags])
    return train_pl.train(own, rest).task


def run_of(trainer) -> str:
    """The digest of everything that determines the rest of the training."""
    return digests(trainer.state_dict())["run"]


CASES = [
    pytest.param(TrainerSmall, ("--n_epoch", 3, "--clip", 0.5, "--micro_batch_size", 5, "--warmup_epoch", 0.5),
                 id="clipped, cut up, schedule per update"),
    pytest.param(TrainerSmall, ("--n_epoch", 2, "--clip", 0.01, "--clip_type", "value", "--scheduler_step", "epoch",
                                "--optim", "nesterov", "--lr", 0.05), id="schedule per epoch"),
    pytest.param(TrainerDropout, ("--n_epoch", 2, "--ema", 0.9), id="dropout and average"),
    pytest.param(TrainerSmall, ("--n_epoch", 3, "--swa_start", 2, "--freeze", "1.*"), id="frozen, mean over epochs"),
    pytest.param(TrainerSmall, ("--n_epoch", 3, "--max_updates", 14), id="cut short"),
    pytest.param(TrainerSmall, ("--n_epoch", 2, "--val_every", 0), id="no validation"),
    pytest.param(TrainerSmall, ("--n_epoch", 2, "--amp", "bf16", "--val_every", 2), id="bf16"),
    pytest.param(TrainerSmall, ("--n_epoch", 2, "--amp", "fp16", "--optim", "sgd", "--clip", 0.5), id="fp16"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "flags"), CASES)
def test_lightning_and_our_loop_make_the_same_weights(tmp_path, task, flags):
    ours, theirs = train(task, flags, tmp_path / "ours"), referee(task, flags, tmp_path / "theirs")
    assert theirs.progress == ours.progress
    assert theirs.progress.update == (ours.opt.max_updates or 10 * ours.opt.n_epoch)
    assert largest_difference(weights_of(theirs), weights_of(ours)) <= 1e-6
    results = [trainer.score and trainer.score["results"] for trainer in (ours, theirs)]
    assert results[0] == pytest.approx(results[1], abs=1e-6) and (results[0] or not ours.opt.val_every)
    assert theirs.stopper.state_dict() == pytest.approx(ours.stopper.state_dict())


def test_so_they_do_for_segmentation(tmp_path, cars):
    flags = ("--data_dir", cars, "--micro_batch_size", 2, "--augment")
    ours, theirs = train(TrainerSeg, flags, tmp_path / "ours"), referee(TrainerSeg, flags, tmp_path / "theirs")
    assert largest_difference(weights_of(theirs), weights_of(ours)) <= 1e-6
    assert theirs.score["results"] == pytest.approx(ours.score["results"], abs=1e-6)


def test_so_they_do_for_two_networks_with_a_step_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_gan, "LESSONS", 20)
    flags = [*GAN, "--micro_batch_size", "20"]
    ours = TrainerGAN(TrainerGAN.parse_options([*flags, "--output_dir", str(tmp_path / "ours")]))
    ours.train()
    theirs = referee(TrainerGAN, flags, tmp_path / "theirs")
    for name in ("generator", "discriminator"):
        of_both = [trainer.networks[name].state_dict() for trainer in (ours, theirs)]
        assert largest_difference(*of_both) <= 1e-6
    assert theirs.score["results"] == pytest.approx(ours.score["results"], abs=1e-6)
    assert list((theirs.run_dir.path / "samples").glob("*.png"))  # what the task itself watches with


def test_another_learning_rate_would_be_seen(tmp_path):
    ours = train(TrainerSmall, ("--n_epoch", 1), tmp_path / "ours")
    theirs = referee(TrainerSmall, ("--n_epoch", 1, "--lr", 1.01e-3), tmp_path / "theirs")
    assert largest_difference(weights_of(theirs), weights_of(ours)) > 1e-6


def test_another_order_would_be_seen(tmp_path, monkeypatch):
    def swapped(self):
        first, second, *others = updates_left(self)
        return iter([second, first, *others])

    updates_left = TrainerSmall.updates_left
    ours = train(TrainerSmall, ("--n_epoch", 1), tmp_path / "ours")
    monkeypatch.setattr(TrainerSmall, "updates_left", swapped)
    theirs = referee(TrainerSmall, ("--n_epoch", 1), tmp_path / "theirs")
    assert largest_difference(weights_of(theirs), weights_of(ours)) > 1e-6


def test_a_module_that_shares_no_step_with_ours_makes_the_same_weights(tmp_path):
    """Lightning's automatic optimization: its own clipping, its own accumulation of nothing, torch's own schedule."""
    flags = ("--n_epoch", 3, "--clip", 0.3, "--lr_scheduler", "ExponentialLR", "--scheduler_args", '{"gamma": 0.9}')
    ours = train(TrainerSmall, flags, tmp_path / "ours")
    dataset, opt = ours.datasets["train"], ours.opt

    class Plain(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(opt.seed)
            self.network = EvaluatorSmall.build_networks(opt)["model"]

        def train_dataloader(self):
            order = epoch_order(len(dataset), opt.seed, self.trainer.current_epoch)
            batches = [order[begin : begin + opt.batch_size] for begin in range(0, len(order), opt.batch_size)]
            return DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collate_fn)

        def training_step(self, batch, batch_idx):
            images, labels = batch
            return F.cross_entropy(self.network(images), labels, label_smoothing=opt.label_smoothing)

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.network.parameters(), lr=opt.lr, weight_decay=opt.weight_decay)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    plain, quiet = Plain(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, gradient_clip_val=opt.clip, reload_dataloaders_every_n_epochs=1,
        enable_model_summary=False, **quiet,
    ).fit(plain)  # fmt: skip
    assert largest_difference(plain.network.state_dict(), weights_of(ours)) <= 1e-6


def test_the_program_of_the_page_makes_the_same_weights(tmp_path, root, monkeypatch):
    """With Lightning's own defaults: a sanity check before, inference mode, its logger."""
    page = (root / "docs" / "lightning.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    few = ", '--train_val_sample_rate', '165', '--gpu_devices', 'cpu'])"
    exec(program.replace("])", few, 1), made := {})
    theirs, flags = made["trainer"].lightning_module.task, ("--n_epoch", 2, "--val_split", 0.15, "--batch_size", 32)
    ours = train(TrainerVanilla, flags, tmp_path / "ours")
    assert theirs.opt.batch_size == 32 and theirs.progress == ours.progress
    assert largest_difference(weights_of(theirs), weights_of(ours)) <= 1e-6
    assert theirs.score["results"] == pytest.approx(ours.score["results"], abs=1e-6)


# ---- checkpoints -----------------------------------------------------------------------------------------------------
def test_a_run_that_was_stopped_within_an_epoch_ends_with_the_same_state(tmp_path, monkeypatch):
    flags = ("--n_epoch", 3)
    whole = referee(TrainerDropout, flags, tmp_path / "whole")
    step = TrainerDropout.train_step

    def stopped(self, update):
        if self.progress.update == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, update)

    with monkeypatch.context() as patch, pytest.raises(Terminated):
        patch.setattr(TrainerDropout, "train_step", stopped)
        referee(TrainerDropout, flags, tmp_path / "again")
    (path,) = (tmp_path / "again").iterdir()
    assert load_checkpoint(path / "Vanilla_InT_ckpt.pth")["progress"]["update"] == 14
    again = referee(TrainerDropout, ("--resume", path), tmp_path)
    assert again.run_dir.path == path and run_of(again) == run_of(whole)
    lightning_progress = again.callbacks.callbacks[0].module.trainer
    assert (lightning_progress.current_epoch, lightning_progress.global_step) == (3, 30)
    rows = (path / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4 and (path / "finished.json").exists()  # each epoch once


def test_our_loop_resumes_a_run_that_lightning_began(tmp_path):
    flags = ("--lr_scheduler", "constant")
    whole = train(TrainerDropout, ("--n_epoch", 3, *flags), tmp_path / "ours")
    begun = referee(TrainerDropout, ("--n_epoch", 2, *flags), tmp_path / "theirs").run_dir.path
    ended = train(TrainerDropout, ("--resume", begun, "--n_epoch", 3), tmp_path)
    assert run_of(ended) == run_of(whole)


# ---- what Lightning has ----------------------------------------------------------------------------------------------
def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_with_the_same_state(tmp_path):
    """A resume reads the template's own files, and never those of ModelCheckpoint."""
    flags = ("--n_epoch", 2, "--lr_scheduler", "constant")
    whole = referee(TrainerSmall, flags, tmp_path / "whole")
    first = referee(TrainerSmall, (*flags, "--max_updates", 12, "--save_every_updates", 4), tmp_path / "first")
    path = first.checkpointer.path("last")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    flags = ("--resume", first.run_dir.path, "--max_updates", 20)
    resumed = referee(TrainerSmall, flags, tmp_path)
    assert "is damaged" in next(first.run_dir.path.glob("*_log.txt")).read_text()
    assert resumed.progress == whole.progress and largest_difference(weights_of(resumed), weights_of(whole)) == 0


@pytest.mark.parametrize("name", ["config_Vanilla_1.json", "config.yaml"])
def test_the_options_of_a_strangers_run_name_no_code_not_even_through_a_base(tmp_path, name, monkeypatch):
    run = tmp_path / "1"
    run.mkdir()
    (run / "b.json").write_text('{"model_type": "planted:Net", "callbacks": ["planted:Mine"]}')
    (run / name).write_text('{"base": "b.json"}')
    (tmp_path / "planted.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save({"networks": {}}, run / "Vanilla_last_ckpt.pth")
    with pytest.raises(UserError):
        referee(TrainerSmall, ("--resume", run), tmp_path)
    assert "planted" not in sys.modules


def test_two_processes_of_lightnings_make_the_weights_of_one(tmp_path, command):
    flags = (*VANILLA, "--n_epoch", "2", "--micro_batch_size", "3", "--clip", "0.5")
    ours = train(TrainerSmall, flags, tmp_path / "ours")
    given = [flag for flag in flags if flag not in ("--gpu_devices", "cpu")]
    by_lightning = ("--pl_args", "accelerator=cpu", "devices=2", "strategy=ddp")
    done = command("train_pl.py", NAMES[TrainerSmall], *given, *by_lightning, "--output_dir", tmp_path / "theirs")
    assert done.returncode == 0, done.stderr
    assert "DDPStrategy" in done.stdout and "2 processes" in done.stdout
    (run_dir,) = (tmp_path / "theirs").iterdir()  # of both processes
    state = load_checkpoint(run_dir / "Vanilla_last_ckpt.pth")
    assert largest_difference(state["networks"]["model"], weights_of(ours)) <= 1e-6
    assert state["score"]["results"] == pytest.approx(ours.score["results"], abs=1e-6)
    assert state["score"]["num_samples"] == 20


def test_its_callbacks_and_loggers_see_our_metrics(tmp_path):
    flags = ("--pl_callbacks", "EarlyStopping", "ModelCheckpoint", "LearningRateMonitor", "--pl_loggers", "CSVLogger",
             "--pl_args", "EarlyStopping.monitor=val/accuracy", "EarlyStopping.mode=max", "EarlyStopping.patience=2",
             "EarlyStopping.min_delta=1", "ModelCheckpoint.monitor=val/accuracy", "ModelCheckpoint.filename=theirs",
             f"CSVLogger.save_dir={tmp_path}")  # fmt: skip
    task = referee(TrainerSmall, ("--n_epoch", 6, "--log_every", 5, *flags), tmp_path / "runs")
    assert task.progress.epoch == 3  # the first is the best, and two are not better
    assert (task.run_dir.path / "theirs.ckpt").exists() and task.checkpointer.path("last").exists()
    (theirs,) = tmp_path.glob("lightning_logs/*/metrics.csv")
    ours = list(csv.DictReader((task.run_dir.path / "metrics.csv").read_text().splitlines()))
    logged = [row for row in csv.DictReader(theirs.read_text().splitlines()) if row["train/loss"]]
    for mine, row in zip(ours, logged, strict=True):
        for name in ("train/loss", "val/accuracy"):
            assert float(row[name]) == pytest.approx(float(mine[name]), rel=1e-5)
    assert "train/loss_step" in logged[0] and float(logged[0]["lr"]) > 0


def test_early_stopping_of_the_task_ends_lightnings_loop(tmp_path):
    stopped = referee(TrainerSmall, ("--n_epoch", 6, "--patience", 2, "--min_delta", 1), tmp_path)
    assert stopped.progress.epoch == 3 and (stopped.run_dir.path / "finished.json").exists()


def test_a_non_finite_loss_ends_the_run_as_in_our_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainerSmall, "compute_loss", lambda self, batch: self.model(batch[0]).sum() * float("nan"))
    with pytest.raises(DivergedError, match="update 1"):
        referee(TrainerSmall, ("--n_epoch", 1), tmp_path)
