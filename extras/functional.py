"""The trainer as functions, for a module that returns its own loss: no task to be written, no command line.

    from extras.functional import fit

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    run = fit(model, optimizer, None, dataset, batch_size=32, num_epochs=10)

The loop is that of trainer.py, and with it come its exact resume, its processes and its run directory: see
docs/functional.md.
"""

import gc
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import Dataset

from base_options import check_options, check_own_code, find_automatically, harmless_options, train_parser
from callbacks.callback import Callback
from engine.checkpoints.checkpointer import Checkpointer
from engine.checkpoints.file import load_checkpoint, options_of
from engine.devices.process_group import place
from engine.optimizers import OncePerEpoch
from engine.options.parser import NOT_SAVED, OptionParser, as_flags, number
from eval import EvaluatorBase
from extras.in_order import InOrder
from option_list import MAX_EPOCHS
from tools.find_lr import try_learning_rates
from trainer import TrainerBase
from utils.batch import count_samples
from utils.errors import UserError, nearest, shown
from utils.lr_finder import LrCurve
from utils.meter import AvgMeter
from utils.param_groups import param_groups
from utils.seed import draw_seed

__all__ = ["ModelTrainer", "find_lr", "fit", "param_groups"]

# What `fit` takes by the names of the command line: all but what makes the model, the optimizer and the data.
OPTIONS = (
    "activation_checkpointing", "amp", "channels_last", "clip", "clip_type", "compile", "data_device", "description",
    "deterministic", "dist_timeout", "ema", "eval_batch_size", "gpu_devices", "keep", "limit_batches", "log_every",
    "logger", "max_skips", "max_time", "min_delta", "nan_policy", "num_workers", "output_dir", "param_clip", "patience",
    "profile", "proj_name", "save_code", "save_every_updates", "seed", "skip_bad_samples", "stop_below", "swa_start",
    "sync_bn", "val_every", "worker_timeout",
)  # fmt: skip
WHOLE, POSITIVE = number(int, low=1), number(float, above=0)


# ---- the task --------------------------------------------------------------------------------------------------------
def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    """Call a model on a batch: `model(*batch)`, of a dictionary `model(**batch)`; return the loss that it returns.

    Raises:
        UserError: when it returns neither a scalar tensor nor a mapping in which "loss" is one.
    """
    if isinstance(batch, Mapping):
        output = model(**batch)
    else:
        output = model(*batch) if isinstance(batch, tuple | list) else model(batch)
    loss = output["loss"] if isinstance(output, Mapping) and "loss" in output else output
    if not torch.is_tensor(loss) or loss.ndim > 0:
        what = f"a tensor of shape {tuple(loss.shape)}" if torch.is_tensor(loss) else type(loss).__name__
        raise UserError(f"The model must return its loss, a scalar tensor, or a mapping with a 'loss'. This is {what}.")
    return loss


class ModelEvaluator(EvaluatorBase):
    """Measures the loss that a model returns."""

    def build_meters(self) -> dict[str, Any]:
        return {"loss": AvgMeter()}

    def eval_step(self, batch: Any) -> None:
        self.meters["loss"].update(loss_of(self.model, batch), n=count_samples(batch))


