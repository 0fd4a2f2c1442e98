"""A loss or gradient that is not finite: the weights stay, the run stops or skips, and the run can be resumed."""

import pytest
import torch

from engine.checkpoints.file import load_checkpoint
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla
from utils.errors import DivergedError

BAD_UPDATE = 10  # counted from 1: the second of the second epoch


class NaNTrainer(TrainerVanilla):
    """Vanilla with dropout, whose loss is `sick(loss)` in one update of the run."""

    bad_updates = (BAD_UPDATE,)

    def build_networks(self):
        (network,) = super().build_networks().values()
        return {"model": torch.nn.Sequential(network, torch.nn.BatchNorm1d(10), torch.nn.Dropout(0.2))}

    def compute_loss(self, batch):
        loss = super().compute_loss(batch)
        return self.sick(loss) if self.progress.update + 1 in self.bad_updates else loss

    def sick(self, loss):
        return loss * torch.tensor(float("nan"))


class InfiniteGradient(NaNTrainer):
    """The loss is finite, its gradient is not: the derivative of the root at 0."""

    def sick(self, loss):
        return loss + (loss * 0).sqrt()


@pytest.mark.parametrize("task", [NaNTrainer, InfiniteGradient])
def test_stop_leaves_the_state_before_the_update(task, build, differences):
    before = {}

    class Watching(task):
        def train_step(self, update):
            if self.progress.update + 1 == BAD_UPDATE:
                before.update(self.state_dict())
                before["progress"]["is_exact"] = True  # as it was before the update
                before["networks"] = {"model": {k: v.clone() for k, v in self.model.state_dict().items()}}
            return super().train_step(update)

    trainer = build("--log_every", "1", task=Watching)
    with pytest.raises(DivergedError, match=rf"Epoch 2, update {BAD_UPDATE}: the gradient of 'model' is not finite"):
        trainer.train()
    after = load_checkpoint(trainer.checkpointer.path("InT"))
    assert after["progress"]["is_exact"] and after["progress"]["update"] == BAD_UPDATE - 1
    parts = ("networks", "optimizers", "schedulers", "progress", "random")
    assert differences({part: before[part] for part in parts}, {part: after[part] for part in parts}) == []


def test_message_names_the_samples_of_the_update(build):
    trainer = build(task=NaNTrainer)
    with pytest.raises(DivergedError) as caught:
        trainer.train()
    updates = list(trainer.train_loader.updates(1, 0))
    names = [trainer.datasets["train"].names[index] for index in updates[BAD_UPDATE - 9].indices]
    assert f"Samples: {', '.join(names[:5])}" in str(caught.value)


def test_stopped_run_goes_on_when_the_cause_is_mended(build, train, weights):
    class Mended(NaNTrainer):
        bad_updates = ()

    Mended.__name__ = NaNTrainer.__name__  # the same program after an edit
    trainer = build(task=NaNTrainer)
    with pytest.raises(DivergedError):
        trainer.train()
    resumed = train("--resume", trainer.run_dir.path, task=Mended)
    whole = train(task=Mended)
    assert all(torch.equal(a, weights(whole)[name]) for name, a in weights(resumed).items())


def test_skipped_update_leaves_no_trace_in_the_weights(train, differences):
    """A run that skips update 10 is a run whose update 10 does nothing but move on."""

    class Without(NaNTrainer):
        def train_step(self, update):
            return {} if self.progress.update + 1 == BAD_UPDATE else super().train_step(update)

        bad_updates = ()

    skipping = train("--nan_policy", "skip", task=NaNTrainer)
    a, b = skipping.state_dict(), train(task=Without).state_dict()
    parts = ("networks", "optimizers", "schedulers", "progress", "random", "epoch_log", "score")
    ignore = ("seconds",)
    assert differences({part: a[part] for part in parts}, {part: b[part] for part in parts}, ignore) == []
    assert skipping.guard.num_skipped == 1
    assert all(value.isfinite().all() for value in a["networks"]["model"].values())  # the statistics too


def test_skips_are_bounded_and_each_is_told(build):
    class Thrice(NaNTrainer):
        bad_updates = (3, 5, 10)

    trainer = build("--nan_policy", "skip", "--max_skips", "2", task=Thrice)
    with pytest.raises(DivergedError, match="update 10"):
        trainer.train()
    log = next(trainer.run_dir.path.glob("*_log.txt")).read_text()
    assert "Skipped: 1 of at most 2" in log and "Skipped: 2 of at most 2" in log and "3 of" not in log


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_micro_batches_and_half_precision_are_guarded_too(value, build):
    class Sick(TrainerSeg):
        def compute_loss(self, batch):
            return super().compute_loss(batch) * (value if self.progress.update == 2 else 1.0)

    for flags in (["--micro_batch_size", "2"], ["--amp", "bf16"], ["--amp", "fp16"]):
        trainer = build(*flags, task=Sick)
        with pytest.raises(DivergedError, match="update 3"):
            trainer.train()
        assert all(entry.isfinite().all() for entry in trainer.networks["model"].state_dict().values())


def test_overflow_under_fp16_shrinks_the_scale_and_goes_on(build):
    trainer = build("--amp", "fp16", task=TrainerSeg)
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    trainer.train()
    assert trainer.precision.scaler.get_scale() < 2.0**120
    assert trainer.progress.epoch == 2 and trainer.guard.num_skipped == 0


def test_exit_status_and_one_message(tmp_path, root, command):
    script = tmp_path / "diverging.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "from trainer_vanilla import TrainerVanilla\n"
        "class Sick(TrainerVanilla):\n"
        "    '''Diverges.'''\n"
        "    def compute_loss(self, batch):\n"
        "        return super().compute_loss(batch) * (float('inf') if self.progress.update == 2 else 1)\n"
        "if __name__ == '__main__':\n"
        "    Sick.main()\n"
    )
    done = command(script, "--debug", "--output_dir", tmp_path / "runs")
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert "Epoch 1, update 3: the gradient of 'model' is not finite" in done.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert f"python -m tools.replay {run_dir}" in done.stdout
    again = command("-m", "tools.replay", run_dir, script)
    assert again.returncode == 4 and "went wrong again" in again.stderr


class TwoNetworks(TrainerVanilla):
    """The second network diverges when the first has been stepped."""

    def build_networks(self):
        return {name: super(TwoNetworks, self).build_networks()["model"] for name in ("first", "second")}

    def build_evaluator(self):
        evaluator = super().build_evaluator()
        evaluator.networks = {"model": self.networks["first"]}
        return evaluator

    def train_step(self, update):
        ((images, labels),) = [batch for batch, _ in self.weighted(update)]
        for name, factor in (("first", 1.0), ("second", float("nan") if self.progress.update == 4 else 1.0)):
            self.optimizers[name].zero_grad()
            loss = self.criterion(self.networks[name](images), labels) * factor
            self.backward(loss)
            self.optimizer_step(name)
        return {"loss": loss.detach()}


def test_half_an_update_is_not_skipped(build):
    trainer = build("--nan_policy", "skip", task=TwoNetworks)
    with pytest.raises(DivergedError, match="Another network was already stepped"):
        trainer.train()
    assert not trainer.checkpointer.path("InT").exists()
