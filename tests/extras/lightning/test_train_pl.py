"""python train_pl.py as a user starts it: what becomes of each option, and what is refused before anything begins."""

import inspect
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace

import pytest

from extras.lightning import train_pl
from extras.lightning.train_pl import NOT_TO_BE_GIVEN, REFUSED, STAYS, TAKEN_OVER
from utils.errors import UserError

needs_lightning = pytest.mark.skipif(
    not train_pl.importlib.util.find_spec("lightning"), reason="Lightning is not installed: pip install lightning"
)
VANILLA = "trainer_vanilla:TrainerVanilla"


@pytest.fixture
def refuse(capsys, tmp_path, root, monkeypatch):
    """A function that gives a command line to the program, which must refuse it in one line; returns what it says."""
    monkeypatch.chdir(root)

    def refuse(*argv) -> str:
        with pytest.raises((UserError, SystemExit)) as error:
            train_pl.main([*map(str, argv), "--output_dir", str(tmp_path / "runs")])
        assert not (tmp_path / "runs").exists()
        said = str(error.value) if isinstance(error.value, UserError) else capsys.readouterr().err
        assert getattr(error.value, "status", getattr(error.value, "code", None)) == 2 and said.count("\n") <= 1
        return said

    return refuse


# ---- every option ----------------------------------------------------------------------------------------------------
def unclassified(names: set[str]) -> list[str]:
    """The options of which nobody has said what becomes of them, and those of which two things are said."""
    kinds = [set(TAKEN_OVER), STAYS, set(REFUSED)]
    return sorted(name for name in names.union(*kinds) if sum(name in kind for kind in kinds) != (name in names))


def test_each_option_is_taken_over_or_stays_or_is_refused():
    names = set(train_pl.neutral_values())
    assert unclassified(names) == [] and len(names) > 80
    assert unclassified(names | {"a_new_one"}) == ["a_new_one"]
    assert unclassified(names - {"lr"}) == ["lr"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("dist_timeout", "5"), ("max_restarts", "1"), ("checkpoint_format", "sharded"), ("max_time", "1h"),
     ("requeue", "True"), ("replay", "x.pth"), ("verify_resume", "1"), ("doctor", "True"), ("find_lr", "True"),
     ("find_lr_range", "1e-5"), ("find_lr_values", "50"), ("find_lr_updates", "3"), ("find_lr_runs", "3")],
)  # fmt: skip
@needs_lightning
def test_an_option_that_lightning_cannot_have_is_refused_also_with_its_default(refuse, name, value):
    values = ("1e-5", "1") if name == "find_lr_range" else (value,)
    assert f"--{name} does not go with Lightning" in refuse(VANILLA, f"--{name}", *values)


def test_each_refusal_names_its_option_and_every_one_is_tried():
    neutral = train_pl.neutral_values()
    for name in REFUSED:
        with pytest.raises(UserError, match=f"--{name} does not go with Lightning"):
            train_pl.refuse(neutral, {name})
        with pytest.raises(UserError, match="does not go with Lightning"):  # in a file, or by the task's defaults
            train_pl.refuse(neutral | {name: "another value"}, set())
    train_pl.refuse(neutral, set())


@needs_lightning
def test_what_stands_for_an_argument_of_lightnings_trainer_is_one_of_its_arguments():
    import lightning

    assert NOT_TO_BE_GIVEN.keys() <= set(inspect.signature(lightning.Trainer).parameters)