class ModelTrainer(TrainerBase):
    """Trains a model that returns its own loss, with an optimizer, a scheduler and data that are given."""

    evaluator_class = ModelEvaluator
    defaults = {"proj_name": "fit", "output_dir": "./Results/fit/", "patience": 0, "monitor": "loss"}

    def __init__(
        self, opt: Namespace, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None, dataset: Dataset,
        val_dataset: Dataset | None = None, schedule_per_update: bool = True, callbacks: Iterable[Callback] = (),
    ):  # fmt: skip
        self.given_model = model
        self.given_optimizer = optimizer
        self.given_scheduler = scheduler
        self.given_datasets = {"train": dataset, "val": [] if val_dataset is None else val_dataset}
        self.schedule_per_update = schedule_per_update
        self.given_callbacks = list(callbacks)
        super().__init__(opt)

    def build_datasets(self) -> dict[str, Any]:
        return self.given_datasets

    def build_loaders(self) -> tuple[Any, Any]:
        loaders = super().build_loaders()
        if self.opt.max_updates:
            self.opt.n_epoch = self.last_epoch(loaders[0].updates_per_epoch)
        return loaders

    def last_epoch(self, updates_per_epoch: int) -> int:
        """The epoch of the last update, counted from 1: those that a resumed run has cut short count, too."""
        if not self.opt.resume:
            return -(-self.opt.max_updates // updates_per_epoch)
        done = load_checkpoint(self.opt.resume, tensors_of=())["progress"]
        of_epoch = -(-done["sample"] // self.opt.batch_size)  # updates of the epoch under way
        return done["epoch"] + -(-(self.opt.max_updates - done["update"] + of_epoch) // updates_per_epoch)

    def build_networks(self) -> dict[str, nn.Module]:
        return {"model": self.given_model}

    def build_criterion(self) -> nn.Module:
        return nn.Identity()  # the loss is the model's

    def build_optimizers(self) -> dict[str, Optimizer]:
        return {"model": self.given_optimizer}

    def build_schedulers(self) -> dict[str, Any]:
        if self.given_scheduler is None:
            return {}
        if self.schedule_per_update:
            return {"model": self.given_scheduler}
        return {"model": OncePerEpoch(self.given_scheduler, self.train_loader.updates_per_epoch)}

    def build_callbacks(self) -> list[Callback]:
        return [*super().build_callbacks(), *self.given_callbacks]

    def compute_loss(self, batch: Any) -> torch.Tensor:
        loss = loss_of(self.model, batch)
        if torch.is_grad_enabled() and not loss.requires_grad:  # an average of the weights needs none
            raise UserError("The loss that the model returns depends on no parameter that is trained: was it detached?")
        return loss

    def part(self) -> None:
        """Let go of what several processes had wrapped the model in: another run may wrap it anew."""
        self.wrapped = dict(self.networks)
        gc.collect()


# ---- the functions ---------------------------------------------------------------------------------------------------
def fit(
    model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None, dataset: Dataset, batch_size: int, *,
    num_epochs: int | None = None, num_updates: int | None = None, accumulate: int = 1,
    schedule_per_update: bool = True, snapshot_every: float = 1.0, resume: str | Path | None = None,
    shuffle: bool = True, val_dataset: Dataset | None = None, callbacks: Iterable[Callback] = (),
    on_update_end: Callable[[TrainerBase, Mapping[str, Any]], Any] | None = None,
    on_epoch_end: Callable[[TrainerBase, Mapping[str, float]], Any] | None = None,
    **options: Any,
) -> ModelTrainer:  # fmt: skip
    """Train a model in place.

    Started by torchrun, all processes call it alike, and share out the samples of each update.

    Args:
        model: `model(*batch)` returns the loss, a scalar tensor, the mean over the batch; or a mapping that has it as
            "loss". A batch that is a dictionary is given as `model(**batch)`.
        optimizer: for parameters of the model; see `param_groups`.
        scheduler: of the optimizer, or None.
        dataset: map-style. What is random in a sample is a function of (seed, epoch, index).
        batch_size: samples that go through the model at once, over all processes together.
        num_epochs, num_updates: how long; give one of them. An epoch that the last update cuts short counts as one.
        accumulate: batches whose gradients make one update; their loss is the mean over all their samples.
        schedule_per_update: the scheduler is stepped after each update; False: after each epoch.
        snapshot_every: epochs from one checkpoint to the next, such as 0.5. One is also written at the end, and on an
            exception, a signal or Ctrl-C.
        resume: a run directory or a checkpoint to continue; "auto" for the newest run in `output_dir` that has not
            ended, or else a new one.
        shuffle: whether each epoch has an order of its own; False: that of the data set.
        val_dataset: its mean loss is measured after each epoch, in eval mode, and the best checkpoint kept; or None.
        callbacks: what else watches, see callbacks/callback.py.
        on_update_end, on_epoch_end: functions of (trainer, values) and (trainer, row), called as the hooks of a
            callback are, in process 0. `trainer.should_stop = True` asks to stop.
        options: further ones by the names of the command line, such as seed=0, amp="bf16", clip=1.0, stop_below=0.1,
            num_workers=4, ema=0.999, output_dir="runs"; all of them are in `OPTIONS`.

    Returns:
        The trainer: among others `run_dir.path`, `progress` (epochs and updates done) and `score`.

    Raises:
        UserError: an argument is unknown, out of range, or contradicts another one or the run that is resumed.
        DivergedError: a loss or a gradient was not finite.
        KeyboardInterrupt, SystemExit: a signal came; the checkpoint is written.
    """
    check_parts(model, optimizer, scheduler, dataset, val_dataset)
    watching = as_callbacks(callbacks, on_update_end, on_epoch_end)
    values = sizes(batch_size, accumulate) | durations(num_epochs, num_updates)
    values["save_every"] = converted(POSITIVE, "snapshot_every", snapshot_every)
    if val_dataset is None:
        values["val_every"] = 0
    opt = resolve("fit", options, values, resume)
    opt.model_type = type(model).__name__  # the first part of the names of the checkpoints
    dataset = dataset if shuffle else InOrder(dataset)
    trainer = ModelTrainer(opt, model, optimizer, scheduler, dataset, val_dataset, schedule_per_update, watching)
    try:
        trainer.train()
    finally:
        trainer.part()
    return trainer


def find_lr(
    model: nn.Module, optimizer: Optimizer, dataset: Dataset, batch_size: int, *, low: float = 1e-7, high: float = 1.0,
    num_values: int = 50, num_updates: int = 3, num_runs: int = 3, accumulate: int = 1, **options: Any,
) -> LrCurve:  # fmt: skip
    """Make the learning-rate range test with real updates; the model and the optimizer are put back as they were.

    Writes a plot and a `.npz` with the numbers to a new directory in find_lr/ of `output_dir`.

    Args:
        model, optimizer, dataset, batch_size, accumulate, options: see `fit`. Of parameter groups with several rates,
            the highest one is tried, and the others keep their ratio to it.
        low, high: the first and the last rate, 0 < low < high.
        num_values: how many rates, at least 2.
        num_updates: with each rate.
        num_runs: how often, each time from the same weights with other samples.

    Returns:
        The curve: its `suggestion` is a rate, or None when the loss falls nowhere.

    Raises:
        UserError: an argument is unknown or out of range.
    """
    check_parts(model, optimizer, None, dataset, None)
    counts = {"num_updates": whole("num_updates", num_updates), "num_runs": whole("num_runs", num_runs)}
    counts["num_values"] = converted(number(int, low=2), "num_values", num_values)
    low, high = converted(POSITIVE, "low", low), converted(POSITIVE, "high", high)
    if not low < high:
        raise UserError(f"find_lr: low={low:g} is not below high={high:g}.")
    opt = resolve("find_lr", options, sizes(batch_size, accumulate))
    opt.output_dir = str(Path(opt.output_dir) / "find_lr")
    trainer = ModelTrainer(opt, model, optimizer, None, dataset)
    try:
        return try_learning_rates(trainer, low=low, high=high, **counts, option="lr")
    finally:
        trainer.part()


def sizes(batch_size: int, accumulate: int) -> dict[str, int]:
    """The options that these two arguments stand for. Several processes share a batch, and count their own part."""
    batch_size, accumulate = whole("batch_size", batch_size), whole("accumulate", accumulate)
    return {"batch_size": batch_size * accumulate, "micro_batch_size": -(-batch_size // place()[1])}


def durations(num_epochs: int | None, num_updates: int | None) -> dict[str, int]:
    """The options that the first two stand for, of which one must be given."""
    if (num_epochs is None) == (num_updates is None):
        raise UserError(f"fit: give num_epochs or num_updates, not both: they are {num_epochs} and {num_updates}.")
    if num_updates is None:
        return {"n_epoch": whole("num_epochs", num_epochs)}
    num_updates = whole("num_updates", num_updates)
    return {"max_updates": num_updates, "n_epoch": min(num_updates, MAX_EPOCHS)}  # at most; see `last_epoch`


# ---- what is given ---------------------------------------------------------------------------------------------------
class FunctionOfUpdate(Callback):
    """Calls a function after each update."""

    def __init__(self, function: Callable):
        self.function = function

    def on_update_end(self, trainer, values: Mapping[str, Any]) -> None:
        self.function(trainer, values)


class FunctionOfEpoch(Callback):
    """Calls a function after each epoch."""

    def __init__(self, function: Callable):
        self.function = function

    def on_epoch_end(self, trainer, row: Mapping[str, float]) -> None:
        self.function(trainer, row)


def as_callbacks(callbacks: Any, on_update_end: Any, on_epoch_end: Any) -> list[Callback]:
    """What watches, as one list; UserError where something is of another kind."""
    found = list(callbacks) if isinstance(callbacks, Iterable) else [callbacks]
    for entry in found:
        if not isinstance(entry, Callback) or not isinstance(callbacks, Iterable):
            raise UserError(f"argument callbacks: it is no list of Callback objects, there is {shown(entry)}.")
    functions = {"on_update_end": (FunctionOfUpdate, on_update_end), "on_epoch_end": (FunctionOfEpoch, on_epoch_end)}
    for name, (kind, function) in functions.items():
        if not callable(function) and function is not None:
            raise UserError(f"argument {name}: {shown(function)} is no function.")
        found += [] if function is None else [kind(function)]
    return found


class ArgumentParser(OptionParser):
    """Raises what is wrong with an option, instead of ending the program."""

    def error(self, message: str):
        raise UserError(f"{self.prog}: {' '.join(message.split()).replace('argument --', 'argument ')}")


def resolve(
    function: str, options: Mapping[str, Any], values: Mapping[str, Any], resume: str | Path | None = None
) -> Namespace:
    """Return all options of training: the defaults, those of the run that is resumed, and what was given.

    Args:
        function: its name, for messages.
        options: the further ones that the user gave.
        values: those that its own arguments stand for.
        resume: see `fit`.
    """
    for name in options:
        if name not in OPTIONS:
            raise UserError(f"{function}: unknown argument {name!r}{nearest(name, OPTIONS)}.")
        if name in values and options[name] is not None:
            raise UserError(f"{function}: without a val_dataset nothing is validated, so leave {name} out.")
    values = {**values, **{name: as_plain(value) for name, value in options.items() if value is not None}}
    flags = [flag for name in NOT_SAVED if name in values for flag in as_flags(name, values.pop(name))]
    notes, layers = [], []
    if not isinstance(resume, str | PathLike | None):
        raise UserError(f"argument resume: {resume!r} is no path, and not 'auto'.")
    if str(resume) == "auto":
        parser = make_parser(function)
        parser.apply(values)
        parser.asked |= values.keys()
        resume = find_automatically(parser, [], notes)
    if resume is not None:
        path, state = Checkpointer.find(resume, notes.append)
        saved, resume = harmless_options(options_of(state, path), path), str(path)
        check_own_code(saved, path, make_parser(function), [])
        taken = {*OPTIONS, "batch_size", "micro_batch_size", "save_every"}
        layers = [({name: value for name, value in saved.items() if name in taken}, resume)]
    opt = make_parser(function).resolve(flags, [*layers, (values, "")])
    check_options(vars(opt), {name: value for options, _ in layers for name, value in options.items()})
    opt.resume, opt.resume_notes = resume, notes
    opt.seed = draw_seed() if opt.seed is None else opt.seed
    return opt


def make_parser(function: str) -> OptionParser:
    parser = train_parser(ModelTrainer, ArgumentParser)
    parser.prog = function
    return parser


def as_plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def converted(kind: Callable[[str], Any], name: str, value: Any) -> Any:
    """Check a number as one of the command line would be."""
    try:
        return kind(str(value))
    except ArgumentTypeError as error:
        raise UserError(f"argument {name}: {error}") from None


def whole(name: str, value: Any) -> int:
    return converted(WHOLE, name, value)


def check_parts(model: Any, optimizer: Any, scheduler: Any, dataset: Any, val_dataset: Any) -> None:
    """Raise UserError where one of the parts is not of its kind, or belongs to another one."""
    kinds = (("model", model, nn.Module), ("optimizer", optimizer, Optimizer))
    for name, part, kind in kinds:
        if not isinstance(part, kind):
            raise UserError(f"argument {name}: {type(part).__name__} is not a {kind.__module__}.{kind.__name__}.")
    needed = () if scheduler is None else ("optimizer", "state_dict", "load_state_dict")
    if isinstance(scheduler, ReduceLROnPlateau) or not hasattr(scheduler or LRScheduler, "step"):
        raise UserError(f"argument scheduler: {type(scheduler).__name__} has no step() that takes nothing.")
    if lacking := [name for name in needed if not hasattr(scheduler, name)]:
        raise UserError(f"argument scheduler: {type(scheduler).__name__} has no {lacking[0]}.")
    if scheduler is not None and scheduler.optimizer is not optimizer:
        raise UserError("argument scheduler: it is that of another optimizer.")
    for name, data in (("dataset", dataset), ("val_dataset", val_dataset)):
        if data is None and name == "val_dataset":
            continue
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            raise UserError(f"argument {name}: {type(data).__name__} has no __getitem__ and __len__.")
        if not len(data):
            raise UserError(f"argument {name}: it is empty.")
