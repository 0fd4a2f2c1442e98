"""Checkpoints named by a file, by a run directory, or by `latest`."""

import shutil

import pytest

from engine.checkpoints.file import save_checkpoint
from eval_seg_on_carvana import EvaluatorSeg
from eval_vanilla import EvaluatorVanilla
from extras.named_run import checkpoint_of
from utils.errors import UserError


def make_run(directory, name="A", update=3, kinds=("last", "best"), evaluator="eval_a:EvaluatorA"):
    run = directory / name
    run.mkdir(parents=True)
    for kind in kinds:
        state = {"progress": {"epoch": 1, "update": update}, "evaluator": evaluator}
        save_checkpoint(state, run / f"Net_{kind}_ckpt.pth")
    (run / f"config_A_{name}.json").write_text("{}")
    return run


def test_a_run_is_its_best_checkpoint_else_the_newest(tmp_path):
    best, other = make_run(tmp_path, "1"), make_run(tmp_path, "2", kinds=["last-2", "last"])
    save_checkpoint({"progress": {"epoch": 1, "update": 9}}, other / "Net_InT_ckpt.pth")
    assert checkpoint_of(best, "") == best / "Net_best_ckpt.pth"
    assert checkpoint_of(str(other), "") == other / "Net_InT_ckpt.pth"
    assert checkpoint_of(other / "no_such.pth", "") == other / "no_such.pth"  # whoever reads it tells


def test_latest_is_the_run_that_began_last_and_fits(tmp_path):
    for name, module in (("300", "b"), ("1000", "a"), ("20", "b")):
        make_run(tmp_path / "deep", name, evaluator=f"eval_{module}:Evaluator{module.upper()}")
    make_run(tmp_path, "9000", kinds=[])
    newest = tmp_path / "deep" / "1000" / "Net_best_ckpt.pth"
    assert checkpoint_of("latest", tmp_path) == newest
    assert checkpoint_of(tmp_path / "deep" / "latest", "elsewhere") == newest
    assert checkpoint_of("latest", tmp_path, "EvaluatorB").parent.name == "300"
    with pytest.raises(UserError, match="latest: there is no run of this task with a checkpoint below"):
        checkpoint_of("latest", tmp_path, "EvaluatorC")


def test_a_directory_of_runs_is_no_run(tmp_path):
    make_run(tmp_path, "1")
    with pytest.raises(UserError, match=r"no checkpoint in this directory\. The newest .*: .*/1, or .*latest$"):
        checkpoint_of(tmp_path, "")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no checkpoint in this directory\.$"):
        checkpoint_of(tmp_path / "empty", "")


def test_an_evaluation_takes_a_run_or_latest(vanilla_run, seg_run, tmp_path, monkeypatch, capfd):
    expected = str(vanilla_run / "Vanilla_best_ckpt.pth")
    for argv in ([vanilla_run], ["--model_path", vanilla_run], [expected], [vanilla_run, "--split", "val"]):
        assert EvaluatorVanilla.parse_options(list(map(str, argv))).model_path == expected
    (tmp_path / "Results").mkdir()
    monkeypatch.chdir(tmp_path)
    for run, number in ((vanilla_run, "11"), (seg_run, "12")):
        shutil.copytree(run, tmp_path / "Results" / number)
    for evaluator, number in ((EvaluatorVanilla, "11"), (EvaluatorSeg, "12")):
        opt = evaluator.parse_options(["latest"])
        assert opt.model_path.startswith(f"Results/{number}/") and not hasattr(opt, "run")
    for argv in ([], [expected, "--model_path", expected]):
        with pytest.raises(SystemExit):
            EvaluatorVanilla.parse_options(argv)
        assert "name one thing to evaluate: a checkpoint, the directory of a run, or latest" in capfd.readouterr().err
