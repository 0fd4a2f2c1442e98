"""The class that a program defines, found by the program's name."""

import pickle
import sys

import pytest
from torch import nn

from tools.task_program import LOADED, load_class
from utils.errors import UserError
from utils.meter import Meter

TEXT = "from utils.meter import Meter\nfrom beside import VALUE\n\n\nclass Mine(Meter):\n    value = VALUE\n"


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A function that writes a program, and a file beside it, and returns its name."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    (tmp_path / "beside.py").write_text("VALUE = 7\n")

    def write(text: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    yield write
    sys.modules.pop(LOADED, None)


def test_the_class_of_a_file_is_found_and_can_be_used_and_sent_to_another_process(program):
    found = load_class(program(f"{TEXT}\nif __name__ == '__main__':\n    raise SystemExit\n"), Meter, "task")
    assert (found.__name__, found.value) == ("Mine", 7)
    assert pickle.loads(pickle.dumps(found)) is found


def test_a_module_and_a_class_are_found_by_name():
    assert load_class("examples.own_task", nn.Module, "task").__name__ == "FocalLoss"
    assert load_class("utils.meter:Meter", object, "task") is Meter


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "defines 0 trainers"),
        (f"{TEXT}\nclass Other(Mine):\n    pass\n", r"defines 2 trainers \(Mine, Other\)"),
        ("import nowhere\n", "No module named 'nowhere'"), ("x = (\n", "SyntaxError"), ("1 / 0\n", "division by zero"),
    ],
)  # fmt: skip
def test_a_program_without_one_class_is_refused(program, text, said):
    with pytest.raises(UserError, match=said):
        load_class(program(text), Meter, "task")


def test_names_that_are_near_are_told(program):
    path = program(TEXT, "trainer_mine.py")
    with pytest.raises(UserError, match=r"did you mean 'trainer_mine\.py'"):
        load_class(path.replace("mine.py", "mien.py"), Meter, "task")
    with pytest.raises(UserError, match="did you mean 'Meter'"):
        load_class("utils.meter:Metr", Meter, "task")
    with pytest.raises(UserError, match="is no class derived from Meter"):
        load_class("utils.seed:mix", Meter, "task")
