"""A new project has the files of the template, and no results of earlier runs."""

import subprocess
import sys

import pytest

from tools.new_project import new_project
from utils.errors import UserError

ROOT_FILES = {"trainer_vanilla.py": "print('task')", "utils/a.py": "a", "Results/run/metrics.csv": "1", "run.sh": "#"}


@pytest.fixture
def template(tmp_path):
    """A template under git, with a run that is tracked, one that is not, and a change that is not committed."""
    root = tmp_path / "template"
    for name, text in ROOT_FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "run.sh").chmod(0o755)
    settings = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "-A"), (*settings, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    (root / "notes.txt").write_text("not tracked")
    (root / "utils" / "a.py").write_text("changed")
    return root


def files(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("is_there", [False, True])
def test_it_has_what_git_tracks_as_it_is_on_the_disk_without_results(template, tmp_path, is_there):
    target = tmp_path / "deep" / "mine"
    if is_there:
        target.mkdir(parents=True)
    assert new_project(target, template) == 3
    assert files(target) == {"trainer_vanilla.py", "utils/a.py", "run.sh"}
    assert (target / "utils" / "a.py").read_text() == "changed"
    assert (target / "run.sh").stat().st_mode & 0o111
    assert [path.name for path in target.parent.iterdir()] == ["mine"]  # no scratch directory is left


def test_what_is_there_is_never_overwritten(template, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.py").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for name in ("mine", "file"):
        with pytest.raises(UserError, match="not an empty directory"):
            new_project(tmp_path / name, template)
    assert files(tmp_path / "mine") == {"work.py"}


def test_a_place_inside_of_the_template_and_a_template_without_git_are_refused(template, tmp_path):
    with pytest.raises(UserError, match="inside the template"):
        new_project(template / "mine", template)
    (tmp_path / "plain").mkdir()
    with pytest.raises(UserError, match="no git repository"):
        new_project(tmp_path / "mine", tmp_path / "plain")
    (tmp_path / "blocked").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        new_project(tmp_path / "blocked" / "mine", template)
    assert not (tmp_path / "mine").exists()


def test_the_new_project_trains(command, tmp_path):
    target = tmp_path / "mine"
    done = command("-m", "tools.new_project", target)
    assert (done.returncode, done.stderr) == (0, "") and (target / ".git").is_dir()
    assert not (target / "Results").exists()
    trained = subprocess.run(
        [sys.executable, "trainer_vanilla.py", "--debug"], cwd=target, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert (trained.returncode, trained.stderr) == (0, "")
    assert list(target.glob("Results/Vanilla/*/Vanilla_best_ckpt.pth"))


def test_a_second_time_ends_with_one_line_and_status_2(command, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("")
    done = command("-m", "tools.new_project", tmp_path / "mine")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "name a new one" in done.stderr
