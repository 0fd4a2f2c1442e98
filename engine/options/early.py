"""Read the options of a program from its text, before its imports run.

A task imports torch, which takes seconds; --help and a wrong option should not wait for it. So those statements of a
program that are about options are run alone: of each class `defaults`, `task`, `evaluator_class` and the methods that
add options, and the constants and functions that these may use. A text that may add options in any other way is
unclear, and left to the parser that speaks after the imports.
"""
import __future__

import ast
import contextlib
import sys
from pathlib import Path
from typing import Any

from engine.options.parser import OptionParser

ROOT = Path(__file__).resolve().parent.parent.parent
OPTION_PARTS = ("task", "evaluator_class", "defaults", "add_options", "add_test_options")
LIGHT = ("engine.metric_entry", "engine.options", "engine.registry", "options", "utils.errors")  # import no torch
WITHOUT_OPTIONS = (
    "callbacks", "data", "engine", "eval", "loss", "model", "options", "trainer", "utils", "numpy", "torch",
    "torchvision", *sys.stdlib_module_names,
)  # fmt: skip


class UnclearError(Exception):
    """A program may add options in a way that its text alone does not show."""


class Evaluator:
    """Stands for EvaluatorBase."""

    task = None

    @classmethod
    def add_options(cls, parser: OptionParser) -> None: ...

    @classmethod
    def add_test_options(cls, parser: OptionParser) -> None: ...


class Trainer(Evaluator):
    """Stands for TrainerBase."""

    evaluator_class = Evaluator
    defaults = {}


def read_main_class(program: str | Path) -> type:
    """Return the class on which a program calls `main`, with those parts of it that are about options.

    Raises:
        UnclearError: the text does not show all options of the program.
    """
    with contextlib.suppress(LookupError, AttributeError, SyntaxError, OSError):
        tree = ast.parse(Path(program).read_text(encoding="utf-8"))
        match tree.body[-1]:
            case ast.If(body=[ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="main")))]):
                return read_names(tree, Path(program).parent)[name]
    raise UnclearError


def read_names(tree: ast.Module, directory: Path) -> dict[str, Any]:
    """Run those statements of a program that define options, and return the names that they define."""
    names: dict[str, Any] = {"TrainerBase": Trainer, "EvaluatorBase": Evaluator, "__name__": "early"}
    for node in tree.body:
        match node:
            case ast.ClassDef(decorator_list=[_, *_]) | ast.FunctionDef(decorator_list=[_, *_]):
                if any("register" in ast.unparse(decorator) for decorator in node.decorator_list):
                    raise UnclearError  # it adds a name to the choices of an option
            case ast.ClassDef():
                node.body = [part for part in node.body if is_option_part(part)] or [ast.Pass()]
                run(node, names)
            case ast.ImportFrom(module=str(module), names=[alias, *_]):
                if f"{module}.{alias.name}".startswith(LIGHT) or module in sys.stdlib_module_names:
                    run(node, names)
                else:
                    names |= read_module(module, directory)
            case ast.Import(names=[ast.alias(name=module)]):
                read_module(module, directory)
            case ast.Assign() | ast.AnnAssign() | ast.FunctionDef():
                run(node, names)
            case ast.If() | ast.Expr(value=ast.Constant()):
                pass
            case _:
                raise UnclearError
    return names


def run(node: ast.stmt, names: dict[str, Any]) -> None:
    """Run a statement, unless it needs what only torch has: then it adds no options."""
    flags = __future__.annotations.compiler_flag  # annotations may name classes of torch
    with contextlib.suppress(NameError):
        exec(compile(ast.Module([node], []), "<options>", "exec", flags), names)


def is_option_part(node: ast.stmt) -> bool:
    """Say whether a statement in the body of a class is about options, or its docstring."""
    match node:
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.FunctionDef(name="main" | "parse_options"):
            raise UnclearError
        case ast.FunctionDef(name=name) | ast.Assign(targets=[ast.Name(id=name)]):
            return name in OPTION_PARTS
        case ast.AnnAssign(target=ast.Name(id=name)):
            return name in OPTION_PARTS
    return False


def read_module(module: str, directory: Path) -> dict[str, Any]:
    """Return the names of a module of a task, beside the program or in the root of the project; see `read_names`."""
    if module.partition(".")[0] in WITHOUT_OPTIONS:
        return {}
    for root in (directory, ROOT):
        path = root.joinpath(*module.split(".")).with_suffix(".py")
        if path.is_file():
            return read_names(ast.parse(path.read_text(encoding="utf-8")), path.parent)
    raise UnclearError
