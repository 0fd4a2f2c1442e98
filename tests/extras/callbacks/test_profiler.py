"""A profile is a file that others can read, of the updates that were asked for, and changes nothing."""

import json
import re

import pytest

from callbacks.callback import Callback
from extras.callbacks.profiler import WARM_UP, format_operators
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError

MANY = ("--batch_size", "32")  # 16 updates an epoch


def traces(trainer) -> dict[str, list[str]]:
    """The updates that each trace names, by the name of its file."""
    found = {}
    for path in (trainer.run_dir.path / "profile").glob("*.pt.trace.json"):
        events = json.loads(path.read_text())["traceEvents"]
        names = [event["name"] for event in events if event.get("ph") == "X"]
        assert "aten::addmm" in names
        found[path.name] = [name for name in names if name.startswith("update ")]
    return found


def said(trainer) -> str:
    (path,) = trainer.run_dir.path.glob("*_log.txt")
    return path.read_text()


class Raises(Callback):
    """Ends a run after an update, or in the middle of one."""

    def __init__(self, error: type[BaseException] | None, update: int, is_in_it: bool = False):
        self.error = error
        self.update = update
        self.is_in_it = is_in_it

    def on_update_end(self, trainer, values):
        if trainer.progress.update == self.update:
            if not self.is_in_it:
                raise self.error()

            def fail(*arguments):
                raise self.error()

            trainer.compute_loss = fail


class Stops(Raises):
    def on_update_end(self, trainer, values):
        trainer.should_stop = trainer.progress.update == self.update


def test_trace_holds_the_updates_after_the_warm_up_and_training_goes_on(train):
    run = train(*MANY, "--profile", 4)
    first = WARM_UP + 1
    assert traces(run) == {"updates_6-9.pt.trace.json": [f"update {number}" for number in range(first, first + 4)]}
    assert run.progress.epoch == run.opt.n_epoch and "Profiled updates 6 to 9" in said(run)
    table = (run.run_dir.path / "profile" / "updates_6-9_operators.txt").read_text().splitlines()
    assert table[0].split() == ["operator,", "per", "update", "calls", "CPU", "ms", "CPU", "%"]
    calls = {line[:80].strip(): line[80:].split() for line in table[1:]}
    assert calls["(Python, in the update)"][0] == "1" and calls["aten::addmm"][0] == "3"  # three layers
    assert sum(float(numbers[2]) for numbers in calls.values()) == pytest.approx(100, abs=5)


def test_lines_of_the_log_fit_a_narrow_terminal(train):
    run = train(*MANY, "--profile", 2)
    table = re.search(r"operator, per update.*?(?=\nAll operators)", said(run), re.DOTALL)[0].splitlines()
    assert len(table) == 13 and max(map(len, table)) <= 80


def test_profile_changes_no_weights(train, differences):
    def state(trainer):
        state = trainer.state_dict()
        return {name: state[name] for name in ("networks", "optimizers", "schedulers", "random", "epoch_log")}

    assert not differences(state(train()), state(train("--profile", 3)))


def test_no_evaluation_is_in_it(train):
    run = train("--profile", 20)  # an epoch has 8 updates
    assert traces(run) == {"updates_2-8.pt.trace.json": [f"update {number}" for number in range(2, 9)]}
    assert "there were only 7 of 20 to record" in said(run)


def test_it_waits_for_an_epoch_that_is_long_enough(train, build):
    first = train(*MANY, callbacks=[Stops(None, 10)])
    run = build("--resume", first.run_dir.path, "--profile", 8)
    run.train()
    assert list(traces(run)) == ["updates_22-29.pt.trace.json"]  # 6 updates were left of the first epoch


@pytest.mark.parametrize("is_in_update", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_run_that_breaks_off_leaves_a_whole_trace(build, error, is_in_update):
    run = build(*MANY, "--profile", 8, callbacks=[Raises(error, 8, is_in_update)])
    is_explained = error is ZeroDivisionError and not is_in_update  # the callback's own
    with pytest.raises(UserError if is_explained else error):
        run.train()
    ((_, updates),) = traces(run).items()
    assert updates[:2] == ["update 6", "update 7"]
    assert "there were only" in said(run)
    train_again = build(*MANY, "--profile", 2)  # torch's profiler is free again
    train_again.train()
    assert len(traces(train_again)) == 1


def test_a_run_that_is_asked_to_stop_leaves_a_whole_trace(train):
    run = train(*MANY, "--profile", 8, callbacks=[Stops(None, 7)])
    assert traces(run) == {"updates_6-7.pt.trace.json": ["update 6", "update 7"]}


def test_a_run_too_short_for_any_says_so(train):
    run = train(*MANY, "--profile", 8, callbacks=[Stops(None, 3)])
    assert not (run.run_dir.path / "profile").exists() and "the run ended before the warm-up was over" in said(run)


def test_a_debug_run_warms_up_less(train):
    assert list(traces(train("--debug", "--profile", 2))) == ["updates_2-3.pt.trace.json"]


@pytest.mark.parametrize("number", ["0", "-1", "1001", "x"])
def test_a_number_out_of_range_ends_with_status_2(number, capsys):
    with pytest.raises(SystemExit) as caught:
        TrainerVanilla.parse_options(["--profile", number])
    assert caught.value.code == 2 and "--profile" in capsys.readouterr().err


def test_a_gpu_has_columns_of_its_own_and_a_long_name_is_cut():
    rows = [("aten::mm", 20, 0.01, 0.03), ("x" * 60, 10, 0.03, 0.01)]
    lines = format_operators(rows, num_updates=10, name_width=38, most=12).splitlines()
    assert lines[0].split()[-8:] == ["CPU", "ms", "CPU", "%", "GPU", "ms", "GPU", "%"]
    assert lines[1].split() == ["aten::mm", "2", "1.000", "25.0", "3.000", "75.0"]
    assert lines[2].startswith("x" * 34 + "... ") and {len(line) for line in lines} == {80}
