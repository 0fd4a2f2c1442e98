"""A replay repeats a run to the update that was not finite, and names the layer that it came from."""

import json

import pytest
from torch import nn

from tests.test_divergence import BAD_UPDATE, InfiniteGradient, NaNTrainer, TwoNetworks
from tools import replay
from utils.errors import DivergedError, UserError


class Sick(nn.Module):
    """A layer whose output, or whose gradient, is not finite as soon as it `is_sick`."""

    is_sick = ""

    def forward(self, logits):
        if self.is_sick == "output":
            return logits * float("inf")
        return logits + (logits - logits.detach()).sqrt() if self.is_sick == "gradient" else logits


class SickOutput(NaNTrainer):
    fault = "output"

    def build_networks(self):
        (network,) = super().build_networks().values()
        return {"model": nn.Sequential(network, Sick(), nn.Identity())}

    def sick(self, loss):
        return loss

    def compute_loss(self, batch):
        is_due = self.progress.update + 1 == BAD_UPDATE
        self.networks["model"][1].is_sick = self.fault if is_due else ""
        return super().compute_loss(batch)


class SickGradient(SickOutput):
    fault = "gradient"


@pytest.fixture
def replayed(build, monkeypatch, capsys):
    """A function that trains a task until it diverges, replays it, and returns the output of the replay."""

    def replayed(task, *flags, again=None):
        trainer = build("--save_every_updates", 4, *flags, task=task)
        with pytest.raises(DivergedError):
            trainer.train()
        capsys.readouterr()
        runs = list(trainer.run_dir.path.parent.iterdir())
        monkeypatch.setattr("tools.task.load_class", lambda *_: again or task)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("engine.devices.job.run_main", lambda main: main())  # raise, do not exit
            replay.main([str(trainer.run_dir.path), "task.py"])
        assert list(trainer.run_dir.path.parent.iterdir()) == runs  # it leaves no run
        return capsys.readouterr().out

    return replayed


@pytest.mark.parametrize(("task", "told"), [
    (NaNTrainer, "First output: the outputs of all layers are finite"),
    (InfiniteGradient, "First output: the outputs of all layers are finite"),
    (SickOutput, "First output: model.1 (Sick): 640 of 640 values are not finite; its inputs are finite"),
    (SickGradient, "First gradient: model.0.2 (Dropout): 640 of 640"),
])  # fmt: skip
def test_the_update_goes_wrong_again(replayed, capsys, task, told):
    with pytest.raises(DivergedError, match=r"went wrong again: .*(Backward0|not finite)"):
        replayed(task)
    said = capsys.readouterr().out
    assert f"Not finite: update {BAD_UPDATE}, in epoch 2." in said and "Its 64 samples: train/" in said
    assert told in said, said


def test_a_mended_program_says_so(replayed):
    class Mended(NaNTrainer):
        bad_updates = ()

    assert "the fault does not repeat" in replayed(NaNTrainer, again=Mended)


def test_the_update_is_the_very_same(replayed):
    """Dropout draws the same mask: the loss of the replayed update is that of the run, to the bit."""
    losses = []

    class Noting(NaNTrainer):
        def sick(self, loss):
            losses.append(float(loss.detach()))
            return super().sick(loss)

    with pytest.raises(DivergedError):
        replayed(Noting)
    assert len(losses) == 2 and losses[0] == losses[1]


def test_half_an_update_is_replayed_from_the_checkpoint_before_it(replayed, capsys):
    with pytest.raises(DivergedError, match="went wrong again"):
        replayed(TwoNetworks)
    assert "Repeating the run after update 4," in capsys.readouterr().out


@pytest.mark.parametrize("program", ["../evil.py", "-m", "/tmp/evil.py", "Results/evil.py", "nowhere.py"])
def test_a_run_directory_does_not_choose_the_code_that_runs(tmp_path, program):
    (tmp_path / "provenance.json").write_text(json.dumps({"command": f"python {program} --lr 1"}))
    with pytest.raises(UserError, match=r"Name the task's program: python -m tools\.replay"):
        replay.main([str(tmp_path)])
