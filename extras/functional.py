"""Train a module that returns its own loss by a function call, without a task or a command line.

    from extras.functional import fit

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    run = fit(model, optimizer, None, dataset, batch_size=32, num_epochs=10)

The loop is that of trainer.py, and with it come exact resume, several processes and the run directory: see
docs/functional.md.
"""

import contextlib
import gc
import io
import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import Dataset

from callbacks.callback import Callback
from engine.devices.job import place
from engine.optimizers import needs_closure
from engine.options.parser import as_flags, number
from engine.registry import load
from eval import EvaluatorBase
from extras.failures import failed_part
from extras.in_order import InOrder
from extras.param_groups import param_groups
from extras.plateau import OnPlateau
from extras.schedulers import OncePerEpoch
from extras.wrong_names import of_name
from trainer import TrainerBase
from utils.errors import UserError, shown
from utils.meter import AvgMeter
from utils.seed import preserved_random_state

__all__ = ["ModelTrainer", "find_lr", "fit", "param_groups"]

# Options of the command line that `fit` takes: all but those that make the model, the optimizer or the data.
OPTIONS = (
    "activation_checkpointing", "amp", "channels_last", "clip", "clip_type", "compile", "data_device", "description",
    "deterministic", "dist_timeout", "ema", "eval_batch_size", "find_unused", "gpu_devices", "keep", "limit_batches",
    "log_every", "logger", "max_skips", "max_time", "min_delta", "nan_policy", "num_workers", "output_dir",
    "param_clip", "patience", "profile", "proj_name", "save_code", "save_every_updates", "seed", "skip_bad_samples",
    "stop_below", "swa_start", "sync_bn", "val_every", "worker_timeout",
)  # fmt: skip
ARGUMENTS = {"--model_type": "model", "--optim": "optimizer", "--lr_scheduler": "scheduler", "--data_type": "dataset"}
WHOLE = number(int, low=1)
POSITIVE = number(float, above=0)
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # an environment variable that --deterministic sets
MAX_EPOCHS = 1_000_000
NO_LIMIT = 1_000_000_000  # updates


# ---- the task --------------------------------------------------------------------------------------------------------
def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    """Call a model on a batch, `model(*batch)`, or `model(**batch)` for a dictionary, and return its loss.

    Raises:
        UserError: the model returns neither a scalar tensor nor a mapping in which "loss" is one.
    """
    if isinstance(batch, Mapping):
        output = model(**batch)
    else:
        output = model(*batch) if isinstance(batch, tuple | list) else model(batch)
    loss = output["loss"] if isinstance(output, Mapping) and "loss" in output else output
    if not torch.is_tensor(loss) or loss.ndim > 0:
        kind = f"a tensor of shape {tuple(loss.shape)}" if torch.is_tensor(loss) else type(loss).__name__
        raise UserError(f"The model must return its loss, a scalar tensor, or a mapping with a 'loss', not {kind}.")
    return loss


class ModelEvaluator(EvaluatorBase):
    """Measures the loss that a model returns."""

    given_count: Callable[[Any], int] | None = None

    def loss_counter(self) -> Callable[[Any], int] | None:
        return self.given_count

    def build_meters(self) -> dict[str, Any]:
        return {"loss": AvgMeter()}

    def eval_step(self, batch: Any) -> None:
        self.meters["loss"].update(loss_of(self.model, batch), n=self.loss_count)


