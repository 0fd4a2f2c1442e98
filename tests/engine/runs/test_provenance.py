"""The record of a run tells the code it ran, to the last change, and never stops the run."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from engine.runs import provenance
from engine.runs.provenance import ROOT, git, version


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, in which `provenance.py` pretends to stand."""
    root = tmp_path / "project"
    (root / "utils").mkdir(parents=True)
    (root / "lines.txt").write_text("one\ntwo\n\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True)
    monkeypatch.setattr(provenance, "ROOT", root)
    return root


def record() -> dict:
    return provenance.provenance([torch.device("cpu")], {"train": "abc"})


def test_record_names_what_is_needed_to_run_again(repository):
    content = record()
    assert content["command"].startswith("python ")
    assert content["versions"]["torch"] == torch.__version__
    assert content["versions"]["python"] == platform.python_version()
    assert {"torchvision", "numpy", "pillow"} < content["versions"].keys()
    assert content["machine"]["devices"] == ["cpu"] and content["data"] == {"train": "abc"}
    head = subprocess.run(["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert content["git_commit"] == head.stdout.strip() and content["git_diff"] == ""


def test_package_that_another_one_stands_in_for_has_no_version():
    assert version("numpy") and version("a-package-that-nobody-has") is None


def test_name_of_a_gpu_is_recorded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Model {device.index}")
    assert provenance.provenance([torch.device("cuda", 1)], {})["machine"]["devices"] == ["Model 1"]


def test_change_that_was_not_committed_can_be_applied_again(repository):
    (repository / "lines.txt").write_text("one\nchanged\n\n")
    diff = record()["git_diff"]
    subprocess.run(["git", "-C", str(repository), "checkout", "-q", "lines.txt"], check=True)
    subprocess.run(["git", "-C", str(repository), "apply"], input=diff + "\n", text=True, check=True)
    assert (repository / "lines.txt").read_text() == "one\nchanged\n\n"


def test_code_that_is_in_no_commit_is_recorded(repository, tmp_path, monkeypatch):
    for name, path in (("mine", repository / "mine.py"), ("theirs", tmp_path / "theirs.py"), ("in_git", None)):
        module = ModuleType(name)
        module.__file__ = str(path or repository / "lines.txt")
        monkeypatch.setitem(sys.modules, name, module)
        if path:
            path.write_text(f"# {name}")
    code = record()["new_code"]
    assert code["mine.py"] == "# mine" and code["../theirs.py"] == "# theirs"
    assert not any("torch" in Path(name).parts or name.endswith(".txt") for name in code)
    assert new_names(ROOT, monkeypatch) & {"trainer.py", "engine/runs/provenance.py"} == set()


def new_names(root, monkeypatch) -> set[str]:
    monkeypatch.setattr(provenance, "ROOT", root)
    return set(record()["new_code"])


def test_change_in_another_encoding_does_not_stop_the_run(repository):
    (repository / "lines.txt").write_bytes(b"caf\xe9\n")
    assert "+caf\ufffd" in record()["git_diff"]


def test_without_a_repository_or_without_git_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git("rev-parse", "HEAD") is None
    monkeypatch.setenv("PATH", "")
    assert record()["git_commit"] is None


def test_git_that_hangs_is_not_waited_for(monkeypatch):
    def hang(*arguments, timeout, **settings):
        raise subprocess.TimeoutExpired("git", timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert git("diff", "HEAD") is None


@pytest.mark.parametrize("how", [["script.py"], ["-m", "script"]])
def test_command_is_as_it_would_be_typed(how, tmp_path):
    (tmp_path / "script.py").write_text("from engine.runs.provenance import command_line\nprint(command_line())\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(provenance.__file__).parents[2]}"}
    typed = [*how, "--description", "two words"]
    done = subprocess.run([sys.executable, *typed], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert shlex.split(done.stdout) == ["python", *typed]
