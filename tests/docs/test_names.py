"""The files, modules and options that README.md, CONTRIBUTING.md and docs/ name exist."""

import re

import pytest

from tests.docs.page_lines import ROOT, files_of

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    if path.name != "coming_from.md"  # its tables also name files of other templates
}
OF_USERS = {"mine/waves.py", "my_script.py", "mine.yaml", "sweep.yaml", "carvana.yaml"}
OF_OTHERS = {"signal", "nodes", "nnodes"}  # of SLURM and torchrun, whose other options have hyphens
PACKAGES = "benchmarks|callbacks|data|engine|examples|extras|loss|model|tests|tools|utils"
FILE_ENDINGS = (".py", ".md", ".yaml", ".onnx", ".png", ".pt2", ".safetensors")  # model.onnx is no module
SOURCES = {path: path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py") if "Results" not in path.parts}
FILE = re.compile(r"(?<![\w/.*-])((?:\w+/)*\w+\.(?:py|yaml|sh|sbatch))\b")
PROGRAMS = [text for path, text in SOURCES.items() if not path.name.startswith("test_")]
OPTIONS = set(re.findall(r"--(\w+)", "\n".join(PROGRAMS)))


def spans_of(text: str) -> list[str]:
    """Return the texts in backticks, without the code blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def missing_files(text: str) -> set[str]:
    """Return the names of files in a page that are neither in the project nor in the page.

    >>> missing_files("`trainer.py`, `engine/nowhere.py`, `trainer_*.py`, Results/Vanilla/TIMESTAMP/config.yaml")
    {'engine/nowhere.py'}
    """
    names = {name for span in spans_of(text) for name in FILE.findall(span)}
    return {name for name in names - OF_USERS - set(files_of(text)) if not (ROOT / name).exists()}


def missing_modules(text: str) -> set[str]:
    """Return the dotted names in a page that are neither a module of the project nor a name in one.

    >>> missing_modules("`tools.doctor`, `tools.nowhere`, `engine.options.parser.changed(opt)`")
    {'tools.nowhere'}
    """
    names = re.findall(rf"(?<![\w/.-])((?:{PACKAGES})(?:\.\w+)+)(?![\w/])", text)
    return {name for name in names if not name.endswith(FILE_ENDINGS) and not is_module(name)}


def is_module(name: str) -> bool:
    """Return whether a dotted name is a module or a package of the project, or a name in a module."""
    path = ROOT / name.replace(".", "/")
    within = SOURCES.get(path.parent.with_suffix(".py"), "")
    return path.is_dir() or path.with_suffix(".py") in SOURCES or re.search(rf"\b{path.name}\b", within) is not None


def missing_options(text: str) -> set[str]:
    """Return the options in a page that no program of the project has."""
    names = set(re.findall(r"(?<![\w-])--([a-z]\w*)(?![\w-])", text))
    return {name for name in names - OF_OTHERS if name not in OPTIONS and name.removeprefix("no-") not in OPTIONS}


@pytest.mark.parametrize("page", PAGES)
def test_the_names_in_a_page_exist(page):
    assert missing_files(PAGES[page]) == set()
    assert missing_modules(PAGES[page]) == set()
    assert missing_options(PAGES[page]) == set()


def test_a_name_that_does_not_exist_is_found():
    """The fault planted: a file, a module and an option that do not exist."""
    text = "See `engine/nowhere.py`, `python -m tools.nowhere` and `--not_there`."
    assert missing_files(text) == {"engine/nowhere.py"}
    assert missing_modules(text) == {"tools.nowhere"}
    assert missing_options(text) == {"not_there"}
