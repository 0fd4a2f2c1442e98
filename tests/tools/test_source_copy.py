"""The copy of the code is what lies on the disk, and is not swamped by data."""

import subprocess
import tarfile

import pytest

from tools.source_copy import DIFF, ROOT, copy_source


def names_of(path):
    with tarfile.open(path) as archive:
        return archive.getnames()


def read(path, name):
    with tarfile.open(path) as archive:
        return archive.extractfile(name).read().decode()


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.source_copy.loaded_files", list)
    root = tmp_path / "project"
    for name, text in {
        "a.py": "committed", "notes.txt": "n", "pkg/b.py": "b", "Results/c.py": "c", "gone.py": "g",
        ".gitignore": "secret.py", "big.csv": "x" * 5000,
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def commit(root):
    settings = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "-A"), (*settings, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", str(root), *words], check=True)


def test_tracked_files_come_as_they_are_on_the_disk_with_the_diff_and_new_code(project, tmp_path):
    commit(project)
    (project / "a.py").write_text("changed")
    (project / "new.py").write_text("new")
    (project / "secret.py").write_text("ignored")
    (project / "new.txt").write_text("no code")
    (project / "gone.py").unlink()
    (project / "link.py").symlink_to("/etc/passwd")
    count, warnings = copy_source(tmp_path / "code.tar.gz", project, max_file=4000)
    names = names_of(tmp_path / "code.tar.gz")
    assert sorted(names) == [".gitignore", "a.py", "new.py", "notes.txt", "pkg/b.py", DIFF]
    assert count == 5 and len(warnings) == 1 and "big.csv" in warnings[0]
    assert read(tmp_path / "code.tar.gz", "a.py") == "changed"
    assert "-committed" in read(tmp_path / "code.tar.gz", DIFF)


def test_without_git_the_python_files_come_and_a_line_says_so(project, tmp_path):
    (project / "venv").mkdir()
    for name in ("venv/pyvenv.cfg", "venv/d.py"):
        (project / name).write_text("")
    count, warnings = copy_source(tmp_path / "code.tar.gz", project)
    assert sorted(names_of(tmp_path / "code.tar.gz")) == ["a.py", "gone.py", "pkg/b.py"]
    assert count == 3 and ["Not under git" in warning for warning in warnings] == [True]


def test_what_was_loaded_from_elsewhere_comes_too(project, tmp_path, monkeypatch):
    commit(project)
    (tmp_path / "task.py").write_text("of mine")
    monkeypatch.setattr("tools.source_copy.loaded_files", lambda: [tmp_path / "task.py", project / "a.py"])
    copy_source(tmp_path / "code.tar.gz", project)
    assert read(tmp_path / "code.tar.gz", f"outside{tmp_path}/task.py") == "of mine"
    assert names_of(tmp_path / "code.tar.gz").count("a.py") == 1


def test_all_files_together_stay_within_the_bound(project, tmp_path):
    count, (_, left_out) = copy_source(tmp_path / "code.tar.gz", project, max_all=10)
    assert count == 2 and "without 1 files" in left_out


def test_this_project_is_copied_whole(tmp_path):
    copy_source(tmp_path / "code.tar.gz", ROOT)
    assert {"trainer.py", "tools/source_copy.py"} <= set(names_of(tmp_path / "code.tar.gz"))
    assert not any(name.startswith("Results/") for name in names_of(tmp_path / "code.tar.gz"))
    assert (tmp_path / "code.tar.gz").stat().st_size < 10 * 2**20
