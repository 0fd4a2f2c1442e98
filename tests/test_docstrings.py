"""Every example in a docstring runs and gives what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("utils", "data", "model", "loss", "callbacks", "engine")
FILES = [
    *(path for path in ROOT.glob("*.py") if path.name != "conftest.py"),
    *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")),
]
MODULES = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES if path.stem != "__init__")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module_run(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert failed == 0


def test_there_are_examples_and_they_are_found():
    finder = doctest.DocTestFinder()
    found = {name for name in MODULES if any(test.examples for test in finder.find(importlib.import_module(name)))}
    assert len(MODULES) > 40 and found >= {"data.split", "utils.errors"}


def test_example_that_is_wrong_fails():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=lambda text: None).failed == 1
