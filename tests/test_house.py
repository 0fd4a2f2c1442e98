"""The walls of this project: who may import whom, who takes a trainer, how long functions are. See tools/house.py."""

import ast
import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from engine.options.parser import OptionParser
from engine.registry import BUILT_INS
from eval_seg_on_carvana import EvaluatorSeg
from eval_vanilla import EvaluatorVanilla
from examples.eval_table import EvaluatorTable
from examples.trainer_table import TrainerTable
from extras.gan.eval_gan import EvaluatorGAN
from extras.gan.trainer_gan import TrainerGAN
from tools import house
from tools.house import CORE, FILES, MODULES, ROOT, TREES, imports, own_imports, ring_of
from trainer_seg_on_carvana import TrainerSeg
from trainer_vanilla import TrainerVanilla

RUNTIME = [path for path in FILES if ring_of(path) not in ("tests", "docs", "benchmarks")]
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "PyYAML"}  # imported by another name than installed
OPTIONAL = {
    "wandb", "optuna", "lightning", "webdataset", "timm", "torchmetrics", "onnx", "onnxruntime", "safetensors",
    "huggingface_hub",
}  # fmt: skip
HEAVY = {"matplotlib", "torchvision", "tensorboard", "tqdm", "yaml", *OPTIONAL}
UTILS = [path for path in CORE if path.parts[0] == "utils" and path.name != "__init__.py"]


# ---- walls -----------------------------------------------------------------------------------------------------------
def test_the_core_imports_itself_and_tools_and_extras_the_core_alone():
    assert house.outward_imports() == []


def test_what_is_loaded_by_name_exists():
    rings = [path for path in FILES if ring_of(path) in house.RINGS]
    sources = [(ROOT / path).read_text(encoding="utf-8") for path in rings]
    references = {found for text in sources for found in re.findall(r'"((?:extras|tools)[\w.]*):(\w+)"', text)}
    assert len(references) > 30
    assert [one for one in references if not hasattr(importlib.import_module(one[0]), one[1])] == []


def test_only_the_loop_takes_a_trainer():
    assert house.takes_trainer() == []


def test_options_are_not_changed_after_they_are_resolved():
    assert house.changes_options() == []


def test_a_changed_option_would_be_seen():
    text = "self.opt.lr = 1\nopt.seed += 1\nsetattr(opt, 'a', 1)\nuse(opt.lr)\nself.opt = opt"
    assert house.sets_options(ast.parse(text)) == [1, 2, 3]


def test_the_core_can_be_read_in_an_hour():
    assert sum(map(house.num_code_lines, CORE)) <= house.MOST_CORE_LINES


def test_a_vanilla_run_goes_through_few_files_and_none_of_tools_or_extras(vanilla_path):
    files, _ = vanilla_path
    assert {"trainer.py", "engine/checkpoints/file.py", "data/FashionMNIST.py"} <= files
    assert [name for name in files if ring_of(Path(name)) != "core"] == []
    assert len(files) <= house.MOST_RUN_FILES


@pytest.mark.xfail(reason="a run still executes more lines", strict=False)
def test_a_vanilla_run_executes_few_lines(vanilla_path):
    _, num_lines = vanilla_path
    assert num_lines <= house.MOST_RUN_LINES


@pytest.fixture(scope="module")
def vanilla_path(tmp_path_factory):
    """The files that a vanilla run goes through, and the number of lines that it executes."""
    return house.executed_by_a_run(tmp_path_factory.mktemp("run"))


def test_no_function_is_longer_than_a_screen():
    assert [name for length, name in house.lengths() if length > house.MOST_FUNCTION_LINES] == []


def test_only_tables_are_exempt_from_the_formatter():
    """A table is a display of values that an assignment names."""
    found = []
    for path in RUNTIME:
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        tables = [node for node in ast.walk(TREES[path]) if is_table(node)]
        ends = {node.end_lineno for node in tables}
        found += [f"{path}:{at}" for at, line in enumerate(lines, 1) if line.endswith("# fmt: skip") and at not in ends]
    assert found == []


def is_table(node: ast.AST) -> bool:
    is_assignment = isinstance(node, ast.Assign | ast.AnnAssign)
    return is_assignment and isinstance(node.value, ast.Dict | ast.List | ast.Tuple | ast.Set)


# ---- imports ---------------------------------------------------------------------------------------------------------
def test_there_are_no_circles():
    needed = {path: {MODULES[name] for name in own_imports(path)} - {path} for path in FILES}
    circles = []
    for path in FILES:
        found, left = set(), list(needed[path])
        while left:
            one = left.pop()
            if one not in found:
                found.add(one)
                left += needed[one]
        circles += [path] if path in found else []
    assert circles == []


def test_heavy_packages_are_imported_where_they_are_used():
    needed = {Path(f"{kind}_{task}.py") for kind in ("trainer", "eval") for task in ("vanilla", "seg_on_carvana")}
    left = list(needed)
    while left:
        more = {MODULES[name] for name in own_imports(left.pop(), only_top=True)} - needed
        needed |= more
        left += more
    found = {path: {name.split(".")[0] for name in imports(TREES[path], only_top=True)} & HEAVY for path in needed}
    assert {path: heavy for path, heavy in found.items() if heavy} == {}


