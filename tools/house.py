"""Measure the walls of this project: python -m tools.house

Prints the lines of code by ring and directory, the files and lines that a vanilla run executes, the imports that cross
a wall, the files of utils/ that need more than one other file, the functions that take a trainer, the places that set
an option, and the longest functions. tests/test_house.py holds them to their limits.
"""

import ast
import io
import os
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_CORE_LINES = 7_000  # of code
MOST_RUN_FILES = 60  # of ours that a vanilla run imports
MOST_RUN_LINES = 3_500  # that it executes
MOST_FUNCTION_LINES = 60
CORE_DIRECTORIES = ("engine", "data", "model", "loss", "callbacks", "utils")
# Programs at the top whose code is in tools/ or extras/.
DOORS = {"sweep.py": "tools", "predict.py": "tools", "train_pl.py": "extras", "trainer_gan.py": "extras",
         "eval_gan.py": "extras"}  # fmt: skip
RINGS = ("core", "tools", "extras")
SKIPPED = {"Results", "Dataset", "test_viz"}
MAY_TAKE_TRAINER = ("trainer.py", "eval.py", "engine/session.py", "callbacks/")
MAY_SET_OPTIONS = ("options.py", "engine/options/")  # resolve() is here

EXECUTED = """
import os, runpy, sys
root, seen = os.getcwd() + os.sep, set()
def watch(frame, event, argument):
    name = frame.f_code.co_filename
    if not name.startswith(root) or "site-packages" in name:
        return None
    seen.add((name, frame.f_lineno))
    return watch
sys.argv = sys.argv[1:]
sys.settrace(watch)
runpy.run_path(root + sys.argv[0], run_name="__main__")
sys.settrace(None)
print(*{name.removeprefix(root) for name, _ in seen}, len(seen))
"""


# ---- files -----------------------------------------------------------------------------------------------------------
def python_files() -> list[Path]:
    """Return the Python files, relative to the root, without hidden directories and results."""
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return sorted(path for path in paths if not any(part[0] == "." or part in SKIPPED for part in path.parts))


FILES = python_files()
TREES = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in FILES}
MODULES = {".".join(path.with_suffix("").parts): path for path in FILES}


def ring_of(path: Path) -> str:
    """Return "core", or the directory that a file belongs to: tools, extras, examples, benchmarks, tests ..."""
    room = path.parts[0]
    if len(path.parts) == 1:
        return "tests" if room == "conftest.py" else DOORS.get(room, "core")
    return "core" if room in CORE_DIRECTORIES else room


CORE = [path for path in FILES if ring_of(path) == "core"]


# ---- imports ---------------------------------------------------------------------------------------------------------
def imports(tree: ast.Module, only_top: bool = False) -> Iterator[str]:
    """Yield the full name of every module that a file imports; of `from a import b`, both "a" and "a.b"."""
    for node in tree.body if only_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import is written in full, so that a file can be found by its name"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path, only_top: bool = False) -> set[str]:
    """Return the modules of this project that a file imports."""
    return {name for name in imports(TREES[path], only_top) if name in MODULES}


def outward_imports() -> list[str]:
    """Return the imports that cross a wall: the core imports the core, tools and extras that and themselves."""
    return [
        f"{path} imports {name}"
        for path in FILES
        if ring_of(path) in RINGS
        for name in sorted(own_imports(path))
        if ring_of(MODULES[name]) not in ("core", ring_of(path))
    ]


def neighbours(path: Path) -> set[Path]:
    """Return the files of this project that one needs, itself included, whatever is imported when."""
    found, left = {path}, [path]
    while left:
        more = {MODULES[name] for name in own_imports(left.pop())} - found
        found |= more
        left += more
    return found


def not_liftable() -> list[str]:
    """Return the files of utils/ that cannot be copied alone, or with one neighbour, into another project."""
    utils = [path for path in CORE if path.parts[0] == "utils"]
    needed = {path: sorted(neighbours(path) - {path}) for path in utils}
    return [f"{path} needs {', '.join(map(str, others))}" for path, others in needed.items() if len(others) > 1]


