"""The order of the house: who imports whom, how long a file may be, and that nothing is promised and not kept."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.options.parser import OptionParser
from engine.registry import BUILT_INS
from eval_seg_on_carvana import EvaluatorSeg
from eval_vanilla import EvaluatorVanilla
from extras.gan.eval_gan import EvaluatorGAN
from extras.gan.trainer_gan import TrainerGAN
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (  # an import goes to a lower floor, or to a neighbour on the same one
    {"utils"}, {"engine"}, {"data", "model", "loss", "callbacks"},
    {"option_list", "base_options", "parts"},  # what eval.py and trainer.py are made with
    {"eval"}, {"trainer"}, {"tasks"}, {"tools", "extras"}, {"examples", "benchmarks"},
)  # fmt: skip
OUTSIDE = {"tests", "docs", "benchmarks"}  # not counted as runtime code
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "PyYAML"}  # imported by another name than installed
OPTIONAL = {"wandb", "optuna", "lightning", "webdataset", "timm"}
HEAVY = {"matplotlib", "torchvision", "tensorboard", "tqdm", "yaml", *OPTIONAL}


def python_files() -> list[Path]:
    """The Python files of the house, relative to its root, without hidden directories and results."""
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    skipped = {"Results", "Dataset", "test_viz"}
    return sorted(path for path in paths if not any(part[0] == "." or part in skipped for part in path.parts))


RUNTIME = [path for path in python_files() if path.parts[0] not in OUTSIDE and path.name != "conftest.py"]
TREES = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in python_files()}
MODULES = {".".join(path.with_suffix("").parts): path for path in python_files()}


def imports(tree: ast.Module, only_top: bool = False) -> Iterator[str]:
    """Yield the full name of every module that a file imports; of `from a import b`, both "a" and "a.b"."""
    for node in tree.body if only_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import is written in full, so that a file can be found by its name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(module: str) -> int:
    """The floor on which a module of this house stands."""
    room = module.split(".")[0]
    is_task = room.startswith(("trainer_", "eval_"))
    is_task |= room in ("sweep", "train_pl")
    return next(i for i, rooms in enumerate(FLOORS) if ("tasks" if is_task else room) in rooms)


def graph(trees: dict[str, ast.Module], only_top: bool = False) -> dict[str, set[str]]:
    """The modules of the house that each module imports."""
    return {name: {found for found in imports(tree, only_top) if found in trees} for name, tree in trees.items()}


def upward(edges: dict[str, set[str]]) -> list[str]:
    return [f"{a} -> {b}" for a, targets in edges.items() for b in targets if floor(b) > floor(a)]


def reachable(edges: dict[str, set[str]], start: str) -> set[str]:
    """The modules that one needs, itself included if it is part of a circle."""
    found, left = set(), [start]
    while left:
        for module in edges[left.pop()] - found:
            found.add(module)
            left.append(module)
    return found


HOUSE = graph({name: TREES[path] for name, path in MODULES.items() if path.parts[0] != "tests" and name != "conftest"})


# ---- imports ---------------------------------------------------------------------------------------------------------
def test_every_file_has_a_floor():
    assert {floor(module) for module in HOUSE} >= set(range(6))


@pytest.mark.xfail(reason="the core still imports some of the extras and tools", strict=False)
def test_imports_go_down():
    assert upward(HOUSE) == []


def test_there_are_no_circles():
    assert [module for module in HOUSE if module in reachable(HOUSE, module)] == []


def test_an_import_upward_and_a_circle_would_be_seen():
    texts = {"utils.a": "def f():\n    import trainer", "trainer": "from utils import a", "loss.b": "import model.c",
             "model.c": "from loss.b import x"}  # fmt: skip
    edges = graph({name: ast.parse(text) for name, text in texts.items()})
    assert upward(edges) == ["utils.a -> trainer"]
    assert [module for module in edges if module in reachable(edges, module)] == list(texts)


def test_heavy_packages_are_imported_where_they_are_used():
    # tools.synthetic.make_carvana_like and tools.synthetic.make_sample are programs of their own.
    needed = {f"{kind}_{task}" for kind in ("trainer", "eval") for task in ("vanilla", "seg_on_carvana", "gan")}
    at_start = graph({name: TREES[path] for name, path in MODULES.items() if name in HOUSE}, only_top=True)
    needed |= {module for program in needed for module in reachable(at_start, program)}
    found = {name: {module.split(".")[0] for module in imports(TREES[MODULES[name]], only_top=True)} for name in needed}
    assert {name: heavy for name, modules in found.items() if (heavy := modules & HEAVY)} == {}


def test_liftable_parts_do_not_take_all_options():
    liftable = [path for path in RUNTIME if path.parts[0] in ("utils", "model", "loss", "callbacks")]
    # The selectors turn options into arguments, and engine/options/parser.py is about options.
    liftable = [path for path in liftable if not path.stem.endswith("_entry") and path.name != "options.py"]
    takes_opt = [
        f"{path}:{node.lineno}"
        for path in liftable
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.arg) and node.arg in ("opt", "opts")
    ]
    assert takes_opt == []


def test_no_two_test_files_have_one_name():
    """Pytest imports a test file by its base name where its directory is no package: the second would be refused."""
    names = [path.name for path in python_files() if path.parts[0] == "tests" and path.name.startswith("test_")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


# ---- lengths ---------------------------------------------------------------------------------------------------------
def num_code_lines(path: Path | str) -> int:
    """Lines of code: without blank ones, comments and docstrings, which should not be saved on."""
    tree, text = TREES[Path(path)], (ROOT / path).read_text(encoding="utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in empty]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - {line for doc in docs for line in range(doc.lineno, doc.end_lineno + 1)})


def num_lines(path: Path) -> int:
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(("path", "most"), [("trainer.py", 350), ("eval.py", 200)])
def test_the_loops_stay_short(path, most):
    assert num_lines(path) <= most


def test_no_file_is_too_long():
    too_long = {str(path): num_lines(path) for path in python_files() if path.parts[0] not in ("tests", "docs")}
    assert {path: count for path, count in too_long.items() if count > 400} == {}


def long_functions(tree: ast.Module, most: int = 60) -> list[str]:
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [f"{node.name}: {n}" for node in functions if (n := node.end_lineno - node.lineno + 1) > most]


def test_no_function_is_too_long():
    found = {str(path): long_functions(TREES[path]) for path in python_files() if path.parts[0] != "tests"}
    assert {path: functions for path, functions in found.items() if functions} == {}


def test_a_long_function_would_be_seen():
    text = "class C:\n    def f(self):\n" + "        pass\n" * 60
    assert long_functions(ast.parse(text)) == ["f: 61"]


def test_the_code_as_a_whole_stays_readable():
    assert sum(map(num_code_lines, RUNTIME)) <= 14600


EXECUTED = """
import os, runpy, sys
root, seen = os.getcwd() + os.sep, set()
def watch(frame, event, argument):
    if not frame.f_code.co_filename.startswith(root) or "site-packages" in frame.f_code.co_filename:
        return None
    seen.add((frame.f_code.co_filename, frame.f_lineno))
    return watch
