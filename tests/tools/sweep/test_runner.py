"""Runs go side by side, fail alone, stop in good order, and are not repeated. The runs here are small programs."""

import os
import signal
import sys

import pytest

from engine.runs.signals import Terminated
from tools.sweep.runner import Runner, last_line, read_curve
from tools.sweep.study import FAILED, FINISHED, INTERRUPTED, PRUNED, RUNNING
from utils.errors import UserError

# Writes metrics.csv as a run does, goes on where it was, and answers SIGTERM. Takes a directory, epochs, an action.
PROGRAM = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
directory, num_epochs, action = pathlib.Path(sys.argv[1]) / "1", int(sys.argv[2]), sys.argv[3]
directory.mkdir(exist_ok=True)
path = directory / "metrics.csv"
lines = path.read_text().split() if path.exists() else ["epoch,val/accuracy"]
print("started with", len(lines) - 1, "epochs", flush=True)
while len(lines) <= num_epochs:
    if action == "fails":
        print("no memory is left", flush=True)
        sys.exit(5)
    lines.append(f"{len(lines)},{0.1 * len(lines):.1f}")
    temporary = directory / "temporary"
    temporary.write_text("\\n".join(lines) + "\\n")
    temporary.replace(path)
    if action == "slow":
        time.sleep(0.3)
(directory / "finished.json").write_text("{}")
"""


@pytest.fixture
def runner(tmp_path, make_study, capsys):
    """A function that makes a runner of a grid over `do`. A second one in a test continues the sweep of the first."""

    def runner(actions, num_slots=1, num_epochs=3, seeds=1):
        study = make_study(tmp_path, grid=[f"do={actions}"], search=[], seeds=seeds)

        def command(settings, seed, directory, slot):
            action = settings["do"].rstrip("0123456789")
            return [sys.executable, "-S", "-c", PROGRAM, str(directory), str(num_epochs), action]

        return Runner(tmp_path, study, command, num_slots)

    return runner


def states(runner):
    return [run.state for trial in runner.study.trials() for run in trial.runs]


def outputs(tmp_path):
    return [path.read_text() for path in sorted(tmp_path.glob("runs/*/output.txt"))]


def test_a_failed_run_does_not_keep_the_others_from_running(runner, capsys):
    made = runner("fast1,fails,fast2", num_slots=2)
    made.run()
    assert states(made) == [FINISHED, FAILED, FINISHED]
    finished, failed, _ = (trial.runs[0] for trial in made.study.trials())
    assert (failed.status, failed.last_line) == (5, "no memory is left")
    assert (finished.value, finished.epochs) == (0.3, 3)
    assert "status 5: no memory" in capsys.readouterr().out


def test_runs_go_side_by_side_the_seeds_of_one_trial_too(runner):
    made = runner("slow", num_slots=2, seeds=2)
    most, should_prune = [], made.should_prune

    def look(job):
        most.append(states(made).count(RUNNING))
        return should_prune(job)

    made.should_prune = look
    made.run()
    assert max(most) == 2 and states(made) == [FINISHED] * 2


def test_a_signal_stops_the_runs_and_a_resume_continues_them(runner, tmp_path):
    made = runner("fast1,slow,fast2", num_epochs=8)
    should_prune = made.should_prune

    def stop_in_the_second(job):
        if job.trial.number == 1 and read_curve(job.trial.directory(tmp_path, job.run), "accuracy"):
            os.kill(os.getpid(), signal.SIGTERM)
        return should_prune(job)

    made.should_prune = stop_in_the_second
    with pytest.raises(Terminated):
        made.run()
    assert states(made) == [FINISHED, INTERRUPTED]
    stopped = made.study.trials()[1].runs[0]
    assert stopped.status == 143 and 0 < stopped.epochs < 8
    again = runner("fast1,slow,fast2", num_epochs=8)
    again.run()
    assert states(again) == [FINISHED] * 3
    assert outputs(tmp_path)[0].count("started") == 1  # the finished one is not repeated
    assert f"started with {stopped.epochs} epochs" in outputs(tmp_path)[1]


def test_a_run_that_ended_after_the_sweep_was_killed_is_not_repeated(runner, tmp_path, monkeypatch):
    made = runner("fast")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(made, "end", lambda *_: 1 / 0)
        made.run()
    assert states(made) == [RUNNING]
    again = runner("fast")
    again.run()
    assert states(again) == [FINISHED] and outputs(tmp_path)[0].count("started") == 1


def test_a_pruned_trial_is_stopped_with_its_other_seeds(runner):
    made, reported = runner("slow", num_epochs=50, seeds=2), []

    def prune_after_two(trial, epoch, value):
        reported.append((epoch, value))
        return epoch == 2

    made.study.should_prune = prune_after_two
    made.run()
    assert states(made) == [PRUNED, PRUNED] and reported == [(1, 0.1), (2, 0.2)]
    assert made.study.trials()[0].runs[0].epochs < 10
    assert made.study.study.get_trials()[0].state.name == "PRUNED"


def test_a_run_without_the_metric_has_failed(runner):
    made = runner("fast")
    made.study.plan.metric = "dice"
    made.run()
    assert states(made) == [FAILED] and "no finite val/dice" in made.study.trials()[0].runs[0].last_line


def test_the_output_of_a_run_does_not_follow_a_link(runner, tmp_path):
    (tmp_path / "theirs.txt").write_text("theirs\n")
    directory = tmp_path / "runs" / "000-seed0"
    directory.mkdir(parents=True)
    (directory / "output.txt").symlink_to(tmp_path / "theirs.txt")
    with pytest.raises(UserError, match=r"Cannot write .*output\.txt"):
        runner("fast").run()
    assert (tmp_path / "theirs.txt").read_text() == "theirs\n"


# ---- the files of a run ----------------------------------------------------------------------------------------------
def test_the_curve_is_that_of_the_newest_run_without_epochs_that_were_not_validated(tmp_path):
    assert read_curve(tmp_path, "accuracy") == []
    for name, text in (("1", "epoch,val/accuracy\n1,0.1\n"), ("2", "epoch,val/accuracy\n1,\n2,0.5\n3,nan\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(text)
    assert read_curve(tmp_path, "accuracy") == [(2, 0.5)]
    (tmp_path / "2" / "metrics.csv").write_text("epoch,val/accuracy\n1,0.1\n2,0.5\n3,inf\n4\n")
    assert read_curve(tmp_path, "accuracy") == [(1, 0.1), (2, 0.5)]


def test_the_last_line_is_not_blank(tmp_path):
    (tmp_path / "output.txt").write_text("x" * 9000 + "\nfirst\nlast  \n\n")
    assert last_line(tmp_path / "output.txt") == "last"
