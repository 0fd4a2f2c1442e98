"""User-defined classes in whole runs: they train, resume exactly and are evaluated; a checkpoint imports none."""

import json
import shutil
import sys

import pytest

from callbacks.callback import Callback
from engine.checkpoints.file import load_checkpoint, save_checkpoint
from engine.options import foreign
from engine.registry import REGISTERED
from eval_vanilla import EvaluatorVanilla
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

PARTS = "examples.own_parts"
REFERENCES = (
    "--model_type", f"{PARTS}:SmallNet", "--set", "model_args.width=8", "data_args.num_samples=200",
    "--data_type", f"{PARTS}:bright_squares", "--optim", f"{PARTS}:SignSGD", "--loss_type", "torch.nn:MultiMarginLoss",
    "--loss_args", '{"margin": 0.5}', "--lr_scheduler", "StepLR", "--scheduler_args", '{"step_size": 1}',
    "--scheduler_step", "epoch", "--callbacks", f"{PARTS}:LargestNorm", "--log_every", "1",
)  # fmt: skip
NAMES = (
    "--import", PARTS, "--model_type", "small", "--loss_type", "margin", "--data_type", "squares", "--optim", "sign",
    "--callbacks", "largest", "--data_args", '{"num_samples": 200}',
)  # fmt: skip
REPEATED = (
    "--model_type", f"{PARTS}:SmallNet", "--data_type", f"{PARTS}:bright_squares", "--optim", f"{PARTS}:SignSGD",
    "--loss_type", "torch.nn:MultiMarginLoss", "--callbacks", f"{PARTS}:LargestNorm",
)  # fmt: skip


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Forget the names that a test registers."""
    for kind in REGISTERED:
        monkeypatch.setitem(REGISTERED, kind, {})
    sys.modules.pop(PARTS, None)
    yield
    sys.modules.pop(PARTS, None)


class StopAfter(Callback):
    """Asks to stop after an update."""

    def __init__(self, update: int):
        self.update = update

    def on_update_end(self, trainer, values) -> None:
        trainer.should_stop = trainer.progress.update == self.update


# ---- runs ------------------------------------------------------------------------------------------------------------
def test_parts_of_your_own_train_and_resume_bit_for_bit(train, build, differences, tmp_path):
    whole = train(*REFERENCES)
    state = whole.state_dict()
    assert whole.networks["model"].head.in_features == 8 and whole.criterion.margin == 0.5
    assert len(whole.datasets["train"]) == 200 and type(whole.optimizer).__name__ == "SignSGD"
    assert whole.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)  # two epochs, each a tenth
    assert state["options"]["model_args"] == {"width": 8} and state["schedulers"]["model"]["num_updates"] == 8

    part = build(*REFERENCES, callbacks=[StopAfter(3)])  # inside of the first epoch
    part.train()
    assert part.progress.update == 3
    copy = shutil.copy(part.checkpointer.path("last"), tmp_path)  # without the record of the run, which is signed
    with pytest.raises(UserError, match="names user code") as refusal:
        build("--resume", copy)
    assert all(text in str(refusal.value) for text in REPEATED)
    resumed = build("--resume", part.run_dir.path)
    resumed.train()
    assert differences(state, resumed.state_dict(), ignore=("seconds", "options", "callbacks")) == []


def test_registered_names_train_and_are_evaluated(command, tmp_path):
    done = command("trainer_vanilla.py", *NAMES, "--n_epoch", 1, "--output_dir", tmp_path / "runs", "--seed", 0)
    assert done.returncode == 0 and "The largest gradient norm" in done.stdout + done.stderr, done.stderr
    (path,) = (tmp_path / "runs").glob("*/small_best_ckpt.pth")
    with pytest.raises(UserError, match=f"repeat: --import {PARTS}$"):
        EvaluatorVanilla.parse_options(["--model_path", str(shutil.copy(path, tmp_path))])
    done = command("eval_vanilla.py", path.parent, "--save_path", tmp_path / "test")
    assert done.returncode == 0 and "Saved in" in done.stdout, done.stderr


def test_saved_options_with_parts_of_your_own_give_the_same_run(train, weights, differences):
    first = train(*REFERENCES)
    (config,) = first.run_dir.path.glob("config_*.json")
    assert differences(weights(first), weights(train("--config", config))) == []


@pytest.mark.slow
def test_two_processes_train_with_parts_of_your_own(command, tmp_path):
    flags = (*REFERENCES, "--nproc", 2, "--n_epoch", 1, "--output_dir", tmp_path, "--seed", 0)
    done = command("trainer_vanilla.py", *flags)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/SmallNet_last_ckpt.pth"))) == 1


def test_names_stand_in_the_help(capsys):
    with pytest.raises(SystemExit):
        TrainerVanilla.parse_options(["--import", PARTS, "--help", "all"])
    text = " ".join(capsys.readouterr().out.split())
    assert "one of Vanilla, LeNet, ResNet18, small" in text
    assert "further callbacks: one of largest; or MODULE:NAME" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model_type", "Vanila"), ["'Vanila' is not one of Vanilla", "did you mean 'Vanilla'", "MODULE:NAME"]),
        (("--model_type", "no_such:Net"), ["--model_type no_such:Net", "no module 'no_such'"]),
        (("--model_type", "os:no_such"), ["os has no 'no_such'"]),
        (("--model_type", "os:sep"), ["neither a class nor a function"]),
        (("--model_type", "os:getcwd"), ["getcwd makes no nn.Module"]),
        (("--model_type", "torchvision:no"), ["torchvision has no classifier 'no'"]),
        (("--loss_type", "os:getcwd"), ["getcwd makes no nn.Module"]),
        (("--data_type", "os:getcwd"), ["three data sets"]),
        (("--data_type", "torch.utils.data:TensorDataset"), ["must take `part`"]),
        (("--optim", "Adamx"), ["'Adamx' is not one of", "did you mean 'Adamax'", "of torch.optim: ASGD"]),
        (("--optim", "LBFGS"), ["'LBFGS' is not one of"]),
        (("--optim", "Muon", "--optim_args", '{"ns_stepz": 3}'), ["cannot be made", "ns_stepz"]),
        (("--optim", "os:getcwd"), ["getcwd cannot be made"]),
        (("--optim_args", '{"betes": [0.9, 0.95]}'), ["AdamW takes no argument 'betes'", "did you mean 'betas'"]),
        (("--optim_args", '{"betas": [2, 0.95]}'), ["AdamW cannot be made", "beta"]),
        (("--model_args", '{"widht": 3}'), ["VanillaModel takes no argument 'widht'", "n_channels, n_classes, size"]),
        (("--data_args", '{"a": 3}'), ["build_fashion_mnist_sample takes no argument 'a'"]),
        (("--loss_args", '{"reduktion": "sum"}'), ["takes no argument 'reduktion'", "it takes n_classes"]),
        (("--scheduler_args", '{"gamma": 3}'), ["not for --lr_scheduler cosine"]),
        (("--lr_scheduler", "StepLR"), ["StepLR needs the argument step_size", "--scheduler_args"]),
        (("--lr_scheduler", "StepLR", "--set", "scheduler_args.step=3"), ["takes no argument 'step'", "step_size"]),
        (("--lr_scheduler", "StepLR", "--warmup_epoch", "1"), ["--warmup_epoch is for"]),
        (("--lr_scheduler", "LambdaLR"), ["not one of"]),
        (("--callbacks", "os:getcwd"), ["no class derived from"]),
        (("--callbacks", "largest2"), ["'largest2' is not MODULE:NAME of your own"]),
        (("--scheduler_step", "batch"), ["'batch' is not one of update, epoch"]),
        (("--data_type", f"{PARTS}:bright_squares", "--val_split", "0.3"), ["--val_split has no effect: the data"]),
        (("--loss_type", "Focal", "--label_smoothing", "0.2"), ["--label_smoothing 0.2 has no effect with"]),
        (("--import", "no_such_module"), ["--import no_such_module", "no module"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_error_is_one_line_before_anything_is_written(flags, words, tmp_path, capfd):
    with pytest.raises(SystemExit) as stop:
        TrainerVanilla.main(["--gpu_devices", "cpu", "--output_dir", str(tmp_path / "runs"), *flags])
    said = capfd.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and "Traceback" not in said, said
    for word in words:
        assert word in said
    assert not list(tmp_path.glob("runs/*"))


def test_a_loss_of_your_own_may_have_a_weight(build):
    criterion = build("--loss_type", "CE:0.5", "torch.nn:MultiMarginLoss:2").criterion
    assert list(criterion.losses) == ["CE", "MultiMarginLoss"] and criterion.weights["MultiMarginLoss"] == 2
    with pytest.raises(UserError, match="there is no loss 'margin'; there are CE, MultiMarginLoss"):
        build("--loss_type", "CE:0.5", "torch.nn:MultiMarginLoss:2", "--loss_args", '{"margin": 1}')


# ---- a checkpoint imports nothing ------------------------------------------------------------------------------------
CANARY = """
import pathlib

