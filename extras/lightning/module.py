"""A task's trainer as a LightningModule: Lightning's Trainer goes through the epochs, the task does the rest.

    module = TaskModule(TrainerVanilla, TrainerVanilla.parse_options(["--n_epoch", "2"]))
    lightning.Trainer(max_epochs=2, accelerator="cpu", devices=1, use_distributed_sampler=False).fit(module)

Optimization is manual, in Lightning's words: a `training_step` is one call of the trainer's `train_update`, and the end
of an epoch one call of its `finish_epoch`, which validates and saves. So tasks with several networks or several passes
run unchanged. Lightning's strategy has the processes and wraps the module; its precision casts and steps
(`LightningProcesses`, `LightningPrecision`). docs/lightning.md says more.

This is the only file that imports Lightning at its top; nothing imports it unless it is asked for.
"""

import contextlib
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from callbacks.callback import Callback, CallbackList
from data.loader import Update
from engine.devices.process_group import Distributed
from extras.several_processes import SeveralProcesses
from trainer import TrainerBase
from utils.precision import Precision


# ---- processes and precision -----------------------------------------------------------------------------------------
class LightningProcesses(SeveralProcesses):
    """The processes of a strategy of Lightning's, which adds up their gradients."""

    def __init__(self, strategy):
        super().__init__(strategy.global_rank, strategy.world_size, getattr(strategy, "local_rank", 0))
        self.strategy = strategy

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        return network  # Lightning wraps the whole module

    def gradients(self, synchronize: bool) -> contextlib.AbstractContextManager:
        if synchronize:
            return contextlib.nullcontext()
        return self.strategy.block_backward_sync()

    def sum(self, tensor: Tensor) -> Tensor:
        return super().sum(tensor.to(self.strategy.root_device)).to(tensor.device)

    def agree(self, wish: int, at_once: bool = True) -> int:
        return super().agree(wish, at_once=True)  # a vote in the background needs a group for tensors of the CPU

    def leave(self, in_order: bool = True) -> None:
        """Do nothing: Lightning ends its processes."""

    def save_for_restart(self, **about_run: Any) -> None:
        """Do nothing: our launcher, which would read it, has not started these processes."""


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
    """Lightning's mixed precision with float16, for a step that unscales and clips its gradients itself.

    Lightning's own unscales in the step of each optimizer, too late for the task, and adapts the scale after each, so
    that several optimizers of one update would step with different scales. Here it adapts once per update.
    """

    def __init__(self, device: str):
        super().__init__("16-mixed", device, torch.amp.GradScaler(device))

    def optimizer_step(self, optimizer, model, closure, **kwargs):
        closure()
        self._after_closure(model, optimizer)  # calls on_before_optimizer_step
        return self.scaler.step(optimizer, **kwargs)


class Hosted:
    """The methods that a task's trainer overrides under Lightning."""

    module: "TaskModule"  # set on the class that is derived from this one and the task

    def join_processes(self, opt: Namespace) -> tuple[Distributed, list[torch.device], str]:
        strategy = self.module.trainer.strategy
        device = strategy.root_device
        note = f"Device: {device}, {type(strategy).__name__} of Lightning {lightning.__version__}."
        if strategy.world_size == 1:
            return Distributed(), [device], note
        return LightningProcesses(strategy), [device], f"{note} {strategy.world_size} processes."


# ---- data and callbacks ----------------------------------------------------------------------------------------------
class Updates:
    """The loader that Lightning is given: the updates that are left of the epoch under way."""

    def __init__(self, module: "TaskModule"):
        self.module = module

    def __len__(self) -> int:
        return self.module.task.train_loader.updates_per_epoch

    def __iter__(self) -> Iterator[Update]:
        task = self.module.task
        self.module.updates = task.epoch_log.timed(task.updates_left())
        return self.module.updates


