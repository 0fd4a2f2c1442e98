"""Optuna proposes, prunes and remembers: also after the sweep was killed, and from two machines."""

import sys

import pytest

optuna = pytest.importorskip("optuna")

from tools.sweep.plan import parse_search  # noqa: E402
from tools.sweep.record import FINISHED, PRUNED, Run  # noqa: E402
from tools.sweep.search import Search, import_optuna, open_storage  # noqa: E402
from utils.errors import UserError  # noqa: E402

SPACES = parse_search(["lr=log:1e-4..1e-1", "n=int:1..9", "optim=adamW,sgd"])
COMPLETE, FAIL, RUNNING = (getattr(optuna.trial.TrialState, name) for name in ("COMPLETE", "FAIL", "RUNNING"))


def make(storage, owner="here", plan=None, **more):
    settings = {"mode": "max", "num_trials": 8, "seeds": [0], "prune_after": 2, "seed": 0} | more
    return Search(SPACES, storage, "sweep", plan or {"metric": "accuracy"}, owner=owner, **settings)


def finish(search, trial, value):
    trial.runs[0] = Run(0, FINISHED, 0, value=value)
    search.tell(trial)


def states(search):
    return [trial.state for trial in search.study.get_trials()]


def test_what_is_proposed_is_in_the_spaces_and_repeats_with_the_seed():
    proposed = []
    for _ in range(2):
        search = make(optuna.storages.InMemoryStorage(), num_trials=4)
        trials = [search.more() for _ in range(5)]
        assert trials.pop() is None
        proposed.append([trial.settings for trial in trials])
    assert proposed[0] == proposed[1]
    for settings in proposed[0]:
        assert 1e-4 <= float(settings["lr"]) <= 0.1 and settings["n"] in "123456789"
        assert settings["optim"] in ("adamW", "sgd")


def test_a_trial_below_the_median_is_pruned_once_enough_have_finished():
    search = make(optuna.storages.InMemoryStorage())
    for value in (0.8, 0.9):
        trial = search.more()
        assert not any(search.should_prune(trial, epoch, value) for epoch in (1, 2))
        finish(search, trial, value)
    bad, good = search.more(), search.more()
    assert [search.should_prune(bad, epoch, 0.1) for epoch in (1, 2)] == [False, True]  # not after the first epoch
    assert not any(search.should_prune(good, epoch, 0.95) for epoch in (1, 2))
    bad.runs[0].state = PRUNED
    search.tell(bad)
    assert states(search)[2] == optuna.trial.TrialState.PRUNED
    unpruned = make(optuna.storages.InMemoryStorage(), prune_after=None)
    trial = unpruned.more()
    assert not any(unpruned.should_prune(trial, epoch, -epoch) for epoch in range(1, 9))


@pytest.mark.parametrize("url", ["study.journal", "sqlite:///{}/study.db"])
def test_a_search_that_was_killed_goes_on_and_others_share_it(tmp_path, url):
    where = url.format(tmp_path) if "://" in url else str(tmp_path / url)
    first = make(open_storage(where))
    done, going, ended = first.more(), first.more(), first.more()
    finish(first, done, 0.5)
    assert not first.should_prune(going, 1, 0.4)
    ended.runs[0] = Run(0, FINISHED, 0, value=0.6)  # written down, but not yet told
    first.more()  # proposed, but not yet written down

    other = make(open_storage(where), owner="there")
    assert other.more().number_in_study == 4 and "5 trials, of all machines" in other.summary()
    again = make(open_storage(where))
    again.take_back([done, going, ended])
    assert states(again) == [COMPLETE, RUNNING, COMPLETE, FAIL, RUNNING]
    assert not again.should_prune(going, 1, 0.4) and not again.should_prune(going, 2, 0.6)
    finish(again, going, 0.6)
    new = again.more()
    assert (new.number, new.number_in_study) == (3, 5)
    assert new.settings not in [trial.settings for trial in (done, going, ended)]  # the sampler does not begin anew


def test_a_study_of_another_plan_is_not_gone_on_with(tmp_path):
    storage = open_storage(str(tmp_path / "study"))
    make(storage)
    with pytest.raises(UserError, match="another metric: accuracy, and not loss"):
        make(storage, plan={"metric": "loss"})


@pytest.mark.parametrize("where", ["nowhere/x.journal", "sqlite:////nowhere/x/y.db", "what://x", "sqlite://:bad:/x"])
def test_a_storage_that_cannot_be_opened_is_named_in_one_line(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="Cannot open the storage") as error:
        make(open_storage(where))
    assert where in str(error.value) and "\n" not in str(error.value)


def test_without_optuna_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="pip install optuna"):
        import_optuna()
