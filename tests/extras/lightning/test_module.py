"""Lightning as the referee: its loop and ours make the same weights of a task, from the same start and order."""

import re

import pytest
import torch

pytest.importorskip("lightning", reason="the referee is not installed: pip install lightning")

import lightning
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data.sampler import epoch_order
from engine.checkpoints.file import load_checkpoint
from engine.checkpoints.state import digests
from extras.gan import trainer_gan
from extras.gan.trainer_gan import TrainerGAN
from extras.lightning import module as lightning_module
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
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla
from utils.errors import DivergedError

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
    """The digest of all that decides how training goes on."""
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
    class Swapped(lightning_module.Updates):
        def __iter__(self):
            first, second, *others = super().__iter__()
            return iter([second, first, *others])

    ours = train(TrainerSmall, ("--n_epoch", 1), tmp_path / "ours")
    monkeypatch.setattr(lightning_module, "Updates", Swapped)
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
def test_a_run_that_is_resumed_within_an_epoch_ends_as_if_it_had_not_stopped(tmp_path):
    often = ("--n_epoch", 3, "--save_every_updates", 4, "--keep", 3)
    whole = referee(TrainerDropout, often, tmp_path)
    path = whole.run_dir.path
    names = {found.name for found in path.glob("*.ckpt")}
    assert names == {"best.ckpt", "last-20.ckpt", "last-24.ckpt", "last-28.ckpt", "last-30.ckpt"}
    for checkpoint in ("last-24.ckpt", "last-20.ckpt"):  # within an epoch, and at the end of one
        again = referee(TrainerDropout, ("--resume", path / checkpoint), tmp_path)
        assert again.run_dir.path == path and run_of(again) == run_of(whole)
    assert (path / "finished.json").exists() and (path / "last-30.ckpt").exists()
    rows = (path / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4 and all(row.split(",")[5] for row in rows)  # each epoch once, each with a validation


def test_what_lies_ahead_of_where_a_run_goes_on_is_set_aside(tmp_path):
    whole = referee(TrainerSmall, ("--n_epoch", 2, "--keep", 2), tmp_path)
    path = whole.run_dir.path
    (path / "last-20.ckpt").rename(path / "last-999.ckpt")
    again = referee(TrainerSmall, ("--resume", path / "last-10.ckpt"), tmp_path)
    assert (path / "last-999.ckpt.aside").exists() and run_of(again) == run_of(whole)


def test_our_loop_goes_on_with_what_lightning_began(tmp_path):
    flags = ("--lr_scheduler", "constant")
    whole = train(TrainerDropout, ("--n_epoch", 3, *flags), tmp_path / "ours")
    begun = referee(TrainerDropout, ("--n_epoch", 2, *flags), tmp_path / "theirs").run_dir.path
    ended = train(TrainerDropout, ("--resume", begun, "--n_epoch", 3), tmp_path)
    assert run_of(ended) == run_of(whole)


def test_a_checkpoint_of_lightnings_becomes_one_that_is_evaluated(tmp_path, command):
    flags = ("--n_epoch", 1, "--output_dir", tmp_path, "--seed", 0, "--train_val_sample_rate", 300)
    done = command("train_pl.py", "trainer_vanilla.py", *flags)
    assert done.returncode == 0, done.stderr
    (run_dir,) = tmp_path.iterdir()
    assert load_checkpoint(run_dir / "Vanilla_best_ckpt.pth")["progress"]["epoch"] == 1
    done = command("-m", "extras.lightning.checkpoint", run_dir / "best.ckpt", tmp_path / "best.pth")
    assert done.returncode == 0 and "best.pth" in done.stdout
    how = ("--split", "val", "--save_path", tmp_path / "test", "--no-viz")
    done = command("eval_vanilla.py", "--model_path", tmp_path / "best.pth", *how)
    assert done.returncode == 0 and "The score agrees" in done.stdout + done.stderr


# ---- what Lightning has ----------------------------------------------------------------------------------------------
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


def test_its_callbacks_see_our_metrics(tmp_path):
    stops = ("--pl_callbacks", "EarlyStopping", "ModelCheckpoint", "--pl_args", "EarlyStopping.monitor=val/accuracy",
             "EarlyStopping.mode=max", "EarlyStopping.patience=2", "EarlyStopping.min_delta=1",
             "ModelCheckpoint.monitor=val/accuracy", "ModelCheckpoint.filename=theirs")  # fmt: skip
    task = referee(TrainerSmall, ("--n_epoch", 6, *stops), tmp_path)
    assert task.progress.epoch == 3  # the first is the best, and two are not better
    assert list(task.run_dir.path.rglob("theirs.ckpt"))
    asked = referee(TrainerSmall, ("--n_epoch", 6, "--patience", 2, "--min_delta", 1), tmp_path)
    assert asked.progress.epoch == 3 and (asked.run_dir.path / "finished.json").exists()


def test_its_loggers_and_ours_write_the_same_numbers(tmp_path):
    task = referee(TrainerSmall, ("--n_epoch", 2, "--log_every", 5, "--logger", "csv", "tensorboard"), tmp_path)
    path = task.run_dir.path
    theirs, ours = (path / "lightning" / "metrics.csv").read_text(), (path / "metrics.csv").read_text()
    assert "train/loss_step" in theirs and "val/accuracy" in theirs and list((path / "summary").glob("events*"))
    last = dict(zip(*(line.split(",") for line in (ours.splitlines()[0], ours.splitlines()[-1])), strict=True))
    names = theirs.splitlines()[0].split(",")
    column = [line.split(",")[names.index("train/loss")] for line in theirs.splitlines()[1:]]
    assert float([text for text in column if text][-1]) == pytest.approx(float(last["train/loss"]), rel=1e-5)


def test_a_loss_that_is_not_finite_ends_the_run_as_in_our_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainerSmall, "compute_loss", lambda self, batch: self.model(batch[0]).sum() * float("nan"))
    with pytest.raises(DivergedError, match="update 1"):
        referee(TrainerSmall, ("--n_epoch", 1), tmp_path)
    (run_dir,) = tmp_path.iterdir()
    assert list(run_dir.glob("*replay.pth")) and not list(run_dir.glob("last-*"))