class LogToLightning(Callback):
    """Gives Lightning the values of each update and each epoch, for its loggers and callbacks."""

    def __init__(self, module: "TaskModule"):
        self.module = module

    def on_update_end(self, trainer: TrainerBase, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.module.log(f"train/{name}_step", value, on_step=True, on_epoch=False, prog_bar=name == "loss")

    def on_epoch_end(self, trainer: TrainerBase, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self.module.log(name, float(value), on_step=False, on_epoch=True)


class Host(lightning.Callback):
    """Makes the task's trainer once Lightning's processes have met, and lets it save what an exception breaks off."""

    def setup(self, trainer: lightning.Trainer, pl_module: "TaskModule", stage: str) -> None:
        pl_module.make_task()
        for callback in trainer.checkpoint_callbacks:
            if hasattr(callback, "dirpath") and callback.dirpath is None:
                callback.dirpath = str(pl_module.task.run_dir.path.resolve())

    def on_exception(self, trainer: lightning.Trainer, pl_module: "TaskModule", exception: BaseException) -> None:
        pl_module.stopped_by = exception
        if pl_module.is_in_session:
            try:
                pl_module.leave_session(exception)
            except BaseException as cause:  # Lightning would skip its own cleaning up
                pl_module.stopped_by = cause


# ---- the module ------------------------------------------------------------------------------------------------------
class TaskModule(lightning.LightningModule):
    """Runs the trainer of a task under Lightning.

    Args:
        trainer_class: the task's.
        opt: its options, as `trainer_class.parse_options` returns them.

    Attributes:
        task: the trainer, once Lightning has begun.
        stopped_by: the exception that ended the run.
    """

    def __init__(self, trainer_class: type[TrainerBase], opt: Namespace):
        super().__init__()
        self.automatic_optimization = False
        self.trainer_class = trainer_class
        self.opt = opt
        self.task: TrainerBase | None = None
        self.updates: Iterator[Update] = iter(())
        self.is_in_session = False
        self.stopped_by: BaseException | None = None

    # ---- set up --------------------------------------------------------------------------------------------------
    def configure_callbacks(self) -> list[lightning.Callback]:
        return [Host()]

    def make_task(self) -> None:
        """Make the task's trainer, in all processes."""
        if self.task:
            return
        os.environ.setdefault("RANK", str(self.trainer.strategy.global_rank))  # Lightning sets the other variables
        task_class = type(self.trainer_class.__name__, (Hosted, self.trainer_class), {"module": self})
        self.task = task_class(self.opt)
        self.task.precision = self.task.evaluator.precision = LightningPrecision(self)
        self.task.callbacks = CallbackList([LogToLightning(self), *self.task.callbacks.callbacks])
        self.networks = nn.ModuleDict(self.task.networks)
        self.criterion = self.task.criterion

    def configure_optimizers(self) -> tuple[list, list]:
        """Return the optimizers, for Lightning's callbacks, such as LearningRateMonitor."""
        names = {name: "lr" if len(self.task.optimizers) == 1 else f"lr/{name}" for name in self.task.optimizers}
        schedulers = [{"scheduler": s, "name": names[name]} for name, s in self.task.schedulers.items()]
        return list(self.task.optimizers.values()), schedulers

    def train_dataloader(self) -> Updates:
        return Updates(self)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # the step moves each micro-batch when it needs it

    # ---- train ---------------------------------------------------------------------------------------------------
    def on_train_start(self) -> None:
        self.task.session.__enter__()  # may resume
        self.is_in_session = True
        self.count_for_lightning()
        self.task.call("on_train_start")
        self.trainer.should_stop = self.task.is_over()

    def on_train_epoch_start(self) -> None:
        self.task.call("on_epoch_start")
        self.task.set_train_mode()

    def training_step(self, update: Update, batch_idx: int) -> None:
        self.task.train_update(update)
        self.count_for_lightning()
        if self.task.session.should_stop():
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        task = self.task
        if task.is_end_of_epoch() or task.progress.updates_left(task.opt.max_updates) == 0:
            next(self.updates, None)  # Lightning does not ask beyond the last one; this stops the clock and the loading
            task.finish_epoch()
            self.trainer.should_stop |= task.is_over()
        else:
            task.save("last")

    def on_train_end(self) -> None:
        if not self.task.is_over():  # Lightning or one of its callbacks has ended the run
            self.task.save("last")
        self.task.checkpointer.finish()
        self.task.call("on_train_end")
        self.leave_session()

    def count_for_lightning(self) -> None:
        """Set Lightning's counters: a step is an update, however many optimizers it steps."""
        loop = self.trainer.fit_loop
        progress = self.task.progress
        loop.epoch_progress.current.processed = progress.epoch
        loop.epoch_progress.current.completed = progress.epoch
        steps = loop.epoch_loop.manual_optimization.optim_step_progress.total
        steps.ready = progress.update
        steps.completed = progress.update

    def leave_session(self, error: BaseException | None = None) -> None:
        """End the block in which the trainer trains; see engine/session.py."""
        self.is_in_session = False
        self.task.session.__exit__(error and type(error), error, error and error.__traceback__)
