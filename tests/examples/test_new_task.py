"""The task from nothing learns, and is evaluated by its own file; and a task may have any name."""

import importlib
import sys
from types import ModuleType

import pytest

from engine.registry import REGISTERED
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

OWN = ("--data_type", "examples.own_parts:bright_squares", "--gpu_devices", "cpu", "--seed", "0", "--debug")


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Forget the names that a test registers, and those that other tests' modules have."""
    for kind in REGISTERED:
        monkeypatch.setitem(REGISTERED, kind, {})


@pytest.fixture
def new_task(monkeypatch) -> ModuleType:
    monkeypatch.delitem(sys.modules, "examples.new_task", raising=False)
    return importlib.import_module("examples.new_task")


@pytest.fixture
def named(new_task) -> type:
    """The task under a name that no data, network or loss of the template is for."""
    evaluator = type("EvaluatorNamed", (new_task.EvaluatorWaves,), {"task": "regression"})
    return type("TrainerNamed", (new_task.TrainerWaves,), {"evaluator_class": evaluator, "__doc__": "Named."})


def test_it_learns_and_is_evaluated(command, tmp_path, root):
    done = command("-m", "examples.new_task", "--seed", 0, "--n_epoch", 8, cwd=tmp_path, PYTHONPATH=str(root))
    assert done.returncode == 0, done.stderr
    (best,) = tmp_path.glob("Results/Waves/*/wave_net_best_ckpt.pth")
    done = command("-m", "examples.new_task", "evaluate", "--model_path", best, cwd=tmp_path, PYTHONPATH=str(root))
    assert done.returncode == 0, done.stderr
    (mae,) = (float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("  mae "))
    assert mae < 0.5  # of frequencies from 1 to 8; to guess their mean is 1.75 away


def test_a_task_may_have_any_name(named, tmp_path):
    opt = named.parse_options(["--debug", "--seed=0", f"--output_dir={tmp_path}", "--gpu_devices=cpu"])
    named(opt).train()
    assert list(tmp_path.glob("*/wave_net_best_ckpt.pth"))


@pytest.mark.parametrize("name", ["data_type", "model_type"])
def test_what_a_task_lacks_is_told(named, tmp_path, name):
    del REGISTERED[name.removesuffix("_type")]["waves" if name == "data_type" else "wave_net"]
    named.defaults = {key: value for key, value in named.defaults.items() if key != name}
    opt = named.parse_options([f"--output_dir={tmp_path}"])
    assert getattr(opt, name) is None
    with pytest.raises(UserError, match=f"--{name} is needed: MODULE:NAME"):
        named(opt)


@pytest.mark.parametrize("n_classes", [3, 20])
def test_the_vanilla_task_calls_classes_of_other_data_by_number(tmp_path, n_classes):
    opt = TrainerVanilla.parse_options([*OWN, "--n_classes", str(n_classes), "--output_dir", str(tmp_path)])
    trainer = TrainerVanilla(opt)
    assert trainer.evaluator.classes == [str(number) for number in range(n_classes)]
    assert trainer.evaluator.caption(1, 2) == "said 1, is 2"
    trainer.train()
