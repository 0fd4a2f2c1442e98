"""python train_pl.py as a user starts it: options that reach Lightning, and options that are refused first."""

import inspect
import os
import signal
import sys
import time

import pytest

from extras.lightning import train_pl
from extras.lightning.train_pl import NOT_TO_BE_GIVEN
from tests import fork_server
from tools.task_program import load_class
from utils.errors import UserError

needs_lightning = pytest.mark.skipif(
    not train_pl.importlib.util.find_spec("lightning"), reason="Lightning is not installed: pip install lightning"
)
VANILLA = "trainer_vanilla:TrainerVanilla"


@pytest.fixture
def refuse(capsys, tmp_path, root, monkeypatch):
    """A function that gives a command line to the program, which must refuse it in one line; returns the message."""
    monkeypatch.chdir(root)

    def refuse(*argv) -> str:
        with pytest.raises((UserError, SystemExit)) as error:
            train_pl.main([*map(str, argv), "--output_dir", str(tmp_path / "runs")])
        assert not (tmp_path / "runs").exists()
        message = str(error.value) if isinstance(error.value, UserError) else capsys.readouterr().err
        assert getattr(error.value, "status", getattr(error.value, "code", None)) == 2 and message.count("\n") <= 1
        return message

    return refuse


@needs_lightning
def test_each_refused_argument_is_one_of_lightnings_trainer():
    import lightning

    assert NOT_TO_BE_GIVEN.keys() <= set(inspect.signature(lightning.Trainer).parameters)


