"""A study in a directory of its own."""

from argparse import Namespace

import pytest


@pytest.fixture
def make_study(tmp_path):
    """A function that makes a study: `make_study(root=None, grid=None, **options)`; None is a new directory."""
    pytest.importorskip("optuna")
    from tools.sweep.plan import Plan, grid_settings, parse_grid, parse_search
    from tools.sweep.study import Study

    search = ["lr=log:1e-4..1e-1", "n=int:1..9", "optim=adamW,sgd"]
    defaults = {
        "grid": [], "search": search, "trials": 8, "seeds": 1, "flags": [], "prune": True, "prune_after": 2,
        "search_seed": 0, "storage": None, "study": "sweep",
    }  # fmt: skip

    def make_study(root=None, metric="accuracy", effective=dict, **options):
        if root is None:
            root = tmp_path / f"study{len(list(tmp_path.iterdir()))}"
            root.mkdir()
        opt = Namespace(**{**defaults, **options})
        spaces = parse_grid(opt.grid) if opt.grid else parse_search(opt.search)
        grid = grid_settings(spaces) if opt.grid else []
        return Study(opt, root, Plan("TrainerVanilla", metric, "max", spaces, grid, effective))

    return make_study