@needs_lightning
@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ((), {"max_epochs": 12, "precision": "32-true", "val_every": 1, "log": 50, "early": 10, "keep": 2}),
        (("--n_epoch", "4", "--val_every", "2", "--log_every", "7"), {"max_epochs": 4, "val_every": 2, "log": 7}),
        (("--amp", "bf16"), {"precision": "bf16-mixed"}), (("--amp", "fp16"), {"precision": "16-mixed"}),
        (("--pl_args", "precision=bf16-mixed"), {"precision": "bf16-mixed", "amp": "bf16"}),
        (("--pl_args", "precision=32"), {"precision": "32-true", "amp": "no"}),
        (("--nproc", "2"), {"devices": 2, "strategy": "DDPStrategy"}),
        (("--pl_args", "accelerator=cpu", "devices=3"), {"devices": 3, "strategy": "DDPStrategy"}),
        (("--patience", "0"), {"early": None}), (("--keep", "5"), {"keep": 5}),
        (("--patience", "3", "--min_delta", "0.1"), {"early": 3, "delta": 0.1}),
        (("--monitor", "loss"), {"monitor": "val/loss", "mode": "min"}),
        (("--save_every", "3"), {"every": 3}), (("--save_every_updates", "9"), {"steps": 9, "every": 0}),
        (("--deterministic",), {"deterministic": True}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_lightning_does_instead_of_us_is_handed_over(tmp_path, flags, wanted):
    own, rest = train_pl.parse([VANILLA, *flags, "--output_dir", str(tmp_path)])
    opt, given = train_pl.options_of_task(train_pl.load_class(own.task, train_pl.TrainerBase, "task"), own, rest)
    try:
        trainer = train_pl.make_trainer(opt, given, own)
        deterministic = train_pl.sys.modules["torch"].are_deterministic_algorithms_enabled()
    finally:
        train_pl.sys.modules["torch"].use_deterministic_algorithms(False)
    last, best = trainer.checkpoint_callbacks[::-1]
    early = trainer.early_stopping_callback
    found = {
        "max_epochs": trainer.max_epochs, "val_every": trainer.check_val_every_n_epoch, "amp": opt.amp,
        "log": trainer.log_every_n_steps, "precision": trainer.precision, "devices": trainer.num_devices,
        "strategy": type(trainer.strategy).__name__, "early": early and early.patience, "keep": last.save_top_k,
        "delta": early and abs(early.min_delta), "monitor": best.monitor, "mode": best.mode,
        "every": last.every_n_epochs, "steps": last._every_n_train_steps, "deterministic": deterministic,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted


# ---- what is refused -------------------------------------------------------------------------------------------------
@needs_lightning
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "Say which task"), (("trainer_vanila.py",), "did you mean 'trainer_vanilla.py'"),
        (("nothing.here",), "there is no module 'nothing'"), (("utils/seed.py",), "defines 0 trainers"),
        (("trainer_vanilla:TrainerVanila",), "did you mean 'TrainerVanilla'"), (("utils.seed:mix",), "TrainerBase"),
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
        ((VANILLA, "--save_every", "0.5"), "--save_every_updates"),
        ((VANILLA, "--n_epoch", "3", "--val_every", "2"), "divisor of --n_epoch 3"),
        ((VANILLA, "--max_updates", "5", "--val_every", "2"), "--val_every 1 or 0"),
        ((VANILLA, "--resume", "auto"), "--resume auto"), ((VANILLA, "--resume", "nowhere"), "no such run directory"),
        ((VANILLA, "--resume", "docs"), "no last-UPDATE.ckpt"), ((VANILLA, "--resume", "README.md"), "is no .ckpt"),
        ((VANILLA, "--pl_callbacks", "EarlyStoping"), "did you mean 'EarlyStopping'"),
        ((VANILLA, "--pl_callbacks", "BatchSizeFinder"), "give --micro_batch_size"),
        ((VANILLA, "--pl_callbacks", "callbacks.csv_logger:CSVLogger"), "give it by --callbacks"),
        ((VANILLA, "--pl_callbacks", "EarlyStopping"), "needs the argument monitor"),
        ((VANILLA, "--pl_callbacks", "LearningRateMonitor", "--pl_args", "LearningRateMonitor.x=1"), "no argument 'x'"),
        ((VANILLA, "--pl_callbacks", "LearningRateMonitor", "--pl_args", "LearningRateMonitor.logging_interval=1"),
         "--pl_callbacks LearningRateMonitor"),
        ((VANILLA, "--pl_args", "EarlyStopping.patience=1"), "none of --pl_callbacks"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_written(refuse, argv, said):
    assert said in refuse(*argv)


def test_without_lightning_it_says_how_to_get_it(refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    assert "pip install lightning" in refuse(VANILLA)


@needs_lightning
def test_a_resumed_run_keeps_what_makes_it_what_it_is(tmp_path):
    run_dir = tmp_path / "1"
    run_dir.mkdir()
    (run_dir / "last-5.ckpt").touch()
    (run_dir / "last-12.ckpt").touch()
    (run_dir / "config_Vanilla_1.json").write_text('{"lr": 0.5, "n_epoch": 4}')
    task = train_pl.load_class(VANILLA, train_pl.TrainerBase, "task")
    own = Namespace(resume=str(run_dir))
    opt, _ = train_pl.options_of_task(task, own, ["--n_epoch", "6"])
    assert (opt.lr, opt.n_epoch, opt.resume) == (0.5, 6, str(run_dir / "last-12.ckpt"))
    with pytest.raises(UserError, match=r"--lr 0\.1 contradicts"):
        train_pl.options_of_task(task, own, ["--lr", "0.1"])
    (run_dir / "config_Vanilla_1.json").write_text('{"model_type": "somewhere:Net"}')
    with pytest.raises(UserError, match="repeat: --model_type somewhere:Net"):
        train_pl.options_of_task(task, own, [])
    (run_dir / "config_Vanilla_1.json").unlink()
    with pytest.raises(UserError, match="do not stand beside it"):
        train_pl.options_of_task(task, own, [])


def test_help_shows_the_options_of_lightning_and_of_the_task(capsys):
    with pytest.raises(SystemExit) as end:
        train_pl.main(["--help"])
    assert end.value.code == 0 and "--pl_args" in capsys.readouterr().out
    if train_pl.importlib.util.find_spec("lightning"):
        with pytest.raises(SystemExit) as end:
            train_pl.main([VANILLA, "--help"])
        said = capsys.readouterr().out
        assert end.value.code == 0 and "--pl_args" in said and "--label_smoothing" in said


def test_the_page_has_a_line_for_each_option_that_does_not_stay(root):
    page = (root / "docs" / "lightning.md").read_text()
    missing = [name for name in (*TAKEN_OVER, *REFUSED) if f"`--{name}`" not in page]
    assert missing == []


# ---- signals ---------------------------------------------------------------------------------------------------------
@needs_lightning
@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_its_status_and_leaves_what_can_be_evaluated(tmp_path, root, number, status):
    flags = ("--train_val_sample_rate", "165", "--n_epoch", "9999", "--patience", "0", "--gpu_devices", "cpu")
    run = subprocess.Popen(
        [sys.executable, "train_pl.py", "tests.small_tasks:TrainerSmall", *flags, "--output_dir", str(tmp_path)],
        cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/last-*.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.1)
        run.send_signal(number)
        said, _ = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == status and "Traceback" not in said and "To go on from there" in said
    assert {path.name for path in tmp_path.glob("*/*.pth")} == {"Vanilla_best_ckpt.pth", "Vanilla_last_ckpt.pth"}
