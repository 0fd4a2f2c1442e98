"""The trials of a sweep, which Optuna proposes, prunes and keeps.

A trial is one setting of the swept options. It has a run for each seed. The study is the only record: everything about
a trial and its runs stands in a journal file, or a database, so that a sweep that was killed can go on.
"""

import socket
import statistics
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
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
    is_pruned: bool = False

    @property
    def name(self) -> str:
        return f"{self.number:03d}"

    @property
    def values(self) -> list[float]:
        """The values of the finished runs."""
        return [run.value for run in self.runs if run.state == FINISHED]

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
        return next(state for state in (*reversed(UNFINISHED), FAILED, PRUNED, FINISHED) if state in states)

    def directory(self, root: Path, run: Run) -> Path:
        """The --output_dir of one of its runs; the run makes its own directory in it."""
        return root / "runs" / f"{self.name}-seed{run.seed}"


def open_storage(where: str) -> Any:
    """Open the storage of a study; UserError when that fails.

    Args:
        where: a URL of a database, such as sqlite:///sweep.db, or else a journal file. Several machines can share both;
            all of them must see the file.
    """
    import_optuna()
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        return RDBStorage(where) if "://" in where else JournalStorage(JournalFileBackend(where))
    except Exception as error:  # of the system, of Optuna, of SQLAlchemy, of a database's driver
        reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"Cannot open the storage {where}: {' '.join(reason.split())[:200]}")


