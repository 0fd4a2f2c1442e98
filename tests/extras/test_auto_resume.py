"""A directory that has nothing to do with a project's runs is passed over."""

import os
import shlex
from pathlib import Path

from engine.checkpoints.file import save_checkpoint
from extras.auto_resume import not_asked, unfinished_runs
from options import train_parser
from trainer_vanilla import TrainerVanilla


def make_run(path: Path, *names: str) -> None:
    """Make a run directory with a checkpoint and a config for each of these names."""
    path.mkdir()
    for name in names:
        (path / f"config_{name}.json").write_text('{"seed": 1}')
    save_checkpoint({"progress": {"epoch": 0, "update": 1}}, path / "Net_last_ckpt.pth")


def found(directory: Path, project: str) -> list[str]:
    return [path.name for path, _ in unfinished_runs(directory, project)]


def test_directory_of_two_other_projects_is_passed_over(tmp_path):
    make_run(tmp_path / "7", "Net_7")
    make_run(tmp_path / "shared", "a_1", "b_2")
    assert found(tmp_path, "Net") == ["7"]


def test_directory_of_another_user_is_passed_over(tmp_path, monkeypatch):
    for number in (7, 8, 9):
        make_run(tmp_path / str(number), f"Net_{number}")
    listed, allowed = Path.iterdir, os.access

    def iterdir(path: Path):
        if path.name == "8":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "9" and allowed(path, mode))
    assert found(tmp_path, "Net") == ["7"]


def test_options_that_only_the_run_has_are_named_and_what_it_found_is_not():
    parser = train_parser(TrainerVanilla)
    now = vars(parser.resolve(["--batch_size", "16", "--resume", "auto"]))
    saved = {**now, "lr": 0.1, "ema": 0.99, "batch_size": 16, "seed": 5, "n_classes": 10, "output_dir": "/elsewhere"}
    taken = not_asked(parser, now, {**saved, "optim_args": {"eps": 0.1}, "gone": 3, "resume": None})
    assert sorted(shlex.split(taken)) == ["--ema=0.99", "--lr=0.1", '--optim_args={"eps": 0.1}']
    assert not_asked(parser, now, {**now, "seed": 5}) == ""
