"""The programs as a user starts them: in processes of their own."""

import json
import re

import pytest

from tools.synthetic.make_carvana_like import make_carvana_like
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla

PROGRAMS = ["trainer_vanilla.py", "eval_vanilla.py", "trainer_seg_on_carvana.py", "eval_seg_on_carvana.py"]


def only_directory(parent):
    (directory,) = parent.iterdir()
    return directory


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_explains_every_option(command, program):
    done = command(program, "--help", "all")
    assert (done.returncode, done.stderr) == (0, "")
    entries = re.split(r"\n  (?=-)", done.stdout.split("\noptions:\n")[1])
    assert len(entries) > 25
    for entry in entries:
        words = entry.split()
        assert len(words) > 3, f"nothing is said about {words[0]}"
    assert "--seed N" in done.stdout
    assert ("--batch_size N" in done.stdout) == program.startswith("trainer")


def test_a_classifier_is_trained_and_evaluated(command, tmp_path):
    done = command("trainer_vanilla.py", "--debug", "--output_dir", tmp_path / "runs")
    assert (done.returncode, done.stderr) == (0, "")
    run = only_directory(tmp_path / "runs")
    assert f"Best checkpoint: {run / 'Vanilla_best_ckpt.pth'}" in done.stdout
    names = {path.name for path in run.iterdir()}
    assert {"metrics.csv", "summary", "split.json", "provenance.json", "Vanilla_last_ckpt.pth"} <= names
    assert "trainer_vanilla.py --debug" in json.loads((run / "provenance.json").read_text())["command"]

    flags = ("--model_path", run / "Vanilla_best_ckpt.pth", "--save_path", tmp_path / "test")
    done = command("eval_vanilla.py", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(re.findall('^Predicted: ".*", Actual: ".*"$', done.stdout, flags=re.MULTILINE)) == 50


def test_a_segmentation_is_trained_and_evaluated(command, cars, small, tmp_path):
    done = command("trainer_seg_on_carvana.py", *small(TrainerSeg), "--debug", "--output_dir", tmp_path / "runs")
    assert (done.returncode, done.stderr) == (0, "")
    best = only_directory(tmp_path / "runs") / "UNet_best_ckpt.pth"
    done = command("eval_seg_on_carvana.py", "--model_path", best, "--save_path", tmp_path / "test", "--viz", "True")
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "test").rglob("*_pred.png"))


def test_a_program_runs_from_any_directory(command, root, tmp_path):
    done = command(root / "trainer_vanilla.py", "--debug", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    run = only_directory(tmp_path / "Results" / "Vanilla")  # the default --output_dir, from where the user stands
    done = command(root / "eval_vanilla.py", "--model_path", run / "Vanilla_last_ckpt.pth", "--no-viz", cwd=tmp_path)
    assert done.returncode == 0
    assert (only_directory(tmp_path / "test_viz") / "results.json").exists()


@pytest.mark.parametrize(
    ("program", "flags", "said"),
    [
        ("trainer_vanilla.py", ("--n_epochs", "3"), "--n_epoch"),
        ("trainer_vanilla.py", ("--lr", "nan"), "'nan'"),
        ("eval_vanilla.py", ("--model_path", "nowhere.pth"), "nowhere.pth"),
        ("trainer_seg_on_carvana.py", ("--data_dir", "nowhere"), "nowhere"),
    ],
)
def test_what_the_user_can_mend_ends_with_status_2_and_no_traceback(command, program, flags, said):
    done = command(program, *flags)
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and len(done.stderr.splitlines()) <= 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith(f"{program}: error: ")


def test_an_unreadable_image_in_a_loading_process_ends_with_status_2(command, small, tmp_path):
    make_carvana_like(tmp_path / "cars", cars=6, views=4, size=(96, 64))
    for path in (tmp_path / "cars" / "train").iterdir():
        path.write_bytes(path.read_bytes()[:500])
    flags = [*small(TrainerSeg), "--data_dir", tmp_path / "cars", "--num_workers", "2"]
    done = command("trainer_seg_on_carvana.py", *flags, "--output_dir", tmp_path / "runs")
    assert done.returncode == 2, done.stderr
    assert ".jpg cannot be read as an image" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_fault_of_a_callback_is_one_line_after_a_checkpoint_and_a_traceback_in_the_log(command, root, tmp_path):
    script = tmp_path / "faulty.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(root)!r})\n"
        "from trainer_vanilla import TrainerVanilla\n"
        "from callbacks.callback import Callback\n"
        "class Faulty(Callback):\n"
        "    def on_log(self, trainer, values):\n"
        "        raise ZeroDivisionError('of the user')\n"
        "class Task(TrainerVanilla):\n"
        "    def build_callbacks(self):\n"
        "        return [*super().build_callbacks(), Faulty()]\n"
        "Task.main()\n"
    )
    done = command(script, "--debug", "--log_every", "2", "--output_dir", tmp_path / "runs")
    assert done.returncode == 2
    (said,) = [line for line in done.stderr.splitlines() if "ZeroDivisionError: of the user" in line]
    assert "faulty.py:7" in said and "Traceback" not in done.stderr
    run_dir = only_directory(tmp_path / "runs")
    assert (run_dir / "Vanilla_InT_ckpt.pth").exists()
    (log,) = run_dir.glob("*_log.txt")
    assert "Traceback" in log.read_text()


def test_data_are_made_by_a_command(command, tmp_path):
    flags = ("--data_dir", tmp_path / "cars", "--cars", "2", "--views", "3", "--size", "64x48")
    done = command("-m", "tools.synthetic.make_carvana_like", *flags)
    assert done.returncode == 0
    assert len(list((tmp_path / "cars" / "train").iterdir())) == 6


# ---- what is imported when -------------------------------------------------------------------------------------------
HEAVY = {"matplotlib", "torchvision", "tensorboard", "wandb", "optuna", "lightning", "sympy", "torch._dynamo"}
UNTIL_THE_FIRST_UPDATE = """
import os, runpy, sys, trainer
make_update = trainer.TrainerBase.train_update
def train_update(self, update):
    make_update(self, update)
    print("first update, with", *sys.modules, flush=True)
    os._exit(0)
trainer.TrainerBase.train_update = train_update
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
UNTIL_THE_END = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("end, with", *sys.modules)
"""


def imported(done) -> set[str]:
    """The modules that the last line of a program lists."""
    modules = set(done.stdout.splitlines()[-1].split())
    assert "torch" in modules, done.stderr
    return modules


@pytest.mark.parametrize("task", [TrainerVanilla, TrainerSeg])
def test_nothing_heavy_is_imported_before_the_first_update(fresh_python, small, tmp_path, task):
    done = fresh_python("-c", UNTIL_THE_FIRST_UPDATE, f"{task.__module__}.py", *small(task), "--output_dir", tmp_path)
    assert imported(done) & HEAVY == set()


def test_a_run_and_its_resume_never_import_the_compiler(fresh_python, tmp_path):
    flags = ("--debug", "--output_dir", tmp_path)
    done = fresh_python("-c", UNTIL_THE_END, "trainer_vanilla.py", *flags)
    assert {"torch._dynamo", "tensorboard"} & imported(done) == {"tensorboard"}  # which writes the curves by then
    done = fresh_python("-c", UNTIL_THE_END, "trainer_vanilla.py", "--resume", only_directory(tmp_path))
    assert done.returncode == 0 and "torch._dynamo" not in imported(done)
