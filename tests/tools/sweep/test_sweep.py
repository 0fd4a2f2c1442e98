"""python sweep.py as a user starts it: what is wrong is refused before anything runs, what was begun can be ended."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from engine.options.parser import OptionParser
from tools.sweep import command as sweep
from utils.errors import UserError

TINY = ("--n_epoch", "40", "--patience", "0", "--train_val_sample_rate", "120", "--batch_size", "32")
GRID = ("trainer_vanilla.py", "--grid", "lr=1e-3,1e-2")


@pytest.fixture
def refuse(capsys, monkeypatch, tmp_path, root):
    """A function that gives a command line to the sweep, which must refuse it; returns what it says."""
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["sweep.py"])
    monkeypatch.setattr(sweep, "Runner", None)  # nothing is to be run

    def refuse(*argv) -> str:
        output_dir = [] if "--resume" in argv else ["--output_dir", str(tmp_path / "sweeps")]
        place = argv.index("--") if "--" in argv else len(argv)
        with pytest.raises((UserError, SystemExit)) as error:
            sweep.main([*map(str, argv[:place]), *output_dir, *argv[place:]])
        assert not (tmp_path / "sweeps").exists()
        said = str(error.value) if isinstance(error.value, UserError) else capsys.readouterr().err
        assert getattr(error.value, "status", getattr(error.value, "code", None)) == 2 and said.count("\n") <= 1
        return said

    return refuse


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "Say which trainer"), (("trainer_vanilla.py",), "--grid or --search"),
        ((*GRID, "--search", "momentum=0..1"), "not both"), (("nowhere.py", *GRID[1:]), "nowhere.py"),
        (("utils.nowhere", *GRID[1:]), "utils.nowhere"), (("utils/seed.py", *GRID[1:]), "defines 0 trainers"),
        (("trainer_vanilla.py", "--grid", "lrr=1,2"), "did you mean '--lr'"),
        (("trainer_vanilla.py", "--grid", "lr=1e-3,fast"), "'fast' is not a finite number"),
        (("trainer_vanilla.py", "--grid", "optim=adamW,adamw2"), "did you mean 'adamW'"),
        (("trainer_vanilla.py", "--grid", "lr="), "empty value"), (("trainer_vanilla.py", "--grid"), "--grid"),
        (("trainer_vanilla.py", "--grid", "seed=1,2"), "--seeds says how many"),
        (("trainer_vanilla.py", "--grid", "monitor=loss,accuracy"), "compared by one metric"),
        (("trainer_vanilla.py", "--search", "lr=0..1"), "is not a finite number > 0"),
        (("trainer_vanilla.py", "--search", "lr=gauss:0..1"), "'gauss' is none of int, log"),
        (("trainer_vanilla.py", "--search", "lr=log:1e-3..1", "--trials", "0"), "--trials"),
        ((*GRID, "--seeds", "0"), "--seeds"), ((*GRID, "--jobs", "0"), "--jobs"), ((*GRID, "--seed", "3"), "'--seed'"),
        ((*GRID, "--trials", "3"), "--trials is for --search"), ((*GRID, "--no-prune"), "--prune is for --search"),
        ((*GRID, "--devices", "0,1", "--jobs", "2"), "--devices"), ((*GRID, "--devices", "first"), "--devices"),
        ((*GRID, "--", "--lr", "1"), "--lr is to be swept"), ((*GRID, "--", "--resume", "auto"), "is not to be given"),
        ((*GRID, "--", "--logger", "none"), "metrics.csv"), ((*GRID, "--", "--n_epochs", "3"), "mean '--n_epoch'"),
        ((*GRID, "--options", "lr=1"), "--lr is to be swept"), ((*GRID, "--options", "n_epoch=x"), "n_epoch"),
        ((*GRID, "--resume", "nowhere"), "nowhere"),
        ((*GRID, "--", "--set", "lr=1"), "--lr is to be swept"), ((*GRID, "--", "--set", "seed=3"), "--seeds says"),
        ((*GRID, "--", "--set", "output_dir=x"), "is not to be given"),
        ((*GRID, "--options", "seed=3"), "--seeds says"),
        ((GRID[0], "--grid", "optim_args.epss=1e-6,1e-8"), "AdamW takes no argument 'epss' (did you mean 'eps'?)"),
        ((GRID[0], "--grid", "optim_arg.eps=1"), "did you mean 'optim_args'"), ((GRID[0], "--grid", "lr.x=1"), "flat"),
        ((GRID[0], "--grid", "optim_args.eps=1e-6,x"), "eps of AdamW is a number"),
        ((GRID[0], "--grid", "optim_args.betas=[0.9,0.95],[0.9,2]"), "Invalid beta parameter"),
        ((GRID[0], "--grid", "optim_args.betas=[0.9"), "without its other half"),
        ((GRID[0], "--grid", "model_args.width=8"), "VanillaModel takes no argument 'width'"),
        ((GRID[0], "--grid", "model_type=LeNet,Vanilla", "model_args.size=28,8"), "cannot take images"),
        ((GRID[0], "--grid", "loss_type=Focal", "loss_args.gamma=1,-1"), "gamma=-1"),
        ((GRID[0], "--grid", "scheduler_args.step_size=3", "--", "--lr_scheduler", "StepL"), "mean 'StepLR'"),
        ((GRID[0], "--grid", "scheduler_args.stepsize=3", "--", "--lr_scheduler", "StepLR"), "no argument 'stepsize'"),
        ((GRID[0], "--grid", "data_args.sizes=3"), "takes no argument 'sizes'"),
        ((GRID[0], "--search", "optim_args.epss=log:1e-9..1e-6"), "no argument 'epss'"),
        ((GRID[0], "--search", "optim_args.eps=-1..1"), "Invalid epsilon value"),
        ((GRID[0], "--grid", "optim_args.eps=1", "--", "--set", "optim_args.eps=2"), "optim_args.eps is to be swept"),
        ((GRID[0], "--grid", "seed.x=1"), "--seeds says"), ((GRID[0], "--grid", "import.x=1"), "--import"),
        (("trainer_gan.py", "--grid", "model_args.generator.widht=8"), "Generator takes no argument 'widht'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_started(refuse, argv, said):
    assert said in refuse(*argv)


def test_a_trainer_that_cannot_be_loaded_is_told_in_one_line(refuse, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "broken.py").write_text("def f(:")
    (tmp_path / "fails.py").write_text("import trainer\nraise RuntimeError('not today')")
    assert "SyntaxError" in refuse(tmp_path / "broken.py", *GRID[1:])
    assert "RuntimeError: not today" in refuse(tmp_path / "fails.py", *GRID[1:])


def test_a_search_without_optuna_is_refused_before_anything_is_written(refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install optuna" in refuse("trainer_vanilla.py", "--search", "lr=log:1e-3..1")


def test_a_sweep_in_a_file_means_the_same_and_the_command_line_wins(tmp_path, refuse):
    path = tmp_path / "sweep.yaml"
    grid = "trainer: trainer_vanilla.py\ngrid: ['lr=1e-3,1e-2', 'optim=sgd']\n"
    path.write_text(f"{grid}options: [n_epoch=2]\nseeds: 3\n")
    opt, _ = sweep.parse(["--config", str(path), "--seeds", "2", "--", "--debug"])
    assert (opt.trainer, opt.grid, opt.seeds) == ("trainer_vanilla.py", ["lr=1e-3,1e-2", "optim=sgd"], 2)
    assert (opt.options, opt.flags) == (["n_epoch=2"], ["--debug"])
    assert sweep.parse(["--config", str(path), "--grid", "lr=1", "--grid", "clip=1"])[0].grid == ["lr=1", "clip=1"]
    path.write_text("trainer: trainer_vanilla.py\ngird: [lr=1]\n")
    assert "did you mean 'grid'" in refuse("--config", path)


def test_every_option_of_the_sweep_is_explained_and_typed():
    parser = sweep.build_parser()
    assert isinstance(parser, OptionParser)
    for name, action in parser.known.items():
        assert action.help and (action.type or name in ("grid", "search", "options")), name


# ---- real runs -------------------------------------------------------------------------------------------------------
def test_a_sweep_is_stopped_by_ctrl_c_and_gone_on_with(command, root, tmp_path):
    argv = [sys.executable, "sweep.py", *GRID, "--jobs", "2", "--output_dir", str(tmp_path), "--", *TINY]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, text=True, env=environment)
    while started.poll() is None and len(list(tmp_path.glob("*/runs/*/*/metrics.csv"))) < 2:
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    said, _ = started.communicate(timeout=60)
    (directory,) = tmp_path.iterdir()
    assert started.returncode == 130
    assert f"To go on: python sweep.py trainer_vanilla.py --resume {directory}" in said
    states = [run["state"] for trial in json.loads((directory / "trials.json").read_text()) for run in trial["runs"]]
    assert "interrupted" in states

    other = command("sweep.py", *GRID[:2], "lr=1e-4,1", "--resume", directory)
    assert other.returncode == 2 and "contradicts the sweep" in other.stderr
    done = command("sweep.py", GRID[0], "--resume", directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"table.csv", "sweep.png"} <= {path.name for path in directory.iterdir()}
    for path in directory.glob("runs/*"):
        (run,) = path.glob("*/")  # one run, which was continued
        rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
        assert [int(row["epoch"]) for row in rows] == [*range(1, 41)]
    with open(directory / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["val/accuracy"]) >= float(rows[1]["val/accuracy"]) > 0
    assert f"\n{rows[0]['trial']}" in done.stdout and rows[0]["state"] == "finished"


@pytest.mark.parametrize("how", ["grid", "search", "file"])
def test_arguments_of_classes_are_swept_and_named_plainly(command, tmp_path, how):
    names = {"optim_args.betas": ["[0.9,0.95]", "[0.9,0.999]"], "optim_args.eps": ["1e-8"]}
    if how == "search":
        names["optim_args.eps"] = ["log:1e-9..1e-6"]
    entries = [f"{name}={','.join(values)}" for name, values in names.items()]
    flags = ["--search", *entries, "--trials", 2] if how == "search" else ["--grid", *entries]
    if how == "file":
        (tmp_path / "sweep.yaml").write_text("".join(["grid:\n", *(f"  - {entry}\n" for entry in entries)]))
        flags = ["--config", tmp_path / "sweep.yaml"]
    common = ("--n_epoch", 1, "--train_val_sample_rate", 60, "--set", "optim_args.weight_decay=0.5")
    done = command("sweep.py", GRID[0], *flags, "--output_dir", tmp_path / "sweeps", "--", *common)
    assert (done.returncode, done.stderr) == (0, "")
    (directory,) = (tmp_path / "sweeps").iterdir()
    with open(directory / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {*rows[0]} >= {*names} and len(rows) == 2 and (directory / "sweep.png").stat().st_size > 1000
    assert "trial  optim_args.betas  optim_args.eps  val/accuracy" in done.stdout
    for row in rows:
        (path,) = directory.glob(f"runs/{row['trial']}-seed0/*/config_*.json")
        arguments = json.loads(path.read_text())["optim_args"]
        assert arguments == {"betas": json.loads(row["optim_args.betas"]), "weight_decay": 0.5,
                             "eps": float(row["optim_args.eps"])}  # fmt: skip


def test_a_run_that_fails_is_listed_and_the_status_says_so(command, tmp_path):
    # Which metrics there are, only the run itself can tell.
    flags = ("--options", "monitor=dice", "train_val_sample_rate=60")
    done = command("sweep.py", GRID[0], "--grid", "lr=1e-3", *flags, "--output_dir", tmp_path)
    assert done.returncode == 1
    assert "000 seed=0 failed with status 2: trainer_vanilla.py: error: --monitor 'dice' is none of" in done.stdout


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        ({"flags": ["--import", "evil_module"]}, "--import"), ({"flags": ["--model_type", "os:system"]}, "os:system"),
        ({"grid": ["model_type=Vanilla,evil_module:Net"]}, "evil_module:Net"),
        ({"flags": ["--config=evil.yaml"]}, "--config"),
        ({"options": ["loss_type=evil_module:Loss:0.5"]}, "evil_module:Loss"),
        ({"options": ["import=evil_module"]}, "import=evil_module"), ({"grid": ["import=evil_module"]}, "import=evil"),
        ({"options": ["config=evil.yaml"]}, "config=evil.yaml"),
    ],
)  # fmt: skip
def test_a_sweep_from_elsewhere_has_no_code_imported(refuse, tmp_path, plan, named):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text(json.dumps({"grid": ["lr=1e-3,1e-2"], "seeds": 1, **plan}))
    said = refuse("trainer_vanilla.py", "--resume", tmp_path / "s")
    assert "names code of somebody's own" in said and named in said
