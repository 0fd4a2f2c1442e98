"""The program makes the range test with a task's own updates, and leaves everything as it was."""

import json

import numpy as np
import pytest
import torch

from engine.devices.job import run
from tools.digest import digest
from tools.find_lr import loss_of, main
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError


def test_the_loss_of_a_step():
    assert loss_of({"loss": 1.0, "loss/part": 0.5}) == 1.0 and np.isnan(loss_of({}))
    with pytest.raises(UserError, match="returns no loss, but accuracy"):
        loss_of({"accuracy": 1.0})


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


def test_it_is_made_with_the_real_step_and_leaves_files_but_no_run(small, tmp_path, capsys, monkeypatch):
    flags = [*small(TrainerVanilla), "--seed", "0", "--output_dir", str(tmp_path), "--warmup_epoch", "1"]
    monkeypatch.setattr("tools.task.load_class", lambda *_: Diverging)
    main(["--range", "1e-5", "10", "--values", "12", "diverging.py", *flags])
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
    few = ["--values", "10", "--updates", "1", "--runs", "1"]
    main([*few, "trainer_vanilla.py", "--resume", str(vanilla_run), "--output_dir", str(tmp_path)])
    losses = np.load(next((tmp_path / "find_lr").glob("*/lr_finder.npz")))["losses"]
    assert losses[0, 0] < 1.7 and contents(vanilla_run) == before  # untrained, it is 2.3
    config = next((tmp_path / "find_lr").glob("*/config_*.json"))
    assert "find_lr" not in json.loads(config.read_text())


def test_two_processes_agree(command, small, tmp_path):
    own = ["--values", "10", "--range", "1e-4", "1", "--runs", "1", "--updates", "1"]
    flags = [*own, "trainer_vanilla.py", *small(TrainerVanilla), "--seed", "0", "--output_dir", tmp_path]
    done = command("-m", "tools.find_lr", *flags)
    both = command("-m", "tools.find_lr", *flags, "--nproc", "2")
    assert (done.returncode, both.returncode, both.stderr) == (0, 0, ""), both.stderr
    assert both.stdout.count("Suggestion: --lr") == 1
    one, two = (np.load(path)["losses"] for path in sorted((tmp_path / "find_lr").glob("*/lr_finder.npz")))
    assert one.shape == two.shape and np.allclose(one, two, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize(("argv", "message"), [
    (["--range", "1", "0.1", "trainer_vanilla.py"], "the lower rate stands first"),
    (["trainer_vanilla.py", "--range", "1", "2"], "--range is an option of this tool: give it before trainer_vanilla"),
    (["--rang", "1", "2", "trainer_vanilla.py"], "did you mean '--range'"),
    (["--runs", "0", "trainer_vanilla.py"], "'0' is not an integer >= 1"), ([], "required: TASK"),
])  # fmt: skip
def test_a_wrong_command_ends_in_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    said = capsys.readouterr().err
    assert end.value.code == 2 and message in said and said.count("\n") == 1