LIFTED = """
import importlib, os, sys
root, directory, module = sys.argv[1:]
for name in [name for name, found in sys.modules.items() if (getattr(found, "__file__", "") or "").startswith(root)]:
    del sys.modules[name]
sys.path[:] = [directory, *(path for path in sys.path if path and not path.startswith(root))]
found = importlib.import_module(module)
assert found.__file__.startswith(directory), found.__file__
"""


@pytest.mark.parametrize("path", UTILS, ids=lambda path: path.stem)
def test_a_file_of_utils_works_in_another_project(command, tmp_path, path):
    needed = house.neighbours(path)
    assert len(needed) <= 2, sorted(needed)
    for one in needed:
        (tmp_path / one).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / one, tmp_path / one)
    module = ".".join(path.with_suffix("").parts)
    done = command("-c", LIFTED, f"{ROOT}/", f"{tmp_path}/", module, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_liftable_files_take_no_options():
    liftable = [path for path in CORE if path.parts[0] in ("utils", "model", "loss", "callbacks")]
    found = [
        f"{path}:{node.lineno} {node.name}"
        for path in liftable if not path.stem.endswith("_entry")
        for node in house.functions(path)
        if any(argument.arg in ("opt", "opts") for argument in (*node.args.args, *node.args.kwonlyargs))
    ]  # fmt: skip
    assert found == []


def test_no_two_test_files_have_one_name():
    """Pytest imports a test file by its base name where its directory is no package: the second would be refused."""
    names = [path.name for path in FILES if path.parts[0] == "tests" and path.name.startswith("test_")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


# ---- requirements ----------------------------------------------------------------------------------------------------
def requirements(name: str) -> dict[str, str]:
    """The pinned packages of a requirements file, by name in small letters."""
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return {line.split("==")[0].lower(): line.split("==")[1] for line in lines if line and not line.startswith("-r")}


def third_party(paths: list[Path]) -> set[str]:
    """The distributions that files import, by name in small letters."""
    rooms = {path.parts[0].removesuffix(".py") for path in FILES}
    roots = {module.split(".")[0] for path in paths for module in imports(TREES[path])}
    roots -= rooms | set(sys.stdlib_module_names) | OPTIONAL
    return {DISTRIBUTIONS.get(root, root).lower() for root in roots}


def test_what_the_code_imports_is_what_it_requires():
    # torch.utils.tensorboard needs tensorboard, which nothing here imports by its own name.
    assert third_party(RUNTIME) | {"tensorboard"} == set(requirements("requirements.txt"))


def test_what_the_tests_import_is_required_too():
    tests = [path for path in FILES if path.parts[0] == "tests"]
    test_modules = {path.stem for path in tests}
    known = set(requirements("requirements.txt")) | set(requirements("requirements-dev.txt"))
    assert third_party(tests) - test_modules <= known
    assert requirements("requirements-dev.txt").keys() >= {"pytest", "ruff", "torchmetrics", "webdataset"}
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text()


def test_the_conda_environment_takes_the_same_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.txt"]
    (python,) = [entry.split("=")[1] for entry in conda if entry.startswith("python")]
    least = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert int(python.split(".")[1]) >= int(least)


# ---- options ---------------------------------------------------------------------------------------------------------
def words(tree: ast.Module) -> set[str]:
    """Return what a file can read of the options: every `opt.NAME`, and every text that could be a name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and house.is_options(node.value):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def options_of(program: type, monkeypatch) -> set[str]:
    """Return the names of the options of a program's parser."""
    parsers = []

    def stop(self, *arguments, **keywords):
        parsers.append(self)
        raise SystemExit

    monkeypatch.setattr(OptionParser, "parse_given", stop)
    monkeypatch.setattr(OptionParser, "apply", lambda *arguments, **keywords: None)
    with pytest.raises(SystemExit):
        program.parse_options([])
    return set(parsers[-1].known)


PROGRAMS = [
    *(TrainerVanilla, TrainerSeg, TrainerGAN, TrainerTable),
    *(EvaluatorVanilla, EvaluatorSeg, EvaluatorGAN, EvaluatorTable),
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_option_is_parsed_and_then_ignored(program, monkeypatch):
    options = options_of(program, monkeypatch)
    assert {"seed", "data_type", "model_path"} <= options
    declared = {"options.py"}
    paths = [path for path in FILES if ring_of(path) in ("core", "extras") and path.name not in declared]
    read = set().union(*(words(TREES[path]) for path in paths))
    assert options - read - {"description"} == set()  # a description is there to be saved with the options


def test_an_option_that_nobody_reads_would_be_seen():
    tree = ast.parse("use(self.opt.lr, opt.seed)\nopt.unread = 1\nuse(other.momentum, getattr(opt, 'clip'))")
    assert words(tree) == {"lr", "seed", "clip"}


def test_every_kind_of_data_has_a_task():
    tasks = {task for _, *tasks in BUILT_INS["data"].values() for task in tasks}
    assert tasks == {EvaluatorVanilla.task, EvaluatorSeg.task, EvaluatorGAN.task, EvaluatorTable.task}
