"""Optuna proposes, prunes and remembers: also after the sweep was killed, and for two machines."""

import re
import sys
from dataclasses import asdict
from functools import partialmethod

import pytest

optuna = pytest.importorskip("optuna")

from tools.sweep.plan import import_optuna  # noqa: E402
from tools.sweep.study import FAILED, FINISHED, PRUNED, Run, Study, Trial  # noqa: E402
from utils.errors import UserError  # noqa: E402

add = Study.add
COMPLETE, FAIL, STATE_PRUNED = (getattr(optuna.trial.TrialState, name) for name in ("COMPLETE", "FAIL", "PRUNED"))


def finish(study, trial, value=None, state=FINISHED):
    trial.runs[0] = Run(0, state, 0, value=value)
    study.record(trial)


def states(study):
    return [trial.state for trial in study.study.get_trials()]


def value_of(trial):
    """A possible result of a run with these settings."""
    return float(trial.settings["lr"]) + 0.01 * int(trial.settings["n"])


def test_proposals_are_in_the_spaces(make_study):
    study = make_study(trials=4)
    trials = [study.next_trial() for _ in range(5)]
    assert trials.pop() is None
    for trial in trials:
        assert 1e-4 <= float(trial.settings["lr"]) <= 0.1 and trial.settings["n"] in "123456789"
        assert trial.settings["optim"] in ("adamW", "sgd")
    assert len({str(trial.settings) for trial in trials}) == 4


def killed_at_n(handle, suggest, name, space):
    if name == "n":
        raise KeyboardInterrupt
    return suggest(handle, name, space)


@pytest.mark.parametrize("killed", ["in a run", "in a proposal", "after each trial"])
def test_a_killed_search_proposes_the_same_trials(make_study, tmp_path, monkeypatch, killed):
    uninterrupted = make_study(trials=16)
    while trial := uninterrupted.next_trial():
        finish(uninterrupted, trial, value_of(trial))

    study = make_study(tmp_path, trials=16)
    for number in range(16):
        if killed == "in a proposal" and number in (5, 13):  # before the second of three values is drawn
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(optuna.trial.Trial, "_suggest", partialmethod(killed_at_n, optuna.trial.Trial._suggest))
                study.next_trial()
            study = make_study(tmp_path, trials=16)
            assert list(study.unfinished()) == []
        trial = study.next_trial()
        if killed == "in a run" and number in (5, 13):
            study = make_study(tmp_path, trials=16)
            (trial,) = study.unfinished()
        finish(study, trial, value_of(trial))
        if killed == "after each trial":
            study = make_study(tmp_path, trials=16)
    assert study.next_trial() is None
    made, wanted = ([(trial.settings, trial.runs) for trial in each.trials()] for each in (study, uninterrupted))
    assert made == wanted


def test_another_search_seed_proposes_other_trials(make_study):
    proposed = [make_study(search_seed=seed).next_trial().settings for seed in (0, 0, 1)]
    assert proposed[0] == proposed[1] != proposed[2]


def test_a_trial_below_the_median_is_pruned_once_enough_have_finished(make_study):
    study = make_study()
    for value in (0.8, 0.9):
        trial = study.next_trial()
        assert not any(study.should_prune(trial, epoch, value) for epoch in (1, 2))
        finish(study, trial, value)
    bad, good = study.next_trial(), study.next_trial()
    assert [study.should_prune(bad, epoch, 0.1) for epoch in (1, 2)] == [False, True]  # not after the first epoch
    assert not any(study.should_prune(good, epoch, 0.95) for epoch in (1, 2))
    finish(study, bad, 0.1, PRUNED)
    finish(study, good, state=FAILED)
    assert states(study) == [COMPLETE, COMPLETE, STATE_PRUNED, FAIL]
    unpruned = make_study(prune=False)
    trial = unpruned.next_trial()
    assert not any(unpruned.should_prune(trial, epoch, -epoch) for epoch in range(1, 9))


def test_a_grid_is_in_its_order_also_when_it_was_killed_while_it_was_written_down(make_study, tmp_path, monkeypatch):
    def killed_at_the_last(study, settings):
        if settings == {"lr": "2", "optim": "b"}:
            raise KeyboardInterrupt
        add(study, settings)

    options = {"grid": ["lr=1,2", "optim=a,b"], "search": []}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Study, "add", killed_at_the_last)
        make_study(tmp_path, **options)
    study = make_study(tmp_path, **options)
    trials = []
    while trial := study.next_trial():
        trials.append(trial)
    assert [tuple(trial.settings.values()) for trial in trials] == [("1", "a"), ("1", "b"), ("2", "a"), ("2", "b")]
    again = make_study(tmp_path, **options)
    assert list(again.unfinished()) == trials and again.next_trial() is None


def test_a_sweep_that_was_killed_while_it_began_is_continued(make_study, tmp_path, monkeypatch):
    def killed(self):
        self.study.set_user_attr("owner", self.owner)
        raise KeyboardInterrupt

    options = {"grid": ["lr=1,2"], "search": []}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Study, "check_plan", killed)
        make_study(tmp_path, **options)
    study = make_study(tmp_path, **options)
    assert [study.next_trial().settings["lr"] for _ in range(2)] == ["1", "2"]


