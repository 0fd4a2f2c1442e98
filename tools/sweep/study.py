"""The trials of a sweep, which Optuna proposes, prunes and keeps.

A trial is one setting of the swept options. It has a run for each seed. The study is the only record: everything about
a trial and its runs stands in a journal file, or a database, so that a sweep that was killed can go on.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tools.sweep.plan import as_text, import_optuna
from utils.errors import UserError

WAITING, RUNNING, INTERRUPTED = "waiting", "running", "interrupted"
FINISHED, PRUNED, FAILED = "finished", "pruned", "failed"
UNFINISHED = (WAITING, RUNNING, INTERRUPTED)


@dataclass
class Run:
    """One run of the trainer.

    Attributes:
        seed: its seed.
        state: "waiting", "running", "interrupted", "finished", "pruned" or "failed".
        status: its exit status, once it has ended; negative for a signal that killed it.
        last_line: the last line that it printed, when it failed.
        value: the best value of the monitored metric so far.
        epochs: completed epochs.
        seconds: duration, over all resumes.
    """

    seed: int
    state: str = WAITING
    status: int | None = None
    last_line: str = ""
    value: float | None = None
    epochs: int = 0
    seconds: float = 0.0


@dataclass
class Trial:
    """One setting of the swept options, as texts by name, with a run for each seed.

    >>> trial = Trial(3, {"lr": "1e-3"}, [Run(0, FINISHED, value=0.8), Run(1, FINISHED, value=0.9)])
    >>> trial.name, round(trial.mean, 3), trial.state
    ('003', 0.85, 'finished')
    """

    number: int
    settings: dict[str, str]
    runs: list[Run]
    handle: Any = field(default=None, repr=False, compare=False)  # optuna.trial.Trial, while it is unfinished
    last_epoch: int = 0  # the last one that was reported to the study
    is_pruned: bool = False

    @property
    def name(self) -> str:
        return f"{self.number:03d}"

    @property
    def values(self) -> list[float]:
        """The values of the finished runs."""
        return [run.value for run in self.runs if run.state == FINISHED and run.value is not None]

    @property
    def mean(self) -> float | None:
        """The mean of `values`; None without one."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of `values`; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def state(self) -> str:
        """The first of these states that one of its runs has."""
        states = {run.state for run in self.runs}
        order = (RUNNING, WAITING, INTERRUPTED, PRUNED, FAILED, FINISHED)
        return next(state for state in order if state in states)

    @property
    def is_over(self) -> bool:
        return all(run.state not in UNFINISHED for run in self.runs)

    def drop_waiting(self) -> None:
        """Give up the runs that have not started, when the trial is pruned."""
        for run in self.runs:
            if run.state == WAITING:
                run.state = PRUNED

    def directory(self, root: Path, run: Run) -> Path:
        """The --output_dir of one of its runs; the run makes its own directory in it."""
        return root / "runs" / f"{self.name}-seed{run.seed}"


