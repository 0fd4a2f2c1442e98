"""Runs are listed with how they ended, their best epoch, and what is set differently."""

import json

import pytest

from tools import runs
from utils.errors import UserError


def make_run(path, options=(), rows="1,0.5,3\n2,0.75,3.5\n"):
    path.mkdir(parents=True)
    config = {"n_epoch": 2, "monitor": "accuracy", "lr": 0.001, "description": "", **dict(options)}
    (path / f"config_Vanilla_{path.name}.json").write_text(json.dumps(config))
    (path / "metrics.csv").write_text(f"epoch,val/accuracy,time/train\n{rows}")
    record = {"run_name": f"Vanilla_{path.name}", "command": "python trainer_vanilla.py"}
    (path / "provenance.json").write_text(json.dumps(record))
    return path


def test_the_newest_run_is_first_with_its_status_best_time_and_options(tmp_path, capsys):
    make_run(tmp_path / "a" / "9", {"lr": 0.25, "optim": "\x1b[31m"}, rows="")
    done = make_run(tmp_path / "b" / "10", {"n_epoch": 12})
    (done / "finished.json").write_text('{"epoch": 2, "update": 9}')
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config_Vanilla_11.json").write_text("damaged")
    runs.main([str(tmp_path)])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "run"
    assert first.split() == f"{done} stopped early val/accuracy 0.75 (epoch 2) 6.5 s".split()
    assert second.split()[1:] == ["crashed", "none", "0.0", "s", "n_epoch=2", "lr=0.25", r"optim=\x1b[31m"]


def test_a_terminal_is_not_made_wider():
    rows = [("Results/1", "finished", "val/accuracy 0.9 (epoch 2)", "3.2 s", f"lr=0.1 optim={'x' * 99}")]
    for width in (60, 80, 120):
        lines = runs.lines_of(rows, width)
        assert max(map(len, lines)) <= width and lines[-1].endswith("...")
    assert runs.lines_of(rows, None)[-1].endswith("x")


def test_nothing_to_list_is_an_error(tmp_path):
    with pytest.raises(UserError, match="There is no run below"):
        runs.main([str(tmp_path)])
