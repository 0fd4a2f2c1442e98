"""Runs go side by side, fail alone, stop in good order, and are not repeated. The runs here are small programs."""

import os
import signal
import sys

import pytest

from engine.runs.signals import Terminated
from tools.sweep.record import FAILED, FINISHED, INTERRUPTED, PRUNED, WAITING, Run, Trial, load_trials
from tools.sweep.runner import NoMore, Runner

# Writes metrics.csv as a run does, goes on where it was, and answers SIGTERM. Takes a directory, epochs, what to do.
PROGRAM = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
directory, num_epochs, what = pathlib.Path(sys.argv[1]) / "1", int(sys.argv[2]), sys.argv[3]
directory.mkdir(exist_ok=True)
path = directory / "metrics.csv"
lines = path.read_text().split() if path.exists() else ["epoch,val/accuracy"]
print("started with", len(lines) - 1, "epochs", flush=True)
while len(lines) <= num_epochs:
    if what == "fails":
        print("no memory is left", flush=True)
        sys.exit(5)
    lines.append(f"{len(lines)},{0.1 * len(lines):.1f}")
    temporary = directory / "temporary"
    temporary.write_text("\\n".join(lines) + "\\n")
    temporary.replace(path)
    if what == "slow":
        time.sleep(0.3)
(directory / "finished.json").write_text("{}")
"""


@pytest.fixture
def runner(tmp_path):
    """A function that makes a runner of trials {"do": what}, and collects what it says in `runner.said`."""

    def runner(*whats, num_slots=1, trials=None, supply=None, num_epochs=3):
        trials = [Trial(i, {"do": what}, [Run(0)]) for i, what in enumerate(whats)] if trials is None else trials
        said = []

        def command(settings, seed, directory, slot):
            return [sys.executable, "-S", "-c", PROGRAM, str(directory), str(num_epochs), settings["do"]]

        made = Runner(tmp_path, trials, supply or NoMore(), command, num_slots, "accuracy", "max", said.append)
        made.said = said
        return made

    return runner


def states(trials):
    return [run.state for trial in trials for run in trial.runs]


def test_a_run_that_fails_does_not_keep_the_others_from_running(runner, tmp_path):
    made = runner("fast", "fails", "fast", num_slots=2)
    made.run()
    assert states(made.trials) == [FINISHED, FAILED, FINISHED]
    failed = made.trials[1].runs[0]
    assert (failed.status, failed.last_line) == (5, "no memory is left")
    assert made.trials[0].runs[0].value == 0.3 and made.trials[0].runs[0].epochs == 3
    assert load_trials(tmp_path / "trials.json") == made.trials
    assert any("status 5: no memory" in line for line in made.said)


def test_two_run_side_by_side(runner):
    made, most = runner("slow", "slow", num_slots=2), []
    made.look_at = lambda process, may_prune: (most.append(len(made.running)), Runner.look_at(made, process, may_prune))
    made.run()
    assert max(most) == 2


def test_a_signal_stops_the_runs_and_a_resume_goes_on_with_them(runner, tmp_path):
    made = runner("fast", "slow", "fast", num_epochs=8)

    def look_at(process, may_prune):
        if may_prune and (tmp_path / "runs" / "001-seed0" / "1" / "metrics.csv").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        Runner.look_at(made, process, may_prune)

    made.look_at = look_at
    with pytest.raises(Terminated):
        made.run()
    assert states(made.trials) == [FINISHED, INTERRUPTED, INTERRUPTED]
    stopped = made.trials[1].runs[0]
    assert stopped.status == 143 and 0 < stopped.epochs < 8
    again = runner(trials=load_trials(tmp_path / "trials.json"), num_epochs=8)
    again.run()
    assert states(again.trials) == [FINISHED] * 3
    outputs = [(trial.directory(tmp_path, trial.runs[0]) / "output.txt").read_text() for trial in again.trials]
    assert outputs[0].count("started") == 1  # the finished one is not repeated
    assert f"started with {stopped.epochs} epochs" in outputs[1]


def test_a_run_that_ended_while_nobody_watched_is_not_repeated(runner, tmp_path):
    runner("fast").run()
    (record,) = load_trials(tmp_path / "trials.json")
    record.runs[0].state = "running"  # as when the sweep was killed
    again = runner(trials=[record])
    again.run()
    assert states(again.trials) == [FINISHED] and record.runs[0].value == 0.3
    assert (tmp_path / "runs" / "000-seed0" / "output.txt").read_text().count("started") == 1


def test_a_trial_in_vain_is_stopped_with_its_other_seeds(runner):
    class Impatient(NoMore):
        told, seen = [], []

        def should_prune(self, trial, epoch, value):
            self.seen.append((epoch, value))
            return epoch == 2

        def tell(self, trial):
            self.told.append(trial.state)

    supply = Impatient()
    made = runner(trials=[Trial(0, {"do": "slow"}, [Run(0), Run(1)])], supply=supply, num_epochs=50)
    made.run()
    assert states(made.trials) == [PRUNED, PRUNED] and supply.told == [PRUNED]
    assert supply.seen[:2] == [(1, 0.1), (2, 0.2)] and made.trials[0].runs[0].epochs < 10


def test_a_run_without_the_metric_has_failed(runner):
    made = runner("fast")
    made.metric = "dice"
    made.run()
    assert states(made.trials) == [FAILED] and "no finite val/dice" in made.trials[0].runs[0].last_line
    assert WAITING not in states(made.trials)