def test_a_trial_is_run_though_the_sweep_was_killed_when_it_took_it(make_study, tmp_path, monkeypatch):
    def killed(handle, name, value):
        raise KeyboardInterrupt

    options = {"grid": ["lr=1,2", "n=a,b"], "search": []}
    study = make_study(tmp_path, **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.trial.Trial, "set_user_attr", killed)
        study.next_trial()
    settings = [tuple(trial.settings.values()) for trial, _ in make_study(tmp_path, **options).runs()]
    assert settings == [("1", "a"), ("1", "b"), ("2", "a"), ("2", "b")]


@pytest.mark.parametrize("url", ["{}/study.journal", "sqlite:///{}/study.db"])
def test_machines_share_a_study_and_each_goes_on_with_its_own_trials(make_study, tmp_path, url):
    here, there = tmp_path / "here", tmp_path / "there"
    storage = url.format(tmp_path)
    first = make_study(here, storage=storage)
    done, going, over = first.next_trial(), first.next_trial(), first.next_trial()
    finish(first, done, 0.5)
    assert not first.should_prune(going, 1, 0.4)
    over.handle.set_user_attr("runs", [asdict(Run(0, FINISHED, 0, value=0.6))])  # killed before its result

    other = make_study(there, storage=storage)
    assert list(other.unfinished()) == [] and other.next_trial().number == 3
    again = make_study(here, storage=storage)
    assert list(again.unfinished()) == [going]
    (going,) = again.unfinished()
    assert states(again)[2] == COMPLETE
    assert not again.should_prune(going, 1, 0.4) and not again.should_prune(going, 2, 0.6)
    finish(again, going, 0.6)
    assert [trial.mean for trial in again.trials()] == [0.5, 0.6, 0.6, None]


def test_machines_that_draw_the_last_trial_at_once_run_it_once(make_study, tmp_path):
    storage = str(tmp_path / "study.journal")
    here, there = (make_study(tmp_path / name, storage=storage, trials=1) for name in ("here", "there"))
    here.add(here.draw(0))
    there.add(there.draw(0))
    assert here.next_trial().number == 0 and there.next_trial() is here.next_trial() is None
    assert len(here.trials()) == 1  # the other one waits for more --trials
    assert make_study(tmp_path / "there", storage=storage, trials=2).next_trial().number == 1


def test_a_trial_has_only_the_options_that_have_an_effect_in_it(make_study):
    def effective(settings):
        return {name: text for name, text in settings.items() if name != "n" or settings["optim"] == "sgd"}

    study = make_study(trials=16, effective=effective)
    while trial := study.next_trial():
        assert list(trial.settings) == (["lr", "n", "optim"] if trial.settings["optim"] == "sgd" else ["lr", "optim"])
        finish(study, trial, float(trial.settings["lr"]))
    assert {len(trial.settings) for trial in study.trials()} == {2, 3}


def test_a_study_of_another_plan_is_not_continued(make_study, tmp_path):
    make_study(tmp_path)
    with pytest.raises(UserError, match="another metric: accuracy, and not loss"):
        make_study(tmp_path, metric="loss")
    with pytest.raises(UserError, match="another flags"):
        make_study(tmp_path, flags=["--n_epoch=3"])


def test_a_value_that_was_put_into_the_file_of_a_study_does_not_reach_a_command_line(make_study, tmp_path):
    options = {"grid": ["model_type=Vanilla,LeNet"], "search": []}
    study = make_study(tmp_path, **options)
    study.next_trial()
    journal = tmp_path / "optuna.journal"
    journal.write_text(re.sub("(?<![=r])Vanilla", "os:system", journal.read_text()))  # not in the plan
    with pytest.raises(UserError, match="model_type='os:system', which is not in"):
        list(make_study(tmp_path, **options).unfinished())


def test_a_seed_that_was_put_into_the_file_of_a_study_names_no_directory(make_study, tmp_path):
    make_study(tmp_path).next_trial()
    journal = tmp_path / "optuna.journal"
    journal.write_text(journal.read_text().replace('"seed":0', '"seed":"../../x"'))
    with pytest.raises(UserError, match="other seeds than 0 to 0"):
        list(make_study(tmp_path).unfinished())


@pytest.mark.parametrize("where", ["nowhere/x.journal", "sqlite:////nowhere/x/y.db", "what://x", "sqlite://:bad:/x"])
def test_a_storage_that_cannot_be_opened_is_named_in_one_line(make_study, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="Cannot open the storage") as error:
        make_study(storage=where)
    assert where in str(error.value) and "\n" not in str(error.value)


def test_without_optuna_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="pip install optuna"):
        import_optuna()


def test_the_state_of_a_trial_is_that_of_the_run_that_is_least_far():
    assert Trial(0, {}, [Run(0, FINISHED), Run(1)]).state == "waiting"
    assert Trial(0, {}, [Run(0, FINISHED), Run(1, FAILED)]).state == FAILED
    trial = Trial(0, {}, [Run(0, FINISHED, value=0.5), Run(1)])
    assert (trial.mean, trial.deviation) == (0.5, None)
