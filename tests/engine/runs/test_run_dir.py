"""A run has its own directory, with everything a reader needs to know of it; a resumed run continues there."""

import json

import pytest
import torch
from torch import nn

from engine.runs import run_dir
from engine.runs.run_dir import RunDir

FINGERPRINTS = {"train": "12ab", "val": "34cd", "test": "56ef"}
PARTS = {"train": ["a", "b", "c"], "val": ["d"], "test": []}
OPTIONS = {"lr": 1e-3, "seed": 0, "debug": False, "model_path": None, "description": "", "lr_decay_epochs": [3.0]}


@pytest.fixture(autouse=True)
def short_provenance(monkeypatch):
    """The versions and the state of the repository have tests of their own."""
    monkeypatch.setattr(run_dir, "provenance", lambda devices, data: {"data": data})


def record(directory: RunDir, parts=PARTS) -> None:
    networks = {"model": nn.Linear(3, 2)}
    directory.record(OPTIONS, "eval_vanilla:EvaluatorVanilla", [torch.device("cpu")], networks, parts, FINGERPRINTS)


def test_new_runs_have_new_directories(tmp_path):
    first, second = (RunDir(tmp_path / "Results", "Vanilla") for _ in range(2))
    assert first.path != second.path and first.path.parent == second.path.parent == tmp_path / "Results"


def test_record_holds_options_split_and_provenance(tmp_path):
    directory = RunDir(tmp_path, "Vanilla")
    record(directory)
    timestamp = directory.path.name
    assert sorted(path.name for path in directory.path.iterdir()) == [
        ".lock", f"Vanilla_{timestamp}_log.txt", f"config_Vanilla_{timestamp}.json", "provenance.json", "split.json",
    ]  # fmt: skip
    assert json.loads((directory.path / f"config_Vanilla_{timestamp}.json").read_text()) == OPTIONS
    assert json.loads((directory.path / "split.json").read_text()) == PARTS


def test_log_begins_with_what_the_reader_wants_to_know(tmp_path, capsys):
    directory = RunDir(tmp_path, "Vanilla")
    record(directory)
    (log,) = directory.path.glob("*_log.txt")
    for text in (capsys.readouterr().out, log.read_text()):
        for part in (
            f"Run directory: {directory.path}", "Command: ", "lr=0.001, seed=0, debug=False",
            "Data: 3 train, 1 val, 0 test", "Network 'model': 8 parameters, 8 trainable", "Linear",
        ):  # fmt: skip
            assert part in text
        assert "model_path" not in text and "description" not in text  # what is not given is not listed


def test_provenance_has_the_fingerprints(tmp_path):
    directory = RunDir(tmp_path, "Vanilla")
    record(directory)
    assert json.loads((directory.path / "provenance.json").read_text())["data"] == FINGERPRINTS


def test_resumed_run_goes_on_in_its_directory_and_keeps_its_provenance(tmp_path):
    first = RunDir(tmp_path, "Vanilla")
    record(first)
    first.logger.info("before")
    (first.path / "provenance.json").write_text("damaged")
    resumed = RunDir(tmp_path / "elsewhere", "Vanilla", resume=str(first.path / "Vanilla_last_ckpt.pth"))
    record(resumed)
    assert resumed.path == first.path and not (tmp_path / "elsewhere").exists()
    assert (first.path / "provenance.json").read_text() == "damaged"
    (log,) = first.path.glob("*_log.txt")
    assert "before" in log.read_text() and log.read_text().count("Run directory") == 2


def test_checkpoint_outside_of_a_run_begins_a_new_one(tmp_path):
    (tmp_path / "downloads").mkdir()
    directory = RunDir(tmp_path / "Results", "Vanilla", resume=str(tmp_path / "downloads" / "last.pth"))
    assert directory.path.parent == tmp_path / "Results"


def test_lines_of_epochs_that_are_made_again_are_marked(tmp_path):
    directory = RunDir(tmp_path, "Vanilla")
    for epoch in (1, 2):
        directory.logger.info(f"epoch {epoch}/3, sample 5 of 10")
        directory.logger.info(f"epoch {epoch}/3: loss 0.5")
    directory.strike_out(1)
    directory.logger.info("epoch 2/3: loss 0.4")
    lines = [line.split(" INFO ")[1] for line in directory.log_path.read_text().splitlines()]
    assert lines == [
        "epoch 1/3, sample 5 of 10", "epoch 1/3: loss 0.5", "epoch 2/3, sample 5 of 10",
        "(made again) epoch 2/3: loss 0.5", "epoch 2/3: loss 0.4",
    ]  # fmt: skip


def test_log_that_is_a_link_gets_no_line(tmp_path, capsys):
    directory, victim = RunDir(tmp_path, "Vanilla"), tmp_path / "victim"
    victim.write_text("2026-01-01 00:00:00,000 INFO epoch 2/3: precious")
    directory.log_path.symlink_to(victim)
    directory.logger.info("a line")
    directory.log_quietly("a line")
    directory.strike_out(1)
    assert victim.read_text().endswith("INFO epoch 2/3: precious") and "lacks lines" in capsys.readouterr().err
