"""python sweep.py: wrong options are refused before anything runs; a stopped sweep can be continued."""

import csv
import json
import os
import shlex
import signal
import sys
import time

import pytest

pytest.importorskip("optuna")

from engine.options.parser import OptionParser
from tests import fork_server
from tools.sweep import command as sweep
from utils.errors import UserError

TINY = ("--n_epoch", "25", "--patience", "0", "--train_val_sample_rate", "120", "--batch_size", "32", "--logger", "csv")
GRID = ("trainer_vanilla.py", "--grid", "lr=1e-3,1e-2")


@pytest.fixture
def refuse(capsys, monkeypatch, tmp_path, root):
    """A function that gives a command line to the sweep, which must refuse it; returns the message."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["sweep.py"])
    monkeypatch.setattr(sweep, "Runner", None)  # nothing is to be run

    def refuse(*argv) -> str:
        output_dir = [] if "--resume" in argv else ["--output_dir", str(tmp_path / "sweeps")]
        end = argv.index("--") if "--" in argv else len(argv)
        with pytest.raises((UserError, SystemExit)) as error:
            sweep.main([*map(str, argv[:end]), *output_dir, *argv[end:]])
        assert not (tmp_path / "sweeps").exists()
        message = str(error.value) if isinstance(error.value, UserError) else capsys.readouterr().err
        assert getattr(error.value, "status", getattr(error.value, "code", None)) == 2 and message.count("\n") <= 1
        return message

    return refuse


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "Say which trainer"), (("trainer_vanilla.py",), "--grid or --search"),
        ((*GRID, "--search", "momentum=0..1"), "either --grid or"), (("nowhere.py", *GRID[1:]), "nowhere.py"),
        (("utils/seed.py", *GRID[1:]), "defines 0 trainers"),
        (("trainer_vanilla.py", "--grid", "lrr=1,2"), "did you mean '--lr'"),
        (("trainer_vanilla.py", "--grid", "lr=1e-3,fast"), "'fast' is not a finite number"),
        (("trainer_vanilla.py", "--grid", "optim=adamW,adamww"), "did you mean 'adamW'"),
        (("trainer_vanilla.py", "--grid"), "--grid"), ((*GRID, "--seed", "3"), "'--seed'"),
        (("trainer_vanilla.py", "--grid", "seed=1,2"), "--seeds says how many"),
        (("trainer_vanilla.py", "--grid", "monitor=loss,accuracy"), "compared by one metric"),
        (("trainer_vanilla.py", "--search", "lr=0..1"), "is not a finite number > 0"),
        (("trainer_vanilla.py", "--search", "lr=gauss:0..1"), "'gauss' is not one of int, log"),
        (("trainer_vanilla.py", "--search", "lr=log:1e-3..1", "--trials", "0"), "--trials"),
        ((*GRID, "--trials", "3"), "--trials is for --search"), ((*GRID, "--no-prune"), "--prune is for --search"),
        ((*GRID, "--devices", "0,1", "--jobs", "2"), "--devices"), ((*GRID, "--devices", "first"), "--devices"),
        ((*GRID, "--", "--lr", "1"), "--lr is swept"), ((*GRID, "--", "--resume", "auto"), "is not for a run"),
        ((*GRID, "--", "--logger", "none"), "metrics.csv"), ((*GRID, "--", "--n_epochs", "3"), "mean '--n_epoch'"),
        ((*GRID, "--options", "lr=1"), "--lr is swept"), ((*GRID, "--options", "n_epoch=x"), "n_epoch"),
        ((*GRID, "--resume", "nowhere"), "nowhere"), ((*GRID, "--options", "seed=3"), "--seeds says"),
        ((*GRID, "--", "--set", "lr=1"), "--lr is swept"), ((*GRID, "--", "--set", "seed=3"), "--seeds says"),
        ((GRID[0], "--grid", "optim_arg.eps=1"), "did you mean 'optim_args'"),
        ((GRID[0], "--grid", "n_epoch.x=1"), "flat"),
        ((GRID[0], "--grid", "optim_args.betas=[0.9"), "without its other half"),
        ((GRID[0], "--grid", "optim_args.eps=1", "--", "--set", "optim_args.eps=2"), "optim_args.eps is swept"),
        ((GRID[0], "--grid", "seed.x=1"), "--seeds says"), ((GRID[0], "--grid", "import.x=1"), "--import"),
        ((GRID[0], "--grid", "val_every=0,1"), "leaves nothing to compare"),
        ((GRID[0], "--grid", "lr=1e-3,1e-2", "momentum=0.8,0.9"), "--momentum is swept, and has no effect in any"),
        ((GRID[0], "--grid", "optim=sgd,adamW", "--", "--momentum=0.8"), "--momentum 0.8 has no effect with --optim"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_wrong_options_are_refused_in_one_line_before_anything_is_started(refuse, argv, message):
    assert message in refuse(*argv)


def test_a_trainer_that_cannot_be_loaded_is_told_in_one_line(refuse, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "broken.py").write_text("def f(:")
    (tmp_path / "fails.py").write_text("import trainer\nraise RuntimeError('not today')")
    assert "SyntaxError" in refuse(tmp_path / "broken.py", *GRID[1:])
    assert "RuntimeError: not today" in refuse(tmp_path / "fails.py", *GRID[1:])


def test_a_search_without_optuna_is_refused_before_anything_is_written(refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install optuna" in refuse("trainer_vanilla.py", "--search", "lr=log:1e-3..1")


def test_only_the_help_is_there_without_optuna(refuse, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install optuna" in refuse(*GRID)
    with pytest.raises(SystemExit) as error:
        sweep.main(["--help"])
    assert error.value.code == 0 and "--search_seed" in capsys.readouterr().out


def test_a_sweep_in_a_file_means_the_same_and_the_command_line_wins(tmp_path, refuse):
    path = tmp_path / "sweep.yaml"
    grid = "trainer: trainer_vanilla.py\ngrid: ['lr=1e-3,1e-2', 'optim=sgd']\n"
    path.write_text(f"{grid}options: [n_epoch=2]\nseeds: 3\n")
    opt = sweep.parse(["--config", str(path), "--seeds", "2", "--", "--debug"])
    assert (opt.trainer, opt.grid, opt.seeds) == ("trainer_vanilla.py", ["lr=1e-3,1e-2", "optim=sgd"], 2)
    assert opt.flags == ["--n_epoch=2", "--debug"]
    assert sweep.parse(["--config", str(path), "--grid", "lr=1", "--grid", "clip=1"]).grid == ["lr=1", "clip=1"]
    path.write_text("trainer: trainer_vanilla.py\ngird: [lr=1]\n")
    assert "did you mean 'grid'" in refuse("--config", path)


def test_every_option_of_the_sweep_is_explained_and_typed():
    parser = sweep.build_parser()
    assert isinstance(parser, OptionParser)
    for name, action in parser.known.items():
        assert action.help and (action.type or name in ("grid", "search", "options")), name


def test_values_without_effect_are_left_out_and_equal_runs_are_run_once():
    grid = ["--grid", "optim=adamW,sgd", "momentum=0.8,0.9", "clip=0,0.0"]
    plan = sweep.make_plan(sweep.parse(["trainer_vanilla.py", *grid]))
    without_momentum, *with_momentum = plan.grid
    assert (without_momentum["optim"], "momentum" in without_momentum) == ("adamW", False)
    assert [(each["optim"], each["momentum"]) for each in with_momentum] == [("sgd", "0.8"), ("sgd", "0.9")]
    search = ["--search", "optim=adamW,sgd", "momentum=0.5..0.9"]
    plan = sweep.make_plan(sweep.parse(["trainer_vanilla.py", *search]))
    assert plan.effective({"optim": "adamW", "momentum": "0.7"}) == {"optim": "adamW"}


# ---- real runs -------------------------------------------------------------------------------------------------------
def read_table(directory):
    with open(directory / "table.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_is_stopped_by_ctrl_c_and_continued(command, root, tmp_path):
    argv = ["sweep.py", *GRID, "--jobs", "2", "--output_dir", tmp_path, "--", *TINY]
    started = fork_server.Program(argv, root, os.environ | {"OMP_NUM_THREADS": "1"})
    while started.poll() is None and len(list(tmp_path.glob("*/runs/*/*/metrics.csv"))) < 2:
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    printed, _ = started.communicate(timeout=60)
    (directory,) = tmp_path.iterdir()
    assert started.returncode == 130
    (to_go_on,) = [line for line in printed.splitlines() if "To go on: " in line]
    resume = shlex.split(to_go_on.partition("To go on: ")[2])
    assert resume[:2] == ["python", "sweep.py"] and f"--resume={directory}" in resume
    assert "interrupted" in [row["state"] for row in read_table(directory)]

    done = command(*resume[1:])
    assert (done.returncode, done.stderr) == (0, "")
    assert {"table.csv", "sweep.png"} <= {path.name for path in directory.iterdir()}
    for path in directory.glob("runs/*"):
        (run,) = path.glob("*/")  # one run, which was continued
        rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
        assert [int(row["epoch"]) for row in rows] == [*range(1, 26)]
    rows = read_table(directory)
    assert float(rows[0]["val/accuracy"]) >= float(rows[1]["val/accuracy"]) > 0
    assert f"\n{rows[0]['trial']}" in done.stdout and rows[0]["state"] == "finished"


def test_arguments_of_classes_are_swept_and_a_task_may_stand_in_a_subdirectory(command, tmp_path, root):
    """The third setting is one that the class refuses: that run fails, and the others do not."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "neighbour.py").write_text("DEFAULTS = {'optim': 'adamW'}\n")
    (tmp_path / "mine" / "x.py").write_text(
        "from neighbour import DEFAULTS\nfrom trainer_vanilla import TrainerVanilla\n\n\n"
        "class TrainerMine(TrainerVanilla):\n    defaults = DEFAULTS\n\n\n"
        "if __name__ == '__main__':\n    TrainerMine.main()\n"
    )
    grid = "optim_args.betas=[0.9,0.95],[0.9,0.999],[0.9,2]"
    common = ("--n_epoch", 1, "--train_val_sample_rate", 60, "--set", "optim_args.eps=1e-6")
    done = command(
        *("sweep.py", tmp_path / "mine" / "x.py", "--grid", grid, "--jobs", 2, "--output_dir", tmp_path / "sweeps"),
        *("--", *common),
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "002 seed=0 failed with status 2: " in done.stdout and "Invalid beta parameter" in done.stdout
    (directory,) = (tmp_path / "sweeps").iterdir()
    rows = read_table(directory)
    assert [row["state"] for row in rows] == ["finished", "finished", "failed"]
    assert (directory / "sweep.png").stat().st_size > 1000
    for row in rows[:2]:
        (path,) = directory.glob(f"runs/{row['trial']}-seed0/*/config_*.json")
        arguments = json.loads(path.read_text())["optim_args"]
        assert arguments == {"betas": json.loads(row["optim_args.betas"]), "eps": 1e-6}


def test_a_sweep_is_resumed_by_its_whole_command_as_its_directory_is_not_trusted(refuse, tmp_path):
    (tmp_path / "command.txt").write_text("python -c evil")
    message = refuse("trainer_vanilla.py", "--resume", tmp_path)
    assert "Give either --grid or --search" in message and f"{tmp_path}/command.txt" in message