sys.argv = ["trainer_vanilla.py", *sys.argv[1:]]
sys.settrace(watch)
runpy.run_path(root + "trainer_vanilla.py", run_name="__main__")
sys.settrace(None)
print(*{name.removeprefix(root) for name, _ in seen}, len(seen))
"""


def test_what_a_training_run_executes_stays_readable(command, tmp_path):
    """The lines that a run with two epochs goes through, imports included."""
    flags = ("--train_val_sample_rate", 300, "--n_epoch", 2, "--output_dir", tmp_path, "--save_every_updates", 3)
    done = command("-c", EXECUTED, *flags)
    assert done.returncode == 0, done.stderr
    *files, count = done.stdout.splitlines()[-1].split()
    assert {"trainer.py", "engine/checkpoints/file.py", "data/FashionMNIST.py"} <= set(files)
    assert 1000 < int(count) <= 5000


def test_lines_of_code_are_counted_without_what_explains_them():
    assert num_code_lines("engine/progress.py") < num_lines("engine/progress.py")


# ---- requirements ----------------------------------------------------------------------------------------------------
def requirements(name: str) -> dict[str, str]:
    """The pinned packages of a requirements file, by name in small letters."""
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {line.split("==")[0].lower(): line.split("==")[1] for line in lines if line and not line.startswith("-r")}


def third_party(paths: list[Path]) -> set[str]:
    """The distributions that files import, by name in small letters."""
    rooms = {path.parts[0].removesuffix(".py") for path in python_files()}
    roots = {module.split(".")[0] for path in paths for module in imports(TREES[path])}
    roots -= rooms | set(sys.stdlib_module_names) | OPTIONAL
    return {DISTRIBUTIONS.get(root, root).lower() for root in roots}


def test_what_the_code_imports_is_what_it_requires():
    # torch.utils.tensorboard needs tensorboard, which nothing here imports by its own name.
    assert third_party(RUNTIME) | {"tensorboard"} == set(requirements("requirements.txt"))


def test_what_the_tests_import_is_required_too():
    tests = [path for path in python_files() if path.parts[0] == "tests"]
    test_modules = {path.stem for path in tests}
    known = set(requirements("requirements.txt")) | set(requirements("requirements-dev.txt"))
    assert third_party(tests) - test_modules <= known
    assert requirements("requirements-dev.txt").keys() >= {"pytest", "ruff", "torchmetrics", "webdataset"}
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text()


def test_the_conda_environment_takes_the_same_requirements():
    import yaml

    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.txt"]
    (python,) = [entry.split("=")[1] for entry in conda if entry.startswith("python")]
    least = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert int(python.split(".")[1]) >= int(least)


# ---- options ---------------------------------------------------------------------------------------------------------
def words(tree: ast.Module) -> set[str]:
    """What a file can read of the options: every `opt.NAME`, and every text that could be a name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            of = node.value
            if (isinstance(of, ast.Name) and of.id == "opt") or (isinstance(of, ast.Attribute) and of.attr == "opt"):
                found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def options_of(program: type, monkeypatch) -> set[str]:
    """The names of the options of a program's parser."""
    parsers = []

    def stop(self, *arguments, **keywords):
        parsers.append(self)
        raise SystemExit

    monkeypatch.setattr(OptionParser, "parse_given", stop)
    monkeypatch.setattr(OptionParser, "apply", lambda *arguments, **keywords: None)
    with pytest.raises(SystemExit):
        program.parse_options([])
    return set(parsers[-1].known)


PROGRAMS = [TrainerVanilla, TrainerSeg, TrainerGAN, EvaluatorVanilla, EvaluatorSeg, EvaluatorGAN]


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_option_is_parsed_and_then_ignored(program, monkeypatch):
    options = options_of(program, monkeypatch)
    assert {"seed", "data_type", "model_path"} <= options
    modules = (reachable(HOUSE, program.__module__) | {program.__module__}) - {"base_options"}
    read = {word for module in modules for word in words(TREES[MODULES[module]])}
    assert options - read - {"description"} == set()  # a description is there to be saved with the options


def test_an_option_that_nobody_reads_would_be_seen():
    tree = ast.parse("use(self.opt.lr, opt.seed)\nopt.unread = 1\nuse(other.momentum, getattr(opt, 'clip'))")
    assert words(tree) == {"lr", "seed", "clip"}


def test_every_kind_of_data_has_a_task():
    tasks = {task for _, *tasks in BUILT_INS["data"].values() for task in tasks}
    assert tasks == {EvaluatorVanilla.task, EvaluatorSeg.task, EvaluatorGAN.task}