class Study:
    """An Optuna study with the trials of a sweep.

    The trials of a grid are enqueued when the study is made. Those of a search are drawn by Optuna's TPE, each with a
    seed of its own, which depends on --search_seed and how many came before. So a trial depends only on these and on
    the trials that ended before it: a sweep with one job proposes the same trials whether or not it was killed.

    Args:
        opt: the options of the sweep.
        root: its directory, which has the journal unless there is a --storage.
        spaces: the distributions of the swept options, by name.
        grid: the settings of the trials of a grid; None for a search.
        task: the name of the trainer.
        metric: the name of the monitored metric.
        mode: "max" or "min": which values of the metric are best.

    Raises:
        UserError: when the storage cannot be opened, or the study in it was begun with another plan.
    """

    def __init__(
        self,
        opt: Namespace,
        root: Path,
        spaces: Mapping[str, Any],
        grid: Sequence[dict[str, str]] | None,
        task: str,
        metric: str,
        mode: str,
    ):
        self.optuna = import_optuna()
        self.states = self.optuna.trial.TrialState
        self.opt = opt
        self.spaces = spaces
        self.num_trials = opt.trials if grid is None else len(grid)
        self.metric = metric
        self.mode = mode
        self.owner = f"{socket.gethostname()} {root.resolve()}" if opt.storage else ""  # among those that share it
        self.storage = open_storage(opt.storage or str(root / "optuna.journal"))
        self.study = self.optuna.create_study(
            storage=self.storage,
            study_name=opt.study,
            direction="maximize" if mode == "max" else "minimize",
            pruner=self.pruner(),
            load_if_exists=True,
        )
        plan = {"task": task, "metric": metric, "grid": opt.grid, "search": opt.search, "seeds": opt.seeds}
        self.check_plan(plan | {"flags": opt.flags})
        self.drop_half_proposed()
        if grid is not None and self.study.user_attrs["owner"] == self.owner:
            self.enqueue(grid)

    def pruner(self) -> Any:
        """Return Optuna's pruner: of trials below the median of the others after as many epochs, or of none."""
        if self.opt.grid or not self.opt.prune:
            return self.optuna.pruners.NopPruner()
        return self.optuna.pruners.MedianPruner(n_startup_trials=self.opt.prune_after, n_warmup_steps=1)

    def check_plan(self, plan: Mapping[str, Any]) -> None:
        """Save what defines the sweep in a new study; UserError when an old one has something else."""
        if "plan" not in self.study.user_attrs:
            self.study.set_user_attr("owner", self.owner)
            self.study.set_user_attr("plan", plan)  # last: the sweep may be killed between the two
        begun_with = self.study.user_attrs["plan"]
        for name, value in plan.items():
            if begun_with.get(name) != value:
                raise UserError(
                    f"The study {self.opt.study!r} was begun with another {name}: {begun_with.get(name)}, and not "
                    f"{value}. Another --study begins a new one."
                )

    def drop_half_proposed(self) -> None:
        """Give up a trial without runs: the sweep was killed before all of its values were drawn."""
        for frozen in self.kept(self.states.RUNNING):
            if "runs" not in frozen.user_attrs and not self.owner:  # another machine may be proposing it
                self.study.tell(frozen.number, state=self.states.FAIL)

    def enqueue(self, grid: Sequence[dict[str, str]]) -> None:
        """Enqueue the settings that the study does not have: all of them, unless the sweep was killed."""
        enqueued = {tuple(frozen.system_attrs["fixed_params"].values()) for frozen in self.kept()}
        for settings in grid:
            if tuple(settings.values()) not in enqueued:
                self.study.enqueue_trial(settings)

    # ---- trials ------------------------------------------------------------------------------------------------------
    def kept(self, *states: Any) -> list[Any]:
        """Return Optuna's records of the trials, of the given states if any, without those that were given up."""
        frozen = self.study.get_trials(deepcopy=False, states=states or None)
        return [each for each in frozen if each.state != self.states.FAIL or "runs" in each.user_attrs]

    def trials(self) -> list[Trial]:
        """Return all trials that have begun, those of other machines included."""
        return [self.read(frozen) for frozen in self.kept() if "runs" in frozen.user_attrs]

    def read(self, frozen: Any) -> Trial:
        settings = {name: as_text(frozen.params[name], name, space) for name, space in self.spaces.items()}
        runs = [Run(**run) for run in frozen.user_attrs["runs"]]
        if [run.seed for run in runs] != list(range(self.opt.seeds)):  # they stand in the names of directories
            raise UserError(f"The study has other seeds than 0 to {self.opt.seeds - 1}. Was its file changed?")
        return Trial(frozen.number, settings, runs)

    def runs(self) -> Iterator[tuple[Trial, Run]]:
        """Yield the runs that are left, those of unfinished trials first. A trial is proposed when a slot is free."""
        unfinished = iter(self.unfinished())
        while trial := next(unfinished, None) or self.next_trial():
            for run in trial.runs:
                if run.state in UNFINISHED:
                    yield trial, run

    def unfinished(self) -> list[Trial]:
        """Return the trials that this sweep has begun and not finished: a kill or a signal ended it."""
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        trials = []
        for frozen in self.kept(self.states.RUNNING):
            if "runs" not in frozen.user_attrs or frozen.user_attrs["owner"] != self.owner:
                continue
            trial = self.read(frozen)
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, frozen.number)
            trial.handle = self.optuna.trial.Trial(self.study, trial_id)
            trial.is_pruned = any(run.state == PRUNED for run in trial.runs)
            for run in trial.runs:
                if run.state in UNFINISHED:
                    run.state = PRUNED if trial.is_pruned else WAITING
            self.record(trial)
            if trial.state == WAITING:
                trials.append(trial)
        return trials

    def next_trial(self) -> Trial | None:
        """Return the next trial, enqueued or proposed; None when the study has all of them."""
        count = len(self.kept())
        if count >= self.num_trials and not self.kept(self.states.WAITING):
            return None
        import numpy as np

        (seed,) = np.random.SeedSequence((self.opt.search_seed, count)).generate_state(1)
        self.study.sampler = self.optuna.samplers.TPESampler(seed=int(seed))
        handle = self.study.ask(self.spaces)
        if sum(each.number <= handle.number for each in self.kept()) > self.num_trials:  # two machines asked at once
            self.study.tell(handle, state=self.states.FAIL)
            return None
        settings = {name: as_text(handle.params[name], name, space) for name, space in self.spaces.items()}
        trial = Trial(handle.number, settings, [Run(seed) for seed in range(self.opt.seeds)], handle)
        handle.set_user_attr("owner", self.owner)
        self.record(trial)
        return trial

    # ---- reports of the runner ---------------------------------------------------------------------------------------
    def should_prune(self, trial: Trial, epoch: int, value: float) -> bool:
        """Report the metric after an epoch (from 1), and say whether the trial is not worth continuing."""
        trial.handle.report(value, epoch - 1)  # Optuna counts from 0, and ignores an epoch that it knows
        return trial.handle.should_prune()

    def record(self, trial: Trial) -> None:
        """Save the runs of an unfinished trial, and its result once all have ended."""
        trial.handle.set_user_attr("runs", [asdict(run) for run in trial.runs])
        if trial.state == FINISHED:
            self.study.tell(trial.number, trial.mean)
        elif trial.state not in UNFINISHED:
            self.study.tell(trial.number, state=self.states.PRUNED if trial.state == PRUNED else self.states.FAIL)
