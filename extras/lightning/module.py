"""A task's trainer as a LightningModule: Lightning's Trainer has the loop, the task has the step.

    module = TaskModule(TrainerVanilla, TrainerVanilla.parse_options(["--n_epoch", "2"]))
    lightning.Trainer(max_epochs=2, accelerator="cpu", devices=1, use_distributed_sampler=False).fit(module)

The trainer is made as always, of the task's own methods; only its way to the machine is exchanged: forward passes are
cast, losses differentiated, gradients added up and optimizers stepped by Lightning's strategy and precision
(`LightningPrecision`, `LightningProcesses`). Optimization is manual, in Lightning's words: its `training_step` makes
one whole update, with the task's own `train_step`, so tasks with several networks or several passes run unchanged.
docs/lightning.md says what Lightning does instead of our loop, and what stays.

This is the only file that imports Lightning at its top; nothing imports it unless it is asked for.
"""

import contextlib
import math
import os
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from callbacks.callback import Callback, CallbackList
from callbacks.progress_bar import ProgressBar
from callbacks.tensorboard import TensorBoard
from callbacks.wandb_logger import WandB
from data.loader import Update
from engine.devices.process_group import Distributed
from engine.options.parser import saved_options
from engine.run_state import restore_state
from engine.runs.run_dir import RunDir
from extras.lightning.checkpoint import LAST, OURS, number_of
from trainer import TrainerBase
from utils.precision import Precision

OF_LIGHTNING = (ProgressBar, TensorBoard, WandB)  # callbacks of ours in whose place Lightning has something


# ---- the way to the machine ------------------------------------------------------------------------------------------
class LightningProcesses(Distributed):
    """The processes that a strategy of Lightning's has started, and among which it adds up the gradients."""

    def __init__(self, strategy):
        super().__init__(strategy.global_rank, strategy.world_size, getattr(strategy, "local_rank", 0))
        self.strategy = strategy

    def gradients(self, synchronize: bool) -> contextlib.AbstractContextManager:
        is_plain = synchronize or self.size == 1
        return contextlib.nullcontext() if is_plain else self.strategy.block_backward_sync()

    def largest(self, number: int) -> int:
        return max(self.gather(number))  # on GPUs, Lightning's processes have no way to add up what is on a CPU

    def sum(self, tensor: Tensor) -> Tensor:
        return super().sum(tensor.to(self.strategy.root_device)).to(tensor.device)

    def leave(self, in_order: bool = True) -> None:
        """They part when Lightning says so."""

    def leave_word(self, **about_run: Any) -> None:
        """Who starts the processes again is not our launcher, which would read it."""


class LightningPrecision(Precision):
    """Casts, differentiates and steps by Lightning's strategy and precision plugin."""

    def __init__(self, module: "TaskModule"):
        super().__init__("no", module.trainer.strategy.root_device)
        self.module = module
        self.plugin = module.trainer.precision_plugin
        self.scaler = getattr(self.plugin, "scaler", None) or self.scaler

    def autocast(self) -> contextlib.AbstractContextManager:
        return self.plugin.forward_context()

    def backward(self, loss: Tensor) -> None:
        self.module.manual_backward(loss)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self.module.trainer.strategy.optimizer_step(optimizer, lambda: None)
        self._stepped.add(id(optimizer))


class Float16(MixedPrecision):
    """Lightning's mixed precision with float16, for gradients that the task's step unscales, clips and looks at.

    Lightning's own unscales them itself in the step of each optimizer, too late for the task, and lets the scale adapt
    after each: several optimizers of one update would be stepped with different ones. Here it adapts once per update.
    """

    def __init__(self, device: str):
        super().__init__("16-mixed", device, torch.amp.GradScaler(device))

    def optimizer_step(self, optimizer, model, closure, **kwargs):
        closure()
        self._after_closure(model, optimizer)  # for those who listen to on_before_optimizer_step
        return self.scaler.step(optimizer, **kwargs)