class ModelTrainer(TrainerBase):
    """Trains a model that returns its own loss.

    Args:
        opt: see `parse_options`.
        model, optimizer, scheduler, val_dataset, schedule_per_update, count: see `fit`.
        dataset: of the training, in whose order the samples come if it has an `epoch_order`.
        callbacks: more of them, after those of every run.
    """

    evaluator_class = ModelEvaluator
    defaults = {"proj_name": "fit", "output_dir": "./Results/fit/", "patience": 0, "monitor": "loss"}

    def __init__(
        self,
        opt: Namespace,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        dataset: Dataset,
        val_dataset: Dataset | None = None,
        schedule_per_update: bool = True,
        callbacks: Iterable[Callback] = (),
        count: Callable[[Any], int] | None = None,
    ):
        self.given_model = model
        self.given_count = count
        self.given_optimizer = optimizer
        self.given_scheduler = scheduler
        self.given_datasets = {"train": dataset, "val": [] if val_dataset is None else val_dataset}
        self.schedule_per_update = schedule_per_update
        self.given_callbacks = list(callbacks)
        self.given_modes = [(module, module.training) for module in model.modules()]
        algorithms = Algorithms.now()
        super().__init__(opt)
        if not opt.deterministic and algorithms != Algorithms():  # torch's own, so the user has chosen them
            algorithms.apply()
        self.session.stop_signal.may_end_process = False  # it may be the kernel of a notebook
        self.checkpointer.prefix = type(model).__name__  # the first part of the names of the checkpoints

    def build_datasets(self) -> dict[str, Any]:
        return self.given_datasets

    def build_networks(self) -> dict[str, nn.Module]:
        return {"model": self.given_model}

    def build_criterion(self) -> nn.Module:
        return nn.Identity()  # the loss is the model's

    def build_optimizers(self) -> dict[str, Optimizer]:
        return {"model": self.given_optimizer}

    def build_schedulers(self) -> dict[str, Any]:
        if self.given_scheduler is None:
            return {}
        if isinstance(self.given_scheduler, ReduceLROnPlateau):
            return {"model": OnPlateau(self.given_scheduler)}
        if self.schedule_per_update:
            return {"model": self.given_scheduler}
        return {"model": OncePerEpoch(self.given_scheduler, self.train_loader.updates_per_epoch)}

    def build_evaluator(self) -> ModelEvaluator:
        evaluator = super().build_evaluator()
        evaluator.given_count = self.given_count
        return evaluator

    def build_callbacks(self) -> list[Callback]:
        return [*super().build_callbacks(), *self.given_callbacks]

    def compute_loss(self, batch: Any) -> torch.Tensor:
        loss = loss_of(self.model, batch)
        if torch.is_grad_enabled() and not loss.requires_grad:  # without gradients, weights are only measured
            raise UserError("The loss that the model returns depends on no parameter that is trained: was it detached?")
        return loss

    def train(self) -> None:
        try:
            super().train()
        except UserError as error:
            cause = error.__cause__
            if cause is not None and "." in failed_part(self, cause, self.session.first_update):  # Callback.hook
                raise cause from None
            error.args = (in_arguments(str(error)), *error.args[1:])
            raise
        finally:
            self.unwrap()

    def unwrap(self) -> None:
        """Let go of the wrapper of several processes, and put the modules back in the modes that they were given in."""
        self.wrapped = dict(self.networks)
        for module, is_training in self.given_modes:
            module.training = is_training
        gc.collect()


# ---- settings of torch -----------------------------------------------------------------------------------------------
class Algorithms(NamedTuple):
    """Which algorithms torch may use. The defaults are torch's."""

    are_deterministic: bool = False
    only_warns: bool = False
    is_cudnn_deterministic: bool = False
    is_cudnn_measured: bool = False

    @classmethod
    def now(cls) -> "Algorithms":
        """Return those that are set."""
        return cls(
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        )

    def apply(self) -> None:
        """Set them."""
        if self[:2] != Algorithms.now()[:2]:  # the call imports the compiler: seconds
            torch.use_deterministic_algorithms(self.are_deterministic, warn_only=self.only_warns)
        torch.backends.cudnn.deterministic = self.is_cudnn_deterministic
        torch.backends.cudnn.benchmark = self.is_cudnn_measured


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Leave torch's settings and the global random generators as they were before the block."""
    algorithms = Algorithms.now()
    workspace = {name: value for name, value in os.environ.items() if name == WORKSPACE}
    try:
        with preserved_random_state():
            yield
    finally:
        algorithms.apply()
        os.environ.pop(WORKSPACE, None)
        os.environ.update(workspace)