def open_storage(where: str) -> Any:
    """Open the storage of a study; UserError when that fails.

    Args:
        where: a URL of a database, such as sqlite:///sweep.db, or else a journal file. Several machines can share both;
            all of them must see the file.
    """
    optuna = import_optuna()
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        return RDBStorage(where) if "://" in where else JournalStorage(JournalFileBackend(where))
    except (OSError, ImportError, ValueError, optuna.exceptions.OptunaError, KeyError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    except Exception as error:  # SQLAlchemy's have no base class that could be named without importing it
        reason = str(error)
    raise UserError(f"Cannot open the storage {where}: {' '.join(reason.split())[:200]}")


class Study:
    """An Optuna study with the trials of a sweep.

    The trials of a grid are enqueued when the study is made. Each value of a search is drawn with a seed of its own,
    which depends on `search_seed`, the number of the trial and the place of the option. So a trial depends only on
    these and on the trials that ended before it: a sweep with one job proposes the same trials whether or not it was
    killed on the way.

    Args:
        storage: see `open_storage`.
        name: the name of the study in the storage; one that exists is continued.
        spaces: the distributions of the swept options, by name.
        plan: the options that define the sweep; all that work on a study must have the same.
        mode: "max" or "min": which values of the metric are best.
        seeds: the seeds of the runs of a trial. The first one decides whether the trial is pruned.
        grid: the settings of the trials of a grid; None for a search.
        num_trials: how many trials a search has, over all machines.
        prune_after: how many trials must have ended before one is pruned; None prunes none.
        search_seed: the seed of the proposals.
        owner: the name of this sweep among those that share the study; "" when none does.

    Raises:
        UserError: when the study was begun with another plan.
    """

    def __init__(
        self,
        storage: Any,
        name: str,
        spaces: Mapping[str, Any],
        plan: Mapping[str, Any],
        mode: str,
        seeds: Sequence[int],
        grid: Sequence[dict[str, str]] | None = None,
        num_trials: int = 0,
        prune_after: int | None = None,
        search_seed: int = 0,
        owner: str = "",
    ):
        self.optuna = import_optuna()
        self.storage = storage
        self.spaces = spaces
        self.seeds = seeds
        self.num_trials = num_trials if grid is None else len(grid)
        self.search_seed = search_seed
        self.owner = owner
        pruner = self.optuna.pruners.NopPruner()
        if prune_after is not None:
            pruner = self.optuna.pruners.MedianPruner(n_startup_trials=prune_after, n_warmup_steps=1)
        direction = "maximize" if mode == "max" else "minimize"
        self.study = self.optuna.create_study(
            storage=storage, study_name=name, direction=direction, pruner=pruner, load_if_exists=True
        )
        if "plan" not in self.study.user_attrs:
            self.study.set_user_attr("plan", {**plan, "owner": owner})
        begun_with = self.study.user_attrs["plan"]
        for option, value in plan.items():
            if begun_with.get(option) != value:
                raise UserError(
                    f"The study {name!r} was begun with another {option}: {begun_with.get(option)}, and not {value}. "
                    f"Another --study begins a new one."
                )
        if grid is not None and begun_with["owner"] == owner:
            for settings in grid[len(self.study.get_trials(deepcopy=False)) :]:  # a kill may have left some out
                self.study.enqueue_trial(settings)

    # ---- trials ------------------------------------------------------------------------------------------------------
    def trials(self) -> list[Trial]:
        """Return all trials, those of other machines included."""
        return [self.read(frozen) for frozen in self.study.get_trials(deepcopy=False) if self.is_complete(frozen)]

    def is_complete(self, frozen: Any) -> bool:
        """Say whether a trial has all of its values; a sweep may be killed while it is being proposed."""
        return self.spaces.keys() <= frozen.params.keys() and "runs" in frozen.user_attrs

    def read(self, frozen: Any) -> Trial:
        settings = {name: as_text(frozen.params[name]) for name in self.spaces}
        return Trial(frozen.number, settings, [Run(**run) for run in frozen.user_attrs["runs"]])

    def unfinished(self) -> list[Trial]:
        """Return the trials that this sweep has begun and not finished: a kill or a signal ended it."""
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        trials = []
        for frozen in self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.RUNNING,)):
            if frozen.user_attrs.get("owner", "") != self.owner:
                continue
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, frozen.number)
            handle = self.optuna.trial.Trial(self.study, trial_id)
            trial = self.read(frozen) if self.is_complete(frozen) else self.propose(handle)
            trial.handle = handle
            for run in trial.runs:
                run.state = WAITING if run.state in UNFINISHED else run.state
            if any(run.state == PRUNED for run in trial.runs):
                trial.drop_waiting()
            if trial.is_over:
                self.finish(trial)  # the sweep was killed after the last run had ended
            else:
                trials.append(trial)
        return trials

    def next_trial(self) -> Trial | None:
        """Return the next trial, enqueued or proposed; None when the study has all of them."""
        waiting = self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.WAITING,))
        if not waiting and len(self.study.get_trials(deepcopy=False)) >= self.num_trials:
            return None
        handle = self.study.ask()
        if handle.number >= self.num_trials:  # another machine asked at the same moment
            self.study.tell(handle, state=self.optuna.trial.TrialState.FAIL)
            return None
        return self.propose(handle)

    def propose(self, handle: Any) -> Trial:
        """Draw the values of a trial; one that it already has stays."""
        if self.owner:
            handle.set_user_attr("owner", self.owner)
        settings = {}
        for place, (name, space) in enumerate(self.spaces.items()):
            self.study.sampler = self.sampler(handle.number, place)
            settings[name] = as_text(self.suggest(handle, name, space))
        trial = Trial(handle.number, settings, [Run(seed) for seed in self.seeds], handle)
        self.record(trial)
        return trial

    def sampler(self, number: int, place: int) -> Any:
        """Return the sampler of one value of a search: Optuna's TPE."""
        import numpy as np

        (seed,) = np.random.SeedSequence((self.search_seed, number, place)).generate_state(1)
        return self.optuna.samplers.TPESampler(seed=int(seed))

    def suggest(self, handle: Any, name: str, space: Any) -> str | float:
        """Draw a value of one option; the value that an enqueued trial has."""
        if isinstance(space, self.optuna.distributions.CategoricalDistribution):
            return handle.suggest_categorical(name, space.choices)
        is_int = isinstance(space, self.optuna.distributions.IntDistribution)
        draw = handle.suggest_int if is_int else handle.suggest_float
        return draw(name, space.low, space.high, log=space.log)

    # ---- reports of the runner ---------------------------------------------------------------------------------------
    def record(self, trial: Trial) -> None:
        """Save the runs of an unfinished trial."""
        trial.handle.set_user_attr("runs", [asdict(run) for run in trial.runs])

    def should_prune(self, trial: Trial, epoch: int, value: float) -> bool:
        """Report the metric after an epoch (from 1), and say whether the trial is not worth continuing."""
        step = epoch - 1  # Optuna counts from 0
        reported = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if step not in reported:  # it may be, before a kill
            trial.handle.report(value, step)
        return trial.handle.should_prune()

    def finish(self, trial: Trial) -> None:
        """Report the result of a trial whose runs have all ended."""
        self.record(trial)
        states = self.optuna.trial.TrialState
        has_failed = any(run.state == FAILED for run in trial.runs)
        if trial.state == PRUNED and not has_failed:
            self.study.tell(trial.number, state=states.PRUNED)
        elif has_failed or trial.mean is None:
            self.study.tell(trial.number, state=states.FAIL)
        else:
            self.study.tell(trial.number, trial.mean)