# ---- data ------------------------------------------------------------------------------------------------------------
class Updates:
    """What Lightning takes for a loader: the updates of the epoch under way, from where the trainer stands."""

    def __init__(self, task: TrainerBase):
        self.task = task
        self.asked = 0.0  # when the update under way was asked for

    def __len__(self) -> int:
        return self.task.train_loader.updates_per_epoch

    def __iter__(self) -> Iterator[Update]:
        progress, loader = self.task.progress, self.task.train_loader
        updates, left = loader.updates(progress.epoch, progress.sample), loader.num_samples - progress.sample
        while left:
            self.asked = time.perf_counter()
            update = next(updates)
            left -= update.num_samples
            if not left:
                next(updates, None)  # Lightning does not ask beyond the last, and loading processes wait for it
            self.task.epoch_log.seconds["data_wait"] += time.perf_counter() - self.asked
            yield update

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the trainer knows its position. But without this, Lightning would warn of going on with an epoch."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `state_dict`."""


# ---- what watches ----------------------------------------------------------------------------------------------------
class Teller(Callback):
    """Hands the values of each update to Lightning."""

    def __init__(self, module: "TaskModule"):
        self.module = module

    def on_update_end(self, trainer: TrainerBase, values: Mapping[str, Tensor]) -> None:
        self.module.log_update(values)


class Starter(lightning.Callback):
    """Has the task's trainer made once Lightning's processes have met, before anything asks where to write."""

    def setup(self, trainer: lightning.Trainer, pl_module: "TaskModule", stage: str) -> None:
        pl_module.make_task()

    def on_exception(self, trainer: lightning.Trainer, pl_module: "TaskModule", exception: BaseException) -> None:
        pl_module.stopped_by = exception
        if pl_module.task:
            pl_module.task.call("on_exception", pl_module.task.distributed.cause_of(exception))


class Checkpoint(ModelCheckpoint):
    """Lightning's, into the directory of the run, and one more at its end if that is not due."""

    def setup(self, trainer: lightning.Trainer, pl_module: "TaskModule", stage: str) -> None:
        self.dirpath = str(pl_module.task.run_dir.path.resolve())
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # the directory is not empty
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: "TaskModule") -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:  # a future that comes again, and would be taken for the newest
            for path in Path(self.dirpath).glob(f"{LAST}-*.ckpt"):
                if number_of(path) > trainer.global_step:
                    path.replace(f"{path}.aside")

    def on_train_batch_end(self, trainer, pl_module: "TaskModule", outputs, batch, batch_idx) -> None:
        if not pl_module.is_epoch_done:  # the last update of an epoch belongs together with its validation
            self.save_if_due(trainer, pl_module)

    def save_if_due(self, trainer: lightning.Trainer, pl_module: "TaskModule") -> None:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # it is the state after the update, yes
            super().on_train_batch_end(trainer, pl_module, None, None, 0)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: "TaskModule") -> None:
        self.save_if_due(trainer, pl_module)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # there was no validation yet, maybe
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: "TaskModule") -> None:
        super().on_train_end(trainer, pl_module)
        path = self.format_checkpoint_name({"step": torch.tensor(trainer.global_step)})
        if self.monitor == "step" and not trainer.strategy.broadcast(os.path.exists(path)):
            trainer.save_checkpoint(path)


def make_loggers(opt: Namespace, run_dir: RunDir) -> list[Logger]:
    """Lightning's loggers for the names of --logger, in the directory of the run."""
    path, loggers = str(run_dir.path), []
    if "tensorboard" in opt.logger:
        loggers.append(TensorBoardLogger(path, name="", version="summary"))
    if "csv" in opt.logger:
        taken = len(list(run_dir.path.glob("lightning*")))  # by the processes that the run was resumed from
        loggers.append(CSVLogger(path, name="", version=f"lightning_{taken + 1}" if taken else "lightning"))
    if "wandb" in opt.logger:
        offline = os.environ.get("WANDB_MODE", "offline") == "offline"
        loggers.append(WandbLogger(name=run_dir.path.name, save_dir=path, project=opt.proj_name, offline=offline))
    for logger in loggers:
        logger.log_hyperparams({name: value for name, value in saved_options(opt).items() if value is not None})
    return loggers


