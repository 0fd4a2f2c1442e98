"""Words that are old, vague or personal where the field has a plain term: none is in comments, docstrings or pages."""

import ast
import io
import re
import tokenize
from pathlib import Path

from tools.house import FILES, ROOT, TREES

BANNED = re.compile(r"\b(?:anew|in vain|aloud|told|somebody's own)\b", re.IGNORECASE)
PAGES = [path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]]
NOT_YET = {  # files that still have such words
    "README.md", "base_options.py", "benchmarks/harness.py", "docs/distributed.md",
    "docs/finetuning.md", "docs/own_task.md", "docs/resume.md", "engine/checkpoints/checkpointer.py",
    "engine/checkpoints/state.py",
    "engine/nan_guard.py", "tests/data/test_loader.py",
    "tests/engine/checkpoints/test_shard_files.py", "tests/engine/checkpoints/test_sharded_checkpointer.py",
    "tests/engine/test_nan_guard.py",
    "tests/extras/test_multi_image.py", "tests/torture/io_boundaries.py", "tests/torture/kills.py",
    "tests/utils/test_advice.py",
}  # fmt: skip


def prose_of(path) -> str:
    """Return the comments and docstrings of a Python file, or the whole text of a page."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [ast.get_docstring(node) for node in ast.walk(TREES[path]) if isinstance(node, documented)]
    return "\n".join([*comments, *(doc for doc in docs if doc)])


def test_the_field_s_own_words_are_used():
    names = {Path(name).name for name in NOT_YET} | {"test_language.py"}  # the files may move meanwhile
    paths = [path for path in [*FILES, *PAGES] if path.name not in names]
    found = {path.as_posix(): words for path in paths if (words := BANNED.findall(prose_of(path)))}
    assert found == {}
