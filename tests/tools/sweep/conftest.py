"""A study in memory, or in a file."""

import pytest


@pytest.fixture
def make_study():
    """A function that makes a study: `make_study(storage=None, **settings)`; None is memory."""
    optuna = pytest.importorskip("optuna")
    from tools.sweep.plan import parse_search
    from tools.sweep.study import Study

    def make_study(storage=None, **settings):
        storage = optuna.storages.InMemoryStorage() if storage is None else storage
        spaces = parse_search(["lr=log:1e-4..1e-1", "n=int:1..9", "optim=adamW,sgd"])
        defaults = {"plan": {"metric": "accuracy"}, "mode": "max", "num_trials": 8, "seeds": [0], "prune_after": 2}
        return Study(storage, "sweep", **{"spaces": spaces, **defaults, **settings})

    return make_study
