"""The example of the trainer as a library, and its page."""

import re


def test_the_example_resumes_and_ends(command, tmp_path, root):
    done = command("-m", "examples.library", cwd=tmp_path, PYTHONPATH=str(root))
    assert done.returncode == 0, done.stderr
    assert "Stopped by a simulated power cut." in done.stdout
    assert "after update 200: 2 of 4 epochs and 1,280 samples done" in done.stdout
    last = re.fullmatch(r"320 updates, val/loss (0\.\d+), in \S+", done.stdout.splitlines()[-1])
    assert float(last[1]) < 0.8


def test_the_page_shows_the_code_of_the_example(root):
    code = (root / "examples" / "library.py").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs" / "functional.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 3
    assert [block for block in blocks if block not in code] == []