# ---- functions -------------------------------------------------------------------------------------------------------
def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the functions and methods of a file."""
    yield from (node for node in ast.walk(TREES[path]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def takes_trainer() -> list[str]:
    """Return the functions of the core that take a trainer, without those that may."""
    return [
        f"{path}:{node.lineno} {node.name}"
        for path in CORE
        if not path.as_posix().startswith(MAY_TAKE_TRAINER)
        for node in functions(path)
        if any(argument.arg == "trainer" for argument in (*node.args.args, *node.args.kwonlyargs))
    ]


def lengths() -> list[tuple[int, str]]:
    """Return the lengths of all functions outside the tests, the longest first."""
    found = [
        (node.end_lineno - node.lineno + 1, f"{path}:{node.lineno} {node.name}")
        for path in FILES
        if ring_of(path) != "tests"
        for node in functions(path)
    ]
    return sorted(found, reverse=True)


def is_options(node: ast.AST) -> bool:
    """Return whether an expression is `opt`, or an attribute of that name."""
    return (isinstance(node, ast.Name) and node.id == "opt") or (isinstance(node, ast.Attribute) and node.attr == "opt")


def sets_options(tree: ast.Module) -> list[int]:
    """Return the lines of a file that set an attribute of `opt`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del) and is_options(node.value):
            found.append(node.lineno)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            found += [node.lineno] if node.args and is_options(node.args[0]) else []
    return found


def changes_options() -> list[str]:
    """Return the places of the core that set an option after the options are resolved."""
    paths = [path for path in CORE if not path.as_posix().startswith(MAY_SET_OPTIONS)]
    return [f"{path}:{line}" for path in paths for line in sets_options(TREES[path])]


# ---- lines -----------------------------------------------------------------------------------------------------------
def num_code_lines(path: Path) -> int:
    """Count lines of code: without blank lines, comments and docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ast.walk(TREES[path])
    docs = [node.body[0] for node in nodes if isinstance(node, documented) and ast.get_docstring(node) is not None]
    empty = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    readline = io.StringIO((ROOT / path).read_text(encoding="utf-8")).readline
    tokens = [token for token in tokenize.generate_tokens(readline) if token.type not in empty]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - {line for doc in docs for line in range(doc.lineno, doc.end_lineno + 1)})


def executed_by_a_run(output_dir: Path | str) -> tuple[set[str], int]:
    """Train the vanilla task for two small epochs; return the files of ours with code that it runs, and the lines."""
    flags = ["--limit_batches", "8", "--n_epoch", "2", "--save_every_updates", "3"]
    done = subprocess.run(
        [sys.executable, "-c", EXECUTED, "trainer_vanilla.py", *flags, "--output_dir", str(output_dir)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    *files, count = done.stdout.splitlines()[-1].split()
    return {name for name in files if num_code_lines(Path(name))}, int(count)  # without the empty __init__.py


# ---- the report ------------------------------------------------------------------------------------------------------
def lines_by_ring() -> dict[str, dict[str, int]]:
    """Return the lines of code by ring and directory; "." is the root."""
    lines: dict[str, dict[str, int]] = {}
    for path in FILES:
        of_ring = lines.setdefault(ring_of(path), {})
        directory = path.parts[0] if len(path.parts) > 1 else "."
        of_ring[directory] = of_ring.get(directory, 0) + num_code_lines(path)
    return lines


def main() -> None:
    for ring, by_directory in lines_by_ring().items():
        limit = f" (at most {MOST_CORE_LINES:,})" if ring == "core" else ""
        print(f"{ring:12s} {sum(by_directory.values()):6,} lines of code{limit}")
        for directory, count in by_directory.items() if len(by_directory) > 1 else ():
            print(f"    {directory:12s} {count:6,}")
    with tempfile.TemporaryDirectory() as directory:
        files, count = executed_by_a_run(directory)
    print(f"A vanilla run goes through {len(files)} files (at most {MOST_RUN_FILES})", end=" ")
    print(f"and {count:,} lines (at most {MOST_RUN_LINES:,}).")
    for title, found in (
        ("Imports that cross a wall", outward_imports()),
        ("Files of utils/ that need more than one other file", not_liftable()),
        ("Functions of the core that take a trainer", takes_trainer()),
        ("Places that set an option after it is resolved", changes_options()),
    ):
        print(f"{title}: {len(found)}", *found, sep="\n    ")
    print(f"Longest functions (at most {MOST_FUNCTION_LINES} lines):")
    for length, name in lengths()[:10]:
        print(f"    {length:3d} {name}")


if __name__ == "__main__":
    main()
