"""Let Optuna (https://optuna.org) propose the trials of a sweep, and say which of them are not worth going on with."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from tools.sweep.plan import Choice, Range
from tools.sweep.record import FAILED, PRUNED, TO_DO, Run, Trial
from utils.errors import UserError


def import_optuna() -> Any:
    """The package; UserError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("--search needs Optuna, which is not installed: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def open_storage(where: str) -> Any:
    """Optuna's storage: of a database when `where` is a URL such as sqlite:///sweep.db, else of a journal file.

    Several machines can share either; a file must stand where all of them see it. UserError when it cannot be opened.
    """
    optuna = import_optuna()
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        if "://" in where:
            return RDBStorage(where)
        return JournalStorage(JournalFileBackend(where))
    except (OSError, ImportError, ValueError, optuna.exceptions.OptunaError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    except Exception as error:  # SQLAlchemy's have no base class that could be named without importing it
        reason = str(error)
    raise UserError(f"Cannot open the storage {where}: {' '.join(reason.split())[:200]}")


class Search:
    """A supply of trials for `tools.sweep.runner.Runner`: proposed by Optuna's TPE sampler, pruned by the median.

    Args:
        spaces: what to search in, by the names of the options.
        storage: see `open_storage`.
        study_name: of the study in the storage; one that is there is gone on with.
        plan: what makes a trial what it is; all that go on with a study must have the same.
        mode: "max" or "min", which values of the metric are best.
        num_trials: how many trials the study is to have, those of other machines included.
        seeds: of the runs of a trial. Its first run alone decides whether it is pruned.
        prune_after: how many trials must have ended before one is pruned; None prunes none.
        seed: of the sampler.
        owner: names this sweep among those that share the study.

    Raises:
        UserError: when the study was begun with another plan.
    """

    def __init__(
        self,
        spaces: Mapping[str, Range | Choice],
        storage: Any,
        study_name: str,
        plan: Mapping[str, Any],
        mode: str,
        num_trials: int,
        seeds: Sequence[int],
        prune_after: int | None,
        seed: int,
        owner: str,
    ):
        self.optuna = import_optuna()
        self.spaces, self.num_trials, self.seeds, self.owner = spaces, num_trials, seeds, owner
        pruner = self.optuna.pruners.NopPruner()
        if prune_after is not None:
            pruner = self.optuna.pruners.MedianPruner(n_startup_trials=prune_after, n_warmup_steps=1)
        self.storage, self.name = storage, study_name
        direction = "maximize" if mode == "max" else "minimize"
        self.study = self.optuna.create_study(
            storage=storage, study_name=study_name, direction=direction, load_if_exists=True, pruner=pruner
        )
        before = len(self.study.get_trials(deepcopy=False))
        # From the number of trials, too: a sampler that began anew would propose the same first trials again.
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed + before)
        first = self.study.user_attrs.get("plan")
        if first is None:
            self.study.set_user_attr("plan", dict(plan))
        elif different := sorted(name for name in plan if first.get(name) != plan[name]):
            raise UserError(
                f"The study {study_name!r} was begun with another {different[0]}: {first.get(different[0])}, and not "
                f"{plan[different[0]]}. Another --study begins a new one."
            )
        self.asked: dict[int, Any] = {}  # Optuna's trials, by their number in the study
        self.num_own = 0

    def take_back(self, trials: Sequence[Trial]) -> None:
        """Go on with the trials of a sweep that was broken off."""
        self.num_own = len(trials)
        study_id = self.storage.get_study_id_from_name(self.name)
        running = self.optuna.trial.TrialState.RUNNING
        own = {trial.number_in_study: trial for trial in trials}
        for frozen in self.study.get_trials(deepcopy=False, states=(running,)):
            trial = own.get(frozen.number)
            if trial is None:
                if frozen.user_attrs.get("owner") == self.owner:  # proposed, but not yet written down
                    self.study.tell(frozen.number, state=self.optuna.trial.TrialState.FAIL)
                continue
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, frozen.number)
            self.asked[frozen.number] = self.optuna.trial.Trial(self.study, trial_id)
            if all(run.state not in TO_DO for run in trial.runs):
                self.tell(trial)

    # ---- what the runner asks ----------------------------------------------------------------------------------------
    def more(self) -> Trial | None:
        """The next trial; None when the study has all of them."""
        if len(self.study.get_trials(deepcopy=False)) >= self.num_trials:
            return None
        asked = self.study.ask()
        asked.set_user_attr("owner", self.owner)
        settings = {name: self.suggest(asked, name, space) for name, space in self.spaces.items()}
        self.asked[asked.number] = asked
        trial = Trial(self.num_own, settings, [Run(seed) for seed in self.seeds], asked.number)
        self.num_own += 1
        return trial

    @staticmethod
    def suggest(asked: Any, name: str, space: Range | Choice) -> str:
        """A value of one option, as text."""
        if isinstance(space, Choice):
            return asked.suggest_categorical(name, space.values)
        suggest = asked.suggest_int if space.is_int else asked.suggest_float
        return repr(suggest(name, space.low, space.high, log=space.is_log))

    def should_prune(self, trial: Trial, epoch: int, value: float) -> bool:
        asked = self.asked[trial.number_in_study]
        step = epoch - 1  # Optuna counts from 0
        frozen = self.study.get_trials(deepcopy=False)[trial.number_in_study]
        if step not in frozen.intermediate_values and math.isfinite(value):  # it may be, before an interruption
            asked.report(value, step)
        return asked.should_prune()

    def tell(self, trial: Trial) -> None:
        states = self.optuna.trial.TrialState
        if any(run.state == FAILED for run in trial.runs) or (trial.mean is None and trial.state != PRUNED):
            self.study.tell(trial.number_in_study, state=states.FAIL, skip_if_finished=True)
        elif trial.state == PRUNED:
            self.study.tell(trial.number_in_study, state=states.PRUNED, skip_if_finished=True)
        else:
            self.study.tell(trial.number_in_study, trial.mean, skip_if_finished=True)

    # ---- in the end --------------------------------------------------------------------------------------------------
    def summary(self) -> str:
        """A line on the study as a whole, when others have trials in it; else ""."""
        trials = self.study.get_trials(deepcopy=False)
        if len(trials) == self.num_own:
            return ""
        finished = [trial for trial in trials if trial.state == self.optuna.trial.TrialState.COMPLETE]
        if not finished:
            return f"The study {self.name!r} has {len(trials)} trials, of all machines; none is finished."
        best = self.study.best_trial
        what = " ".join(f"{name}={value}" for name, value in best.params.items())
        return f"The study {self.name!r} has {len(trials)} trials, of all machines. The best: {best.value:.6g}, {what}"