# ---- the functions ---------------------------------------------------------------------------------------------------
@settings_kept()
def fit(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    dataset: Dataset,
    batch_size: int,
    *,
    num_epochs: int | None = None,
    num_updates: int | None = None,
    accumulate: int = 1,
    schedule_per_update: bool = True,
    snapshot_every: float = 1.0,
    resume: str | Path | None = None,
    shuffle: bool = True,
    count: Callable[[Any], int] | None = None,
    val_dataset: Dataset | None = None,
    callbacks: Iterable[Callback] = (),
    on_update_end: Callable[[TrainerBase, Mapping[str, Any]], Any] | None = None,
    on_epoch_end: Callable[[TrainerBase, Mapping[str, float]], Any] | None = None,
    **options: Any,
) -> ModelTrainer:
    """Train a model in place, and return the trainer: its `run_dir.path`, `progress`, `score` and more.

    Started by torchrun, all processes call it alike, and share the samples of each update. docs/functional.md has more.

    Args:
        model: `model(*batch)`, or `model(**batch)` for a dictionary, returns the loss, a scalar tensor, the mean over
            the batch; or a mapping with a "loss".
        optimizer, scheduler: for parameters of the model (see `param_groups`), and of the optimizer; or None.
        dataset, val_dataset: map-style; the mean loss on the latter is measured after each epoch.
        batch_size: samples that go through the model at once, over all processes together.
        num_epochs, num_updates: the length; give one of them. An incomplete epoch counts as one.
        accumulate: batches whose gradients make one update; their loss is the mean over all their samples.
        schedule_per_update: the scheduler is stepped after each update; False: after each epoch.
        snapshot_every: epochs from one checkpoint to the next, such as 0.5.
        resume: a run directory or a checkpoint; "auto" for the newest unfinished run in `output_dir`, or a new one.
        count: a function of a batch: over how many elements its loss is a mean, where these are not its samples, such
            as the tokens that are no padding.
        shuffle: each epoch has an order of its own; False: the order of the data set.
        callbacks, on_update_end, on_epoch_end: see callbacks/callback.py; functions of (trainer, values or row).
        options: options of the command line, such as seed=0, amp="bf16"; all of them are in `OPTIONS`.

    Raises:
        UserError: an argument is unknown, out of range, or contradicts another one or the run that is resumed.
        DivergedError: a loss or a gradient was not finite.
        KeyboardInterrupt, SystemExit: a signal arrived; the checkpoint is written.
    """
    check_parts(model, optimizer, scheduler, dataset, val_dataset)
    values = sizes(batch_size, accumulate) | durations(num_epochs, num_updates, resume)
    values |= validation(val_dataset, options)
    values["save_every"] = converted(POSITIVE, "snapshot_every", snapshot_every)
    opt = resolve("fit", options, values)
    dataset = dataset if shuffle else InOrder(dataset)
    hooks = as_callbacks(callbacks, on_update_end=on_update_end, on_epoch_end=on_epoch_end)
    trainer = ModelTrainer(opt, model, optimizer, scheduler, dataset, val_dataset, schedule_per_update, hooks, count)
    trainer.train()
    return trainer