# ---- the module ------------------------------------------------------------------------------------------------------
class TaskModule(lightning.LightningModule):
    """Runs the trainer of a task under Lightning.

    Args:
        trainer_class: the task's.
        opt: its options, as `trainer_class.parse_options` returns them.
        with_loggers: give Lightning's Trainer the loggers that `opt.logger` names, instead of those it has.

    Attributes:
        task: the trainer, once Lightning has begun.
        stopped_by: the exception that ended the run.
    """

    def __init__(self, trainer_class: type[TrainerBase], opt: Namespace, with_loggers: bool = False):
        super().__init__()
        self.automatic_optimization = False
        self.trainer_class = trainer_class
        self.opt = opt
        self.with_loggers = with_loggers
        self.task: TrainerBase | None = None
        self.stopped_by: BaseException | None = None
        self.updates: Updates | None = None
        self.results: dict[str, float] = {}  # of the validation of the epoch under way
        self.is_in_epoch = False
        self.num_own = 0  # samples of the update under way in this process

    # ---- make ----------------------------------------------------------------------------------------------------
    def configure_callbacks(self) -> list[lightning.Callback]:
        return [Starter()]

    def make_task(self) -> None:
        """Make the task's trainer, in all processes."""
        if self.task:
            return
        strategy = self.trainer.strategy
        os.environ.setdefault("RANK", str(strategy.global_rank))  # Lightning's launcher sets the other variables
        distributed = LightningProcesses(strategy)
        kind = f"{type(strategy).__name__} of Lightning {lightning.__version__}"
        note = f"Device: {strategy.root_device}, {kind}."
        methods = {  # Lightning has the processes, and wraps the networks
            "join_processes": lambda task, opt: (distributed, [strategy.root_device], note),
            "wrap_networks": lambda task: dict(task.networks),
        }
        task = type(self.trainer_class.__name__, (self.trainer_class,), methods)(self.opt)
        task.precision = task.evaluator.precision = LightningPrecision(self)
        kept = [callback for callback in task.callbacks.callbacks if not isinstance(callback, OF_LIGHTNING)]
        task.callbacks = CallbackList([Teller(self), *kept])
        task.checkpointer.every = math.inf  # Lightning writes them
        self.task, self.updates = task, Updates(task)
        self.networks, self.criterion = nn.ModuleDict(task.networks), task.criterion
        if self.with_loggers:
            self.trainer.loggers = make_loggers(task.opt, task.run_dir)

    def configure_optimizers(self) -> tuple[list, list]:
        names = {name: "lr" if len(self.task.optimizers) == 1 else f"lr/{name}" for name in self.task.optimizers}
        # They are stepped with the update, and given to Lightning for those of its callbacks that look at them.
        schedulers = [{"scheduler": s, "name": names[name]} for name, s in self.task.schedulers.items()]
        return list(self.task.optimizers.values()), schedulers

    def train_dataloader(self) -> Updates:
        return self.updates

    def val_dataloader(self) -> range:
        return range(1)  # one step, in which the evaluator goes through all batches: it may have its own way to do so

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # the step brings there what it needs, when it needs it

    # ---- train ---------------------------------------------------------------------------------------------------
    def on_train_start(self) -> None:
        task = self.task
        for note in (*self.opt.resume_notes, *task.checkpointer.begin(task.progress.position)):
            task.logger.warning(note)
        task.call("on_train_start")

    def begin_epoch(self) -> None:
        """Tell who watches of an epoch, or of what is left of it, of which Lightning's own hook does not tell."""
        if not self.is_in_epoch:
            self.is_in_epoch = True
            self.task.call("on_epoch_start")
            self.task.freezing.set_train_mode(self.task.networks)

    def training_step(self, update: Update, batch_idx: int) -> None:
        task = self.task
        self.begin_epoch()
        self.num_own = update.num_local
        task.train_update(update)
        # A step of Lightning's, for its callbacks and loggers, is an update, however many optimizers it has stepped.
        steps = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        steps.increment_ready()
        steps.increment_completed()
        if self.is_epoch_done:
            task.guard.check_earlier(wait=True)
            task.average_epoch()
        is_cut_short = task.progress.update == task.opt.max_updates
        if is_cut_short or (task.should_stop and task.distributed.size == 1):  # several agree at the end of the epoch
            self.trainer.should_stop = True
        task.epoch_log.seconds["train"] += time.perf_counter() - self.updates.asked

    @property
    def is_epoch_done(self) -> bool:
        progress = self.task.progress
        return progress.sample >= self.task.train_loader.num_samples or progress.update == self.opt.max_updates

    def log_update(self, values: Mapping[str, Any]) -> None:
        """Log what an update returned, as train/NAME_step, and for the mean over the epoch as train/NAME."""
        several = self.task.distributed.size > 1
        for name, value in values.items():
            value = torch.as_tensor(value).detach()
            value = value if self.num_own else torch.zeros_like(value)  # the mean over no samples is NaN
            self.log(f"train/{name}_step", value, on_step=True, on_epoch=False, prog_bar="loss" in name)
            of_epoch = {"batch_size": self.num_own, "sync_dist": several}
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, **of_epoch)
        for name, rate in self.task.epoch_log.learning_rates.items():
            self.log(name, rate, on_step=True, on_epoch=False)

    def on_train_epoch_end(self) -> None:
        """Count the epoch; not one that Lightning was asked to end early: then the position stays within it."""
        task = self.task
        if not self.is_epoch_done:
            return
        self.begin_epoch()  # when nothing of it was left
        row = task.epoch_log.row(task.distributed.gather) | self.results
        row |= task.epoch_log.times(task.progress.sample)
        task.progress.is_exact = False
        task.progress.finish_epoch()
        task.epoch_log.clear()
        self.results, self.is_in_epoch = {}, False
        task.call("on_epoch_end", {"epoch": task.progress.epoch, "update": task.progress.update, **row})
        task.progress.is_exact = True
        if task.is_over():
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        if self.task.progress.sample == 0:
            self.task.run_dir.end(self.task.progress.state_dict())
        self.task.call("on_train_end")

    def teardown(self, stage: str) -> None:
        with self.task.run_dir.lock:  # which is given back
            pass

    # ---- validate ------------------------------------------------------------------------------------------------
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Run the evaluator and log its metrics as val/NAME; but for a sanity check, they are the score of now."""
        task, began = self.task, time.perf_counter()
        results = task.evaluator.evaluate(task.val_loader)
        for name, value in results.items():
            shared = {"batch_size": 1, "sync_dist": task.distributed.size > 1}
            self.log(f"val/{name}", value, on_epoch=True, prog_bar=name == self.opt.monitor, **shared)
        if self.trainer.sanity_checking or self.trainer.state.fn != "fit":
            return
        self.results = {f"val/{name}": value for name, value in results.items()}
        self.results["time/val"] = time.perf_counter() - began
        counts = {"update": task.progress.update, "num_samples": task.evaluator.num_samples}
        task.score = {**counts, "results": results}
        task.progress.is_exact = False  # a validation must not count twice
        task.stopper.update(results[self.opt.monitor])
        task.call("on_validation_end", results)
        task.progress.is_exact = not self.is_epoch_done

    # ---- checkpoints ---------------------------------------------------------------------------------------------
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.task.call("on_save")
        checkpoint[OURS] = self.task.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        restore_state(self.task, checkpoint[OURS])
