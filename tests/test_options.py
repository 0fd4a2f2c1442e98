"""The options are listed once, resolved once, and then read-only."""

from pathlib import Path

import pytest

from engine.nan_guard import POLICIES
from engine.options.parser import OptionParser, Options, changed
from eval_vanilla import EvaluatorVanilla
from extras.initialize import INITS
from options import MOVED, add_train_options
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError


def test_resolved_options_are_read_only(vanilla_run):
    model_path = str(next(vanilla_run.glob("*_best_ckpt.pth")))
    for opt in (TrainerVanilla.parse_options([]), EvaluatorVanilla.parse_options(["--model_path", model_path])):
        assert isinstance(opt, Options)
        with pytest.raises(AttributeError, match=r"changed\(opt, n_classes=\.\.\.\)"):
            opt.n_classes = 3
        assert changed(opt, n_classes=3).n_classes == 3 and opt.n_classes in (None, 10)


def test_listed_choices_are_those_that_there_are():
    parser = OptionParser()
    add_train_options(parser)
    for option, names in (("init", INITS), ("parallel", ("none", "dp", "ddp", "fsdp")), ("nan_policy", POLICIES)):
        assert [parser.known[option].type(name) for name in names] == list(names)
        with pytest.raises(Exception, match=rf"is not one of {', '.join(names)}"):
            parser.known[option].type("no such name")


def test_every_program_answers_early(root):
    programs = [path for path in root.glob("*.py") if path.name.startswith(("trainer_", "eval_"))]
    assert len(programs) == 6
    for path in programs:
        assert "answer_early(__file__)" in Path(path).read_text(encoding="utf-8"), path


def test_an_option_that_became_a_program_is_refused_with_the_new_command(root, capsys):
    for program in MOVED:
        assert (root / "tools" / f"{program}.py").exists()
    for option in ("doctor", "find_lr_range", "kill_at", "replay", "trace", "verify_resume"):
        with pytest.raises(SystemExit) as stop:
            TrainerVanilla.parse_options([f"--{option}", "3"])
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.count("\n") == 1
        assert f"--{option} has become a program: python -m tools.{option[:4]}" in said


def test_several_gpus_without_a_use_for_them_are_refused(vanilla_run):
    with pytest.raises(UserError, match="--gpu_devices 0,1 names several GPUs: add --parallel ddp"):
        TrainerVanilla.parse_options(["--gpu_devices", "0,1"])
    assert TrainerVanilla.parse_options(["--gpu_devices", "0,1", "--parallel", "dp"]).gpu_devices == "0,1"
    model_path = str(next(vanilla_run.glob("*_best_ckpt.pth")))
    with pytest.raises(UserError, match="an evaluation uses one"):
        EvaluatorVanilla.parse_options(["--model_path", model_path, "--gpu_devices", "0,1"])