@settings_kept()
def find_lr(
    model: nn.Module,
    optimizer: Optimizer,
    dataset: Dataset,
    batch_size: int,
    *,
    low: float = 1e-7,
    high: float = 1.0,
    num_values: int = 50,
    num_updates: int = 3,
    num_runs: int = 3,
    accumulate: int = 1,
    **options: Any,
) -> Any:
    """Make the learning-rate range test with real updates; the model and the optimizer are restored.

    Writes a plot and a `.npz` with the numbers to a new directory in find_lr/ of `output_dir`.

    Args:
        model, optimizer, dataset, batch_size, accumulate, options: see `fit`. Of parameter groups with several rates,
            the highest one is tried, and the others keep their ratio to it.
        low, high: the first and the last rate, 0 < low < high.
        num_values: number of rates, at least 2.
        num_updates: updates with each rate.
        num_runs: runs, each from the same weights with other samples.

    Returns:
        The curve, a `tools.lr_finder.LrCurve`: its `suggestion` is a rate, or None when the loss falls nowhere.

    Raises:
        UserError: an argument is unknown or out of range.
    """
    check_parts(model, optimizer, None, dataset, None)
    counts = {
        "num_values": converted(number(int, low=2), "num_values", num_values),
        "num_updates": converted(WHOLE, "num_updates", num_updates),
        "num_runs": converted(WHOLE, "num_runs", num_runs),
    }
    low = converted(POSITIVE, "low", low)
    high = converted(POSITIVE, "high", high)
    if not low < high:
        raise UserError(f"find_lr: low={low:g} is not below high={high:g}.")
    output_dir = Path(options.pop("output_dir", None) or ModelTrainer.defaults["output_dir"]) / "find_lr"
    opt = resolve("find_lr", options, sizes(batch_size, accumulate) | {"output_dir": output_dir})
    trainer = ModelTrainer(opt, model, optimizer, None, dataset)
    try_learning_rates = load("tools.find_lr:try_learning_rates", "lr")
    try:
        return try_learning_rates(trainer, low=low, high=high, **counts, option="lr")
    finally:
        trainer.unwrap()