def run(*arguments, **keywords):
    pathlib.Path({path!r}).write_text("executed")

run()
"""
OPTIONS = [
    *((name, value) for name in ("model_type", "data_type", "loss_type", "optim", "lr_scheduler", "callbacks")
      for value in ("evil_module:run", "os:system")),
    ("import", ["evil_module"]), ("callbacks", ["evil_module:run", "os:system"]), ("import", "evil_module"),
    ("loss_args", {"inner": {"name": "evil_module:run"}}), ("loss_type", "evil_module:run:0.5"),
    ("loss_type", ["CE:1.0", "evil_module:run:0.5"]),
]  # fmt: skip


@pytest.fixture
def attack(vanilla_run, tmp_path, monkeypatch):
    """A function that writes a run whose checkpoint names code in an option, and returns its checkpoint.

    The module is on the path and in the current directory, and writes a file as soon as it is imported.
    """
    (tmp_path / "evil_module.py").write_text(CANARY.format(path=str(tmp_path / "canary")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("os.system", lambda *a, **k: (tmp_path / "canary").write_text("executed"))

    def attack(name, value, in_run=True, **more):
        state = load_checkpoint(vanilla_run / "Vanilla_last_ckpt.pth")
        run = tmp_path / vanilla_run.name
        shutil.copytree(vanilla_run, run) if in_run else run.mkdir()
        for path in run.glob("*ckpt.pth"):
            path.unlink()
        options = {**state["options"], name: value, **more}
        save_checkpoint({**state, "options": options}, run / "Vanilla_last_ckpt.pth")
        for path in run.glob("config_*.json"):
            path.write_text(json.dumps(options))
        (run / "finished.json").unlink(missing_ok=True)
        return run / "Vanilla_last_ckpt.pth"

    yield attack
    sys.modules.pop("evil_module", None)


def give_to_all_programs(path, tmp_path, *flags) -> list[int]:
    own = ["--gpu_devices", "cpu", *flags]
    uses = [
        (TrainerVanilla, "--resume", path), (TrainerVanilla, "--resume", path.parent),
        (TrainerVanilla, "--resume", "auto", "--output_dir", tmp_path),
        (TrainerVanilla, "--pretrained", "--model_path", path, "--debug", "--output_dir", tmp_path / "new"),
        (EvaluatorVanilla, "--model_path", path, "--save_path", tmp_path / "test", "--no-viz"),
    ]
    statuses = []
    for program, *argv in uses:
        try:
            program.main([*map(str, argv), *own])
            statuses.append(0)
        except SystemExit as end:
            statuses.append(end.code)
    return statuses


@pytest.mark.parametrize(("name", "value"), OPTIONS, ids=lambda value: str(value))
def test_what_a_checkpoint_names_is_not_imported(attack, name, value, tmp_path, capfd):
    path = attack(name, value)
    resumed, of_run, auto, pretrained, evaluated = give_to_all_programs(path, tmp_path)
    said = capfd.readouterr().err
    assert not (tmp_path / "canary").exists() and "evil_module" not in sys.modules
    of_training = name in ("optim", "lr_scheduler", "callbacks")
    assert (resumed, of_run, auto, evaluated) == (2, 2, 2, 0 if of_training else 2) and pretrained == 0, said
    assert "which is used only when you name it yourself" in said and f"--{name} " in said
    assert "Traceback" not in said


def test_the_attack_is_one(attack, tmp_path, monkeypatch, capfd):
    """Without the refusal it runs."""
    path = attack("model_type", "evil_module:run")
    monkeypatch.setattr(foreign, "is_data", lambda *arguments: True)
    give_to_all_programs(path, tmp_path)
    assert (tmp_path / "canary").exists()


def test_it_is_imported_when_the_user_names_it(attack, tmp_path, capfd):
    path = attack("import", ["evil_module"])
    config = tmp_path / "mine.yaml"
    config.write_text("import: evil_module")
    TrainerVanilla.parse_options(["--resume", str(path), "--config", str(config)])
    assert (tmp_path / "canary").exists()


def test_an_option_of_the_user_takes_the_place_of_what_the_checkpoint_names(attack, tmp_path):
    path = attack("data_type", "evil_module:run")
    opt = EvaluatorVanilla.parse_options(["--model_path", str(path), "--data_type", "FashionMNISTSample"])
    assert opt.data_type == "FashionMNISTSample" and not (tmp_path / "canary").exists()


@pytest.mark.parametrize("arguments", [{"cache_dir": "theirs"}, {"names": "/etc/passwd"}, {"a": [{"b": "http:x"}]}])
def test_a_checkpoint_says_neither_where_data_is_written_nor_what_else_is_read(attack, arguments):
    path = attack("data_args", {"cache": True, **arguments})
    with pytest.raises(UserError, match="repeat: --data_args"):
        EvaluatorVanilla.parse_options(["--model_path", str(path)])
    repeated = {"cache": True, **arguments}
    flags = ["--model_path", str(path), "--data_args", json.dumps(repeated)]
    assert EvaluatorVanilla.parse_options(flags).data_args == repeated


def test_arguments_of_a_checkpoint_from_elsewhere_for_your_own_code_are_repeated(attack):
    path = attack("data_type", f"{PARTS}:bright_squares", in_run=False, data_args={"names": "a/b"})
    flags = ["--model_path", str(path), "--data_type", f"{PARTS}:bright_squares"]
    with pytest.raises(UserError, match="--data_args"):
        EvaluatorVanilla.parse_options(flags)
    flags += ["--data_args", '{"num_samples": 20}']
    assert EvaluatorVanilla.parse_options(flags).data_args == {"num_samples": 20}