@needs_lightning
@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (("--n_epoch", "4", "--log_every", "7"), {"max_epochs": 4, "log": 7, "precision": "32-true"}),
        (("--amp", "bf16"), {"precision": "bf16-mixed"}), (("--amp", "fp16"), {"precision": "16-mixed"}),
        (("--pl_args", "precision=bf16-mixed"), {"precision": "bf16-mixed", "amp": "bf16"}),
        (("--pl_args", "precision=32"), {"precision": "32-true", "amp": "no"}),
        (("--nproc", "2"), {"devices": 2, "strategy": "DDPStrategy"}),
        (("--pl_args", "accelerator=cpu", "devices=3"), {"devices": 3, "strategy": "DDPStrategy"}),
        (("--deterministic",), {"deterministic": True}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_options_reach_lightnings_trainer(tmp_path, flags, wanted):
    import torch

    own, rest = train_pl.parse([VANILLA, *flags, "--output_dir", str(tmp_path)])
    opt = train_pl.options_of_task(load_class(own.task, train_pl.TrainerBase, "task"), own, rest)
    try:
        trainer = train_pl.make_trainer(opt, own)
        deterministic = torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    found = {
        "max_epochs": trainer.max_epochs, "amp": opt.amp, "log": trainer.log_every_n_steps,
        "precision": trainer.precision, "devices": trainer.num_devices, "strategy": type(trainer.strategy).__name__,
        "deterministic": deterministic,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted


def test_options_are_read_in_a_process_that_lightning_has_started(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # Lightning sets no RANK
    monkeypatch.delenv("RANK", raising=False)
    own, rest = train_pl.parse([VANILLA, "--output_dir", str(tmp_path)])
    opt = train_pl.options_of_task(load_class(own.task, train_pl.TrainerBase, "task"), own, rest)
    assert opt.output_dir == str(tmp_path) and os.environ["WORLD_SIZE"] == "2"


# ---- what is refused -------------------------------------------------------------------------------------------------
@needs_lightning
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "Say which task"), (("trainer_vanila.py",), "did you mean 'trainer_vanilla.py'"),
        (("utils.seed:mix",), "TrainerBase"),
        ((VANILLA, "--n_epohc", "2"), "did you mean '--n_epoch'"), ((VANILLA, "--pl_arg", "a=1"), "mean '--pl_args'"),
        ((VANILLA, "--pl_args", "precison=16"), "did you mean 'precision'"),
        ((VANILLA, "--pl_args", "x"), "NAME=VALUE"),
        ((VANILLA, "--pl_args", "max_epochs=3"), "give --n_epoch"), ((VANILLA, "--pl_args", "devices=[1"), "not JSON"),
        ((VANILLA, "--pl_args", "strategy=fsdp"), "strategy=fsdp is not one of auto, ddp"),
        ((VANILLA, "--pl_args", "strategy=dpd"), "did you mean 'ddp'"),
        ((VANILLA, "--pl_args", "accelerator=gpuu"), "invalid accelerator"),
        ((VANILLA, "--pl_args", "precision=64-true"), "precision=64-true is not one of"),
        ((VANILLA, "--amp", "fp16", "--pl_args", "precision=bf16"), "contradict each other"),
        ((VANILLA, "--gpu_devices", "cpu", "--pl_args", "devices=2"), "both say where to compute"),
        ((VANILLA, "--parallel", "fsdp"), "--parallel fsdp"),
        ((VANILLA, "--micro_batch_size", "auto"), "give a number"),
        ((VANILLA, "--nproc", "2", "--max_restarts", "1"), "--max_restarts does not go with"),
        ((VANILLA, "--resume", "nowhere"), "no such run directory"),
        ((VANILLA, "--pl_loggers", "CSVLoger"), "did you mean 'CSVLogger'"),
        ((VANILLA, "--pl_callbacks", "EarlyStoping"), "did you mean 'EarlyStopping'"),
        ((VANILLA, "--pl_callbacks", "BatchSizeFinder"), "give --micro_batch_size"),
        ((VANILLA, "--pl_callbacks", "callbacks.csv_logger:CSVLogger"), "give it by --callbacks"),
        ((VANILLA, "--pl_callbacks", "EarlyStopping"), "needs the argument monitor"),
        ((VANILLA, "--pl_callbacks", "LearningRateMonitor", "--pl_args", "LearningRateMonitor.x=1"), "no argument 'x'"),
        ((VANILLA, "--pl_callbacks", "LearningRateMonitor", "--pl_args", "LearningRateMonitor.logging_interval=1"),
         "--pl_callbacks LearningRateMonitor"),
        ((VANILLA, "--pl_args", "EarlyStopping.patience=1"), "not one of --pl_callbacks"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_wrong_options_are_refused_in_one_line_before_anything_is_written(refuse, argv, message):
    assert message in refuse(*argv)


def test_without_lightning_it_says_how_to_get_it(refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    assert "pip install lightning" in refuse(VANILLA)


def test_help_shows_the_options_of_lightning_and_of_the_task(capsys):
    with pytest.raises(SystemExit) as end:
        train_pl.main(["--help"])
    assert end.value.code == 0 and "--pl_args" in capsys.readouterr().out
    if train_pl.importlib.util.find_spec("lightning"):
        with pytest.raises(SystemExit) as end:
            train_pl.main([VANILLA, "--help", "all"])
        said = capsys.readouterr().out
        assert end.value.code == 0 and "--pl_args" in said and "--label_smoothing" in said


# ---- signals ---------------------------------------------------------------------------------------------------------
@needs_lightning
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent")
def test_ctrl_c_saves_between_two_updates_and_ends_with_130(tmp_path, root):
    flags = ("--train_val_sample_rate", "165", "--n_epoch", "9999", "--patience", "0", "--gpu_devices", "cpu")
    words = ["train_pl.py", "tests.small_tasks:TrainerSmall", *flags, "--output_dir", tmp_path]
    run = fork_server.Program(words, root, os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/*_last_ckpt.pth")) and time.monotonic() < deadline:
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        printed = "".join(run.communicate(timeout=60))
    finally:
        run.kill()
    assert run.returncode == 130 and "Traceback" not in printed
    names = {path.name for path in tmp_path.glob("*/*.pth")}
    assert {"Vanilla_best_ckpt.pth", "Vanilla_last_ckpt.pth", "Vanilla_InT_ckpt.pth"} <= names
