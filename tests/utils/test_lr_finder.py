"""The range test finds where training learns, leaves everything as it was, and survives a divergence."""

import itertools
import json

import numpy as np
import pytest
import torch

from engine.checkpoints.state import digest
from engine.command import run
from engine.snapshot import Snapshot
from trainer_vanilla import TrainerVanilla
from utils.eager_optim import SGD
from utils.errors import UserError
from utils.lr_finder import LrCurve, describe, find_lr, loss_of


def quadratic(scale=1.0, start=3.0, **settings):
    """A range test on scale * w² / 2, which plain SGD makes smaller below the rate 2 / scale; its weight, the curve."""
    weight = torch.nn.Parameter(torch.tensor([start]))
    module = torch.nn.ParameterList([weight])
    optimizer = SGD([weight], lr=1.0)
    snapshot = {"module": module, "optimizer": optimizer}

    def step(number):
        optimizer.zero_grad()
        loss = scale * (weight**2).sum() / 2 * (1 + 0.01 * (number % 3))
        loss.backward()
        optimizer.step()
        return loss.item()

    curve = find_lr(
        step, [optimizer], lambda run: itertools.count(run), lambda: Snapshot(snapshot), Snapshot.put_back, **settings
    )
    return weight, optimizer, curve


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
def test_the_suggestion_follows_the_curvature(scale):
    _, _, curve = quadratic(scale, low=1e-6, high=1e4, num_values=80)
    assert 0.01 / scale < curve.suggestion < 2 / scale
    assert len(curve.suggestions) == 3 and np.isnan(curve.losses[:, -1]).all()  # far above 2 / scale each run ends
    assert f"--lr {curve.suggestion:.2g}, between" in describe(curve) and "3 of 3 runs ended early" in describe(curve)


def test_the_state_is_put_back_even_after_an_error():
    weight, optimizer, _ = quadratic(high=100.0)
    assert weight.item() == 3.0 and optimizer.param_groups[0]["lr"] == 1.0 and weight.grad is None
    seen = []
    with pytest.raises(ZeroDivisionError):
        find_lr(lambda _: 1 / 0, [optimizer], itertools.count, lambda: 7, seen.append)
    assert seen == [7, 7]


def test_groups_keep_the_ratio_of_their_rates():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(3)]
    one = SGD([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:2], "lr": 0.01}])
    two = SGD(weights[2:], lr=torch.tensor(0.2))
    two.param_groups[0]["initial_lr"] = 0.3  # a schedule has begun below it
    seen = []

    def step(_):
        seen.append([float(group["lr"]) for optimizer in (one, two) for group in optimizer.param_groups])
        return 1.0

    find_lr(step, [one, two], lambda run: itertools.count(), lambda: None, lambda _: None,
            low=1.0, high=100.0, num_values=3, num_updates=1, num_runs=1, base_lr=0.1)  # fmt: skip
    assert np.allclose(seen, [[1, 0.1, 3], [10, 1, 30], [100, 10, 300]])


def test_no_suggestion_where_nothing_is_learned():
    flat = LrCurve(np.geomspace(1e-7, 1, 20), np.full((2, 20), 2.3))
    assert flat.suggestion is None and describe(flat).startswith("No suggestion: between 1e-07 and 1 ")
    never = LrCurve(np.geomspace(1e-7, 1, 20), np.full((2, 20), np.nan))
    assert never.suggestion is None


def test_the_loss_of_a_step():
    assert loss_of({"loss": 1.0, "loss/part": 0.5}) == 1.0 and np.isnan(loss_of({}))
    with pytest.raises(UserError, match="returns no loss, but accuracy"):
        loss_of({"accuracy": 1.0})


# ---- with a trainer --------------------------------------------------------------------------------------------------
class Diverging(TrainerVanilla):
    """Vanilla with batch normalization and dropout, whose loss is NaN above some rate."""

    before, after, rates = [], [], []

    def build_networks(self):
        (network,) = super().build_networks().values()
        return {"model": torch.nn.Sequential(network, torch.nn.BatchNorm1d(10), torch.nn.Dropout(0.2))}

    def compute_loss(self, batch):
        rate = self.optimizer.param_groups[0]["lr"]
        self.rates.append(rate)
        return super().compute_loss(batch) * (torch.tensor(float("nan")) if rate > 0.5 else 1)

    def state_dict(self):
        state = super().state_dict()
        (self.after if self.before else self.before).append(digest(state["networks"]) + digest(state["random"]))
        return state


def test_it_is_made_with_the_real_step_and_leaves_files_but_no_run(small, tmp_path, capsys):
    flags = [*small(TrainerVanilla), "--seed", "0", "--output_dir", str(tmp_path), "--warmup_epoch", "1"]
    run(Diverging, [*flags, "--find_lr", "--find_lr_range", "1e-5", "10", "--find_lr_values", "12"])
    (directory,) = (tmp_path / "find_lr").iterdir()
    said, log = capsys.readouterr().out, next(directory.glob("*_log.txt")).read_text()
    for text in (said, log):
        assert "Suggestion: --lr " in text and "3 of 3 runs ended early" in text
    numbers = np.load(directory / "lr_finder.npz")
    assert numbers["losses"].shape == (3, 12) and 1e-4 < numbers["suggestion"] < 0.5
    assert (directory / "lr_finder.png").read_bytes().startswith(b"\x89PNG")
    assert Diverging.before == Diverging.after and Diverging.rates.count(Diverging.rates[0]) == 9
    run(Diverging, [*flags, "--resume", "auto", "--n_epoch", "1"])
    assert "no unfinished run" in capsys.readouterr().out


def test_it_begins_with_the_weights_of_a_run(vanilla_run, tmp_path, capsys, contents):
    before = contents(vanilla_run)
    few = ["--find_lr", "--find_lr_values", "10", "--find_lr_updates", "1", "--find_lr_runs", "1"]
    run(TrainerVanilla, ["--resume", str(vanilla_run), "--output_dir", str(tmp_path), *few])
    losses = np.load(next((tmp_path / "find_lr").glob("*/lr_finder.npz")))["losses"]
    assert losses[0, 0] < 1.7 and contents(vanilla_run) == before  # untrained, it is 2.3
    config = next((tmp_path / "find_lr").glob("*/config_*.json"))
    assert "find_lr" not in json.loads(config.read_text())


def test_two_processes_agree(command, small, tmp_path):
    flags = [*small(TrainerVanilla), "--seed", "0", "--output_dir", tmp_path, "--find_lr", "--find_lr_values", "10"]
    flags += ["--find_lr_range", "1e-4", "1", "--find_lr_runs", "2"]
    done = command("trainer_vanilla.py", *flags)
    both = command("trainer_vanilla.py", *flags, "--nproc", "2")
    assert (done.returncode, both.returncode, both.stderr) == (0, 0, ""), both.stderr
    assert both.stdout.count("Suggestion: --lr") == 1
    one, two = (np.load(path)["losses"] for path in sorted((tmp_path / "find_lr").glob("*/lr_finder.npz")))
    assert one.shape == two.shape and np.allclose(one, two, rtol=1e-3, equal_nan=True)
