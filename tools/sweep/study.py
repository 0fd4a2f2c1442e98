"""The trials of a sweep, which Optuna proposes, prunes and keeps.

A trial is one setting of the swept options. It has a run for each seed. The study is the only record: everything about
a trial and its runs stands in a journal file, or a database, so that a sweep that was killed can go on.
"""

import socket
import statistics
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tools.sweep.plan import Plan, import_optuna
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
    handle: Any = field(default=None, repr=False, compare=False)  # optuna.trial.Trial
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

    A trial enters the study in one piece, with its values and its runs, and then waits until a machine takes it. Those
    of a grid enter when the study is made. Those of a search are drawn by Optuna's TPE, each with a seed of its own,
    which depends on --search_seed and how many came before. So a trial depends only on these and on the trials that
    ended before it: a sweep with one job proposes the same trials whether or not it was killed.

    Args:
        opt: the options of the sweep.
        root: its directory, which has the journal unless there is a --storage.
        plan: the options that it tries, and the metric.

    Raises:
        UserError: when the storage cannot be opened, or the study in it was begun with another plan.
    """

    def __init__(self, opt: Namespace, root: Path, plan: Plan):
        self.optuna = import_optuna()
        self.states = self.optuna.trial.TrialState
        self.opt = opt
        self.plan = plan
        self.num_trials = len(plan.grid) if plan.grid else opt.trials
        self.owner = f"{socket.gethostname()} {root.resolve()}" if opt.storage else ""  # among those that share it
        self.storage = open_storage(opt.storage or str(root / "optuna.journal"))
        pruners = self.optuna.pruners
        below_median = pruners.MedianPruner(n_startup_trials=opt.prune_after, n_warmup_steps=1)
        self.study = self.optuna.create_study(
            storage=self.storage,
            study_name=opt.study,
            direction="maximize" if plan.mode == "max" else "minimize",
            pruner=below_median if opt.prune and not plan.grid else pruners.NopPruner(),
            load_if_exists=True,
        )
        self.check_plan()
        if plan.grid and self.study.user_attrs["owner"] == self.owner:
            for settings in plan.grid[len(self.records()) :]:  # all of them, unless the sweep was killed here
                self.add(settings)

    def check_plan(self) -> None:
        """Save what defines the sweep in a new study; UserError when an old one has something else."""
        defining = {"task": self.plan.task, "metric": self.plan.metric}
        defining |= {name: getattr(self.opt, name) for name in ("grid", "search", "seeds", "flags")}
        if "plan" not in self.study.user_attrs:
            self.study.set_user_attr("owner", self.owner)
            self.study.set_user_attr("plan", defining)  # last: the sweep may be killed between the two
        begun_with = self.study.user_attrs["plan"]
        for name, value in defining.items():
            if begun_with.get(name) != value:
                raise UserError(
                    f"The study {self.opt.study!r} was begun with another {name}: {begun_with.get(name)}, and not "
                    f"{value}. Another --study begins a new one."
                )

    # ---- trials enter ------------------------------------------------------------------------------------------------
    def records(self, *states: Any) -> list[Any]:
        """Return Optuna's records of the trials, of the given states if any; those that wait are among them."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def add(self, params: Mapping[str, Any]) -> None:
        """Add a trial that waits, as one record, of which a kill leaves all or nothing."""
        trial = self.optuna.trial.create_trial(
            state=self.states.WAITING,
            params=dict(params),
            distributions={name: self.plan.spaces[name] for name in params},
            user_attrs={"runs": [asdict(Run(seed)) for seed in range(self.opt.seeds)]},
        )
        self.study.add_trial(trial)

    def draw(self, count: int) -> dict[str, Any]:
        """Return the values of a trial that comes after `count` others.

        They are drawn in memory, since Optuna would store each value apart.
        """
        import numpy as np

        (seed,) = np.random.SeedSequence((self.opt.search_seed, count)).generate_state(1)
        sampler = self.optuna.samplers.TPESampler(seed=int(seed), group=True)  # trials may have different options
        study = self.optuna.create_study(direction=self.study.direction, sampler=sampler)
        study.add_trials(self.records(self.states.COMPLETE, self.states.PRUNED, self.states.RUNNING))
        params = study.ask(self.plan.spaces).params
        return {name: params[name] for name in self.plan.effective(self.plan.as_texts(params))}

    # ---- trials leave ------------------------------------------------------------------------------------------------
    def runs(self) -> Iterator[tuple[Trial, Run]]:
        """Yield the runs that are left, those of unfinished trials first. A trial is proposed when a slot is free."""
        for trial in chain(self.unfinished(), iter(self.next_trial, None)):
            for run in trial.runs:
                if run.state == WAITING:  # else pruned since
                    yield trial, run

    def unfinished(self) -> Iterator[Trial]:
        """Yield the trials that this sweep has begun and not finished: a kill or a signal ended it."""
        for frozen in self.records(self.states.RUNNING):
            if frozen.user_attrs.get("owner", "") != self.owner:
                continue
            trial = self.read(frozen)
            trial.is_pruned = any(run.state == PRUNED for run in trial.runs)
            for run in trial.runs:
                if run.state in UNFINISHED:
                    run.state = PRUNED if trial.is_pruned else WAITING
            self.record(trial)
            if trial.state == WAITING:
                yield trial

    def next_trial(self) -> Trial | None:
        """Take the next trial; None when the study has all of them, and each is taken."""
        while True:
            for frozen in self.records(self.states.WAITING):
                trial = self.read(frozen)
                is_one_too_many = frozen.number >= self.num_trials  # two machines have drawn the last one at once
                # False: another machine takes the same one, and was faster.
                if not is_one_too_many and self.storage.set_trial_state_values(self.id_of(frozen), self.states.RUNNING):
                    trial.handle.set_user_attr("owner", self.owner)
                    return trial
            count = len(self.records())
            if self.plan.grid or count >= self.num_trials:
                return None
            self.add(self.draw(count))

    def trials(self) -> list[Trial]:
        """Return all trials that have begun, those of other machines included."""
        return [self.read(frozen) for frozen in self.records() if frozen.state != self.states.WAITING]

    def read(self, frozen: Any) -> Trial:
        """Return a trial from Optuna's record of it; UserError for values or seeds that no sweep has put there."""
        runs = [Run(**run) for run in frozen.user_attrs.get("runs", ())]
        if [run.seed for run in runs] != list(range(self.opt.seeds)):  # they stand in the names of directories
            raise UserError(f"The study has other seeds than 0 to {self.opt.seeds - 1}. Was its file changed?")
        handle = self.optuna.trial.Trial(self.study, self.id_of(frozen))
        return Trial(frozen.number, self.plan.as_texts(frozen.params), runs, handle)

    def id_of(self, frozen: Any) -> int:
        """Return the id of a trial in the storage, which may keep several studies."""
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, frozen.number)

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
