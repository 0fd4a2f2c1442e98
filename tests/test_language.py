"""Words that are old, vague or personal where the field has a plain term: none is in comments, docstrings or pages."""

import ast
import io
import re
import tokenize

from tools.house import FILES, ROOT, TREES

BANNED = re.compile(r"\b(?:anew|in vain|aloud|told|somebody's own)\b", re.IGNORECASE)
PAGES = [path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]]


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


def test_a_docstring_begins_with_its_subject_or_verb():
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [(path, node) for path in FILES for node in ast.walk(TREES[path]) if isinstance(node, documented)]
    docs = [(path.as_posix(), ast.get_docstring(node) or "") for path, node in nodes]
    assert [(path, doc) for path, doc in docs if re.match(r"What(ever)?\b", doc)] == []


def test_the_field_s_own_words_are_used():
    found = {path.as_posix(): words for path in [*FILES, *PAGES] if (words := BANNED.findall(prose_of(path)))}
    assert found == {}