# ---- options ---------------------------------------------------------------------------------------------------------
def sizes(batch_size: int, accumulate: int) -> dict[str, int]:
    """Return the options for the size of an update and of its micro-batches."""
    batch_size = converted(WHOLE, "batch_size", batch_size)
    accumulate = converted(WHOLE, "accumulate", accumulate)
    num_processes = place().size  # they share a batch
    return {"batch_size": batch_size * accumulate, "micro_batch_size": -(-batch_size // num_processes)}


def durations(num_epochs: int | None, num_updates: int | None, resume: Any) -> dict[str, Any]:
    """Return the options for the length of the run, and where it starts."""
    if not isinstance(resume, str | PathLike | None):
        raise UserError(f"argument resume: {resume!r} is not a path, and not 'auto'.")
    if (num_epochs is None) == (num_updates is None):
        raise UserError(f"fit: give num_epochs or num_updates, not both: they are {num_epochs} and {num_updates}.")
    if num_updates is not None:
        num_updates = converted(WHOLE, "num_updates", num_updates)
        return {"max_updates": num_updates, "n_epoch": min(num_updates, MAX_EPOCHS), "resume": resume}
    limit = None if resume is None else NO_LIMIT  # the run may have had one
    return {"n_epoch": converted(WHOLE, "num_epochs", num_epochs), "max_updates": limit, "resume": resume}


def validation(val_dataset: Dataset | None, options: Mapping[str, Any]) -> dict[str, int]:
    """Return the option that turns validation off, where there is no data for it."""
    if val_dataset is not None:
        return {}
    if options.get("val_every") is not None:
        raise UserError("fit: without a val_dataset nothing is validated, so leave val_every out.")
    return {"val_every": 0}


def resolve(function: str, options: Mapping[str, Any], values: Mapping[str, Any]) -> Namespace:
    """Resolve all options of training, as the command line would.

    Args:
        function: its name, for messages.
        options: given by the user, by name.
        values: those that its other arguments stand for.

    Raises:
        UserError: an option is unknown or out of range, or contradicts another one or the run that is resumed.
    """
    for name in options:
        if name not in OPTIONS:
            raise UserError(f"{function}: unknown argument {name!r}{of_name(name, options[name], OPTIONS)}.")
    flags = []
    for name, value in {**values, **options}.items():
        if value is not None:
            flags += as_flags(name, str(value) if isinstance(value, PathLike) else value)
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return ModelTrainer.parse_options(flags)
    except SystemExit:  # the parser has printed "PROGRAM: error: argument --NAME: ..."
        reason = message.getvalue().partition(": error: ")[2].strip()
        raise UserError(f"{function}: {reason.replace('argument --', 'argument ')}") from None


def in_arguments(message: str) -> str:
    """Return a message with the arguments of `fit` for options that it does not have.

    >>> in_arguments("IndexError: Target 6 is out of bounds. (--model_type, mine.py:39)")
    'IndexError: Target 6 is out of bounds. (argument model, mine.py:39)'
    """
    for option, name in ARGUMENTS.items():
        message = message.replace(f"({option}", f"(argument {name}")
    return message


def converted(kind: Callable[[str], Any], name: str, value: Any) -> Any:
    """Check a number as the command line would."""
    try:
        return kind(str(value))
    except ArgumentTypeError as error:
        raise UserError(f"argument {name}: {error}") from None


# ---- the parts -------------------------------------------------------------------------------------------------------
def as_callbacks(callbacks: Any, **functions: Callable | None) -> list[Callback]:
    """Return callbacks and functions, by the name of their hook, as one list of callbacks; UserError for others."""
    found = list(callbacks) if isinstance(callbacks, Iterable) else [callbacks]
    for entry in found:
        if not isinstance(entry, Callback) or not isinstance(callbacks, Iterable):
            raise UserError(f"argument callbacks: {shown(entry)} is not a list of Callback objects.")
    for hook, function in functions.items():
        if function is None:
            continue
        if not callable(function):
            raise UserError(f"argument {hook}: {shown(function)} is not a function.")
        found.append(type("Function", (Callback,), {hook: staticmethod(function)})())
    return found


def check_parts(model: Any, optimizer: Any, scheduler: Any, dataset: Any, val_dataset: Any) -> None:
    """Raise UserError where one of the parts is not of its kind, or belongs to another one."""
    for name, part, kind in (("model", model, nn.Module), ("optimizer", optimizer, Optimizer)):
        if not isinstance(part, kind):
            raise UserError(f"argument {name}: {type(part).__name__} is not a {kind.__module__}.{kind.__name__}.")
    if needs_closure(type(optimizer)):
        raise UserError(
            f"argument optimizer: {type(optimizer).__name__}.step() needs a closure, which fit does not give; "
            f"examples/lbfgs.py is a task that does."
        )
    if isinstance(scheduler, ReduceLROnPlateau) and (val_dataset is None or scheduler.mode != "min"):
        raise UserError("argument scheduler: ReduceLROnPlateau follows the loss on a val_dataset, with mode='min'.")
    if scheduler is not None:
        for name in ("step", "optimizer", "state_dict", "load_state_dict"):
            if not hasattr(scheduler, name):
                raise UserError(f"argument scheduler: {type(scheduler).__name__} has no {name}.")
        if scheduler.optimizer is not optimizer:
            raise UserError("argument scheduler: it is that of another optimizer.")
    lazy = [name for name, parameter in model.named_parameters() if nn.parameter.is_lazy(parameter)]
    if lazy:
        raise UserError(f"argument model: {lazy[0]} has no shape yet. Call the model once, on a batch, before.")
    for name, data in (("dataset", dataset), ("val_dataset", val_dataset)):
        if data is None and name == "val_dataset":
            continue
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            raise UserError(f"argument {name}: {type(data).__name__} has no __getitem__ and __len__.")
        if isinstance(data, Mapping) and 0 not in data:
            raise UserError(
                f"argument {name}: a dictionary has no samples 0 to N - 1. Give a list of the samples, which may be "
                f"dictionaries, or a torch.utils.data.TensorDataset."
            )
        if not len(data):
            raise UserError(f"argument {name}: it is empty.")
