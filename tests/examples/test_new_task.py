"""The task from nothing learns, and is evaluated by its own file; and a task may have any name."""

import pytest

from examples.new_task import EvaluatorWaves, TrainerWaves
from examples.own_parts import bright_squares
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

OWN = ("--data_type", "examples.own_parts:bright_squares", "--gpu_devices", "cpu", "--seed", "0", "--debug")


class EvaluatorNamed(EvaluatorWaves):
    """For a task of a name that no data, network or loss of the template is for."""

    task = "regression"


class TrainerNamed(TrainerWaves):
    """See `EvaluatorNamed`."""

    evaluator_class = EvaluatorNamed


def test_it_learns_and_is_evaluated(command, tmp_path, root):
    done = command("-m", "examples.new_task", "--seed", 0, "--n_epoch", 8, cwd=tmp_path, PYTHONPATH=str(root))
    assert done.returncode == 0, done.stderr
    (best,) = tmp_path.glob("Results/Waves/*/wave_net_best_ckpt.pth")
    done = command("-m", "examples.new_task", "evaluate", "--model_path", best, cwd=tmp_path, PYTHONPATH=str(root))
    assert done.returncode == 0, done.stderr
    (mae,) = (float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("  mae "))
    assert mae < 0.5  # of frequencies from 1 to 8; to guess their mean is 1.75 away


def test_a_task_may_have_any_name(tmp_path):
    opt = TrainerNamed.parse_options(["--debug", "--seed=0", f"--output_dir={tmp_path}", "--gpu_devices=cpu"])
    TrainerNamed(opt).train()
    assert list(tmp_path.glob("*/wave_net_best_ckpt.pth"))


@pytest.mark.parametrize("name", ["data_type", "model_type"])
def test_what_a_task_lacks_is_told(tmp_path, name):
    class Lacking(TrainerNamed):
        defaults = {key: value for key, value in TrainerNamed.defaults.items() if key != name}

    opt = Lacking.parse_options([f"--output_dir={tmp_path}"])
    setattr(opt, name, None)  # what it is when nothing is registered
    with pytest.raises(UserError, match=f"--{name} is needed: MODULE:NAME"):
        Lacking(opt)


@pytest.mark.parametrize("n_classes", [3, 20])
def test_the_vanilla_task_calls_classes_of_other_data_by_number(tmp_path, n_classes):
    assert bright_squares(3, 0)
    opt = TrainerVanilla.parse_options([*OWN, "--n_classes", str(n_classes), "--output_dir", str(tmp_path)])
    trainer = TrainerVanilla(opt)
    assert trainer.evaluator.classes == [str(number) for number in range(n_classes)]
    assert trainer.evaluator.caption(1, 2) == "said 1, is 2"
    trainer.train()
