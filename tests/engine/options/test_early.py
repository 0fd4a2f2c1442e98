"""--help and a wrong option are answered before torch is imported, with the words of the parser that comes later."""

import subprocess
import sys

import pytest

from engine.options.early import read_main_class
from eval_seg_on_carvana import EvaluatorSeg
from eval_vanilla import EvaluatorVanilla
from extras.gan.eval_gan import EvaluatorGAN
from extras.gan.trainer_gan import TrainerGAN
from options import check_early, fits_every_task, train_parser
from options import test_parser as parser_of_test
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla

TASKS = {
    "trainer_vanilla": TrainerVanilla, "trainer_seg_on_carvana": TrainerSeg, "trainer_gan": TrainerGAN,
    "eval_vanilla": EvaluatorVanilla, "eval_seg_on_carvana": EvaluatorSeg, "eval_gan": EvaluatorGAN,
}  # fmt: skip
HEAVY = ("torch", "torchvision", "numpy", "matplotlib")
# Runs a program as Python does, and prints which of HEAVY it has imported when it ends.
RUN = f"""if True:
    import atexit, runpy, sys
    atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")"""


@pytest.mark.parametrize(
    ("argv", "status", "in_line"),
    [
        ("trainer_vanilla.py --help", 0, ""),
        ("trainer_vanilla.py --lrr 1", 2, "unknown option '--lrr' (did you mean '--lr'?)"),
        ("trainer_vanilla.py --optim adamw", 2, "did you mean 'adamW'"),
        ("trainer_seg_on_carvana.py --metrics dise", 2, "did you mean 'dice'"),
        ("trainer_gan.py --beta1 1", 2, "'1' is not a finite number"),
        ("eval_vanilla.py --split tset", 2, "did you mean 'test'"),
    ],
)
def test_torch_is_not_imported_before_the_parser_has_answered(root, argv, status, in_line):
    done = subprocess.run(
        [sys.executable, "-c", RUN, *argv.split()], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (status, "[]")
    assert in_line in done.stderr and done.stderr.count("\n") == (1 if status == 0 else 2)


@pytest.mark.parametrize("program", TASKS)
def test_the_text_of_a_program_shows_the_options_that_it_has(root, program):
    task, read = TASKS[program], read_main_class(root / f"{program}.py")
    make = train_parser if program.startswith("trainer") else parser_of_test
    assert make(read).format_help() == make(task).format_help()
    assert (read.__doc__, make(read).passed_over) == (task.__doc__, make(task).passed_over)


@pytest.mark.parametrize(
    "text",
    [
        "from engine.registry import register_model\n@register_model('mine')\nclass Net: ...\n",
        "import my_own_module\n",
        "from my_own_module import TrainerBase\n",
        "print(TrainerBase)\n",
    ],
)
def test_a_program_that_may_add_options_in_another_way_is_left_to_the_later_parser(tmp_path, text):
    path = tmp_path / "trainer_mine.py"
    end = "class Mine(TrainerBase): ...\nif __name__ == '__main__':\n    Mine.main()\n"
    path.write_text(f"from trainer import TrainerBase\n{text}{end}")
    check_early(path, ["--no_such_option"])
    path.write_text(f"from trainer import TrainerBase\n{end}")
    with pytest.raises(SystemExit):
        check_early(path, ["--no_such_option"])


def test_names_that_other_modules_may_register_are_left_to_the_later_parser(root):
    program = root / "trainer_vanilla.py"
    check_early(program, ["--import", "examples.own_parts", "--model_type", "small"])
    check_early(program, ["--config", "mine.yaml", "--model_type", "small"])
    with pytest.raises(SystemExit):
        check_early(program, ["--model_type", "small"])


def test_options_of_a_module_beside_the_program_are_read(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom engine.options.parser import number\nfrom eval import EvaluatorBase\n"
        "class Mine(EvaluatorBase):\n    task = 'mine'\n    zeros = torch.zeros(1)\n    @classmethod\n"
        "    def add_options(cls, parser):\n        parser.add_argument('--own', type=number(int), default=3)\n"
    )
    program = tmp_path / "trainer_mine.py"
    program.write_text(
        "from trainer import TrainerBase\nfrom mine import Mine\n"
        "class Task(TrainerBase):\n    evaluator_class = Mine\n    defaults = {'own': 7}\n"
        "if __name__ == '__main__':\n    Task.main()\n"
    )
    assert train_parser(read_main_class(program)).get_default("own") == 7


def test_the_text_of_a_program_is_read_only_for_what_other_tasks_would_take_otherwise():
    assert fits_every_task([]) and fits_every_task(["--lr", "0.1", "--n_epoch=3", "--no-debug", "--config", "a.yaml"])
    for argv in (["--help"], ["--lr", "x"], ["--lrr", "1"], ["--label_smoothing", "0"], ["--model_type=LeNet"], ["x"]):
        assert not fits_every_task(argv), argv
