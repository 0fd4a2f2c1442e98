"""The training loop.

A task derives from `TrainerBase` and says what a step learns: `compute_loss` is all that most tasks override. Read
`train`, `train_epoch`, `train_update` and `train_step` in this order: that is the whole loop.
"""

import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

import parts
from base_options import parse_train_options
from callbacks.callback import Callback, CallbackList
from callbacks.callback_entry import build_asked_for, build_default_callbacks
from data.data_entry import build_loaders, samples_at_once, seen_groups
from data.sampler import Update, UpdateLoader
from engine.checkpoints.file import load_checkpoint
from engine.checkpoints.pretrained import load_pretrained
from engine.command import launch
from engine.devices.device import place_criterion
from engine.epoch_log import EpochLog, read_scalars
from engine.optimizers import checked_optimizers, checked_schedulers
from engine.options.parser import OptionParser
from engine.out_of_memory import fit_micro_batches
from engine.progress import Progress
from engine.refusal import guarded_step, settle
from engine.run_state import collect_state, restore_state
from engine.runs.run_dir import RunDir
from engine.runs.scores import check_monitor
from engine.runs.signals import STOP_ASKED, StopSignal
from eval import EvaluatorBase
from loss.weighted_sum import add_up, last_terms
from utils.averaging import make_averaging
from utils.batch import count_samples, move_to
from utils.duration import seconds_of
from utils.earlystopper import EarlyStopper, direction
from utils.precision import Precision
from utils.scheduler import learning_rates
from utils.seed import seed_apart, seed_everything


class TrainerBase:
    """Trains networks: the loop and everything around it. The task's part is in the methods under "override"."""

    evaluator_class: type[EvaluatorBase] = EvaluatorBase
    defaults: Mapping[str, Any] = {}  # the task's values for the options

    def __init__(self, opt: Namespace):
        self.opt = opt
        self.distributed, self.devices, device_line = parts.join_processes(opt)
        seed_everything(opt.seed, opt.deterministic)
        self.device = self.devices[0]
        self.precision = Precision(opt.amp, self.device)

        # what learns
        with self.distributed.main_first():
            self.datasets = self.build_datasets()
        start = opt.model_path if opt.pretrained and not opt.resume else None
        self.seen_groups = seen_groups(self.datasets, start)
        self.networks, self.freezing = parts.place_networks(opt, self.build_networks(), self.device, self.distributed)
        loaded = [load_pretrained(net, start, name) for name, net in self.networks.items()] if start else []
        self.wrapped = parts.wrap_networks(opt, self.networks, self.devices, self.distributed)
        self.criterion = place_criterion(self.build_criterion(), self.device, opt.compile)
        self.evaluator = self.build_evaluator()
        check_monitor(opt.monitor, self.evaluator.meters)
        self.averaging = make_averaging(self)  # the evaluator measures the averages
        self.optimizers = checked_optimizers(self.build_optimizers(), self.networks)
        self.train_loader, self.val_loader = self.build_loaders()  # may take long, so after what may be wrong
        parts.check_swa_start(opt, self.train_loader.updates_per_epoch)
        self.schedulers = checked_schedulers(self.build_schedulers(), self.optimizers)
        seed_apart(opt.seed, self.distributed.rank)  # what one process drops out, another need not
        self.clipper = parts.make_clipper(opt, self.networks)

        # where it stands
        self.progress = Progress()
        self.stopper = EarlyStopper(direction(opt.monitor, opt.monitor_mode), opt.patience, opt.min_delta)
        self.epoch_log = EpochLog()
        self.score: dict[str, Any] | None = None  # of the last validation, with the update it belongs to
        self.should_stop = False  # a callback may set it
        self.may_halve = False  # whether micro-batches may become smaller when memory runs out
        self.exact = True  # False while the state is between two positions that a run can continue from
        counters = (self.progress, *self.schedulers.values(), self.epoch_log)
        modules = (*self.networks.values(), self.criterion)
        self.guard = parts.make_guard(opt, modules, self.optimizers, counters, self.distributed)
        self.stop_signal = StopSignal(seconds_of(opt.max_time) if opt.max_time else None)

        # what watches
        self.run_dir = RunDir(opt.output_dir, opt.proj_name, opt.resume, self.distributed)
        self.logger = self.run_dir.logger
        self.distributed.leave_word(run_dir=str(self.run_dir.path), seed=opt.seed)
        parts.connect(self.train_loader, self)
        parts.connect(self.val_loader, self)
        self.checkpointer = parts.make_checkpointer(opt, self.run_dir.path, self.train_loader, self.distributed)
        watching = [*self.build_callbacks(), *build_asked_for(opt, self.logger)] if self.distributed.is_main else []
        self.callbacks = CallbackList(watching)
        parts.introduce(self, device_line, *loaded)

    # ---- the task: override --------------------------------------------------------------------------------------
    @classmethod
    def add_options(cls, parser: OptionParser) -> None:
        """Add the task's options of training; those that evaluation needs too are added by the evaluator."""

    def compute_loss(self, batch: Any) -> torch.Tensor:
        """Return the loss of a batch that is on the device: a scalar, the mean over its samples."""
        raise NotImplementedError(f"{type(self).__name__} must define compute_loss(batch)")

    def build_datasets(self) -> dict[str, Any]:
        """Return the data sets "train", "val" and "test"; from the evaluator, which needs the same ones."""
        return self.evaluator_class.build_datasets(self.opt)

    def build_loaders(self) -> tuple[UpdateLoader, Any]:
        """Return the loader of the training updates and the loader of the validation batches."""
        self.opt.eval_batch_size = self.opt.eval_batch_size or samples_at_once(self.opt)
        eval_batch_size, share = self.evaluator_class.eval_batch_size(self.opt), self.distributed.share
        return build_loaders(self.opt, self.datasets, eval_batch_size, self.device, share)

    def build_networks(self) -> dict[str, nn.Module]:
        """Return the networks by name; from the evaluator, which needs the same ones."""
        return self.evaluator_class.build_networks(self.opt)

    def build_criterion(self) -> nn.Module:
        """Return the loss module; from the evaluator."""
        return self.evaluator_class.build_criterion(self.opt)

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return an optimizer for each network, by the network's name."""
        return parts.make_optimizers(self.opt, self.networks)

    def build_schedulers(self) -> dict[str, torch.optim.lr_scheduler.LRScheduler]:
        """Return a scheduler, to be stepped once per update, for each optimizer, by the same name."""
        return parts.make_schedulers(self.opt, self.optimizers, self.train_loader.updates_per_epoch)

    def build_evaluator(self) -> EvaluatorBase:
        """Return the evaluator that validates."""
        parts = (self.networks, self.criterion, self.device, self.precision, self.distributed)
        return self.evaluator_class(self.opt, *parts)

    def build_callbacks(self) -> list[Callback]:
        """Return what watches the run; extend the list by `[*super().build_callbacks(), Mine()]`."""
        return build_default_callbacks(self.opt, self.run_dir.path, self.logger)

    def train_step(self, micro_batches: list) -> dict[str, torch.Tensor]:
        """Make one optimizer update from its micro-batches; return detached scalars to be logged and averaged."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for batch, weight in self.weighted(micro_batches):
            with self.precision.autocast():
                loss = self.compute_loss(batch)
            losses.append({"loss": self.backward(loss, weight), **last_terms(self.criterion, weight)})
        grad_norm = self.optimizer_step(*self.optimizers)  # there is one
        return {**add_up(losses), "grad_norm": grad_norm}

    # ---- what a step is made of ----------------------------------------------------------------------------------
    @property
    def model(self) -> nn.Module:
        """The only network, for the common case of one; ready to be called."""
        (model,) = self.wrapped.values()
        return model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The only optimizer, for the common case of one."""
        (optimizer,) = self.optimizers.values()
        return optimizer

    def weighted(self, micro_batches: list) -> Iterator[tuple[Any, float]]:
        """Yield each micro-batch on the device, with its share of this process's samples of the update.

        The sum of the weighted losses is the mean over all samples, also when the last micro-batch is short. The
        gradients of several processes are added up in the backward pass of the last one.
        """
        sizes = self.distributed.own_sizes([count_samples(batch) for batch in micro_batches])
        for number, (batch, size) in enumerate(zip(micro_batches, sizes, strict=True), start=1):
            with self.distributed.gradients(synchronize=number == len(sizes)):
                yield move_to(batch, self.device, non_blocking=True), size / (sum(sizes) or 1)

    def backward(self, loss: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
        """Add the gradients of `weight * loss` to those of the update; return `weight * loss`, detached."""
        self.guard.add_loss(loss)
        self.precision.backward(self.distributed.to_share(loss, weight))
        return loss.detach() if weight == 1 else loss.detach() * weight

    def optimizer_step(self, name: str) -> torch.Tensor:
        """Clip the gradients that optimizer `name` steps, and step it; return their norm before the clipping.

        Raises:
            DivergedError: when they, or the loss, are infinite or not a number. Then no weight has changed.
        """
        optimizer = self.optimizers[name]
        self.precision.unscale(optimizer)
        grad_norm = self.clipper(p for group in optimizer.param_groups for p in group["params"])
        self.guard.check(name, grad_norm, may_overflow=self.precision.may_overflow)
        self.precision.step(optimizer)
        self.guard.stepped.append(name)
        return grad_norm

    # ---- the loop ------------------------------------------------------------------------------------------------
    def train(self) -> None:
        """Train to the end, from the start or from where a checkpoint left; leave a checkpoint whatever happens."""
        fit_micro_batches(self)
        if self.opt.resume:
            self.load_state_dict(load_checkpoint(self.opt.resume, tensors_of=()))
        for note in (*self.opt.resume_notes, *self.checkpointer.begin(self.progress.position)):
            self.logger.warning(note)
        with self.run_dir.lock, self.stop_signal:
            try:
                self.call("on_train_start")
                while self.progress.epoch < self.opt.n_epoch and not self.ends_here():
                    self.train_epoch()
            except BaseException as error:
                if is_common := self.distributed.is_common(error):  # else the others may wait for ever
                    self.checkpointer.rescue(self.state_dict, self.logger)
                cause = self.distributed.cause_of(self.stop_signal.cause_of(error))
                self.call("on_exception", cause)
                self.distributed.leave(is_common)
                raise cause from error.__cause__
            self.checkpointer.finish()
            self.run_dir.end(self.progress.state_dict())
            self.call("on_train_end")
            self.distributed.leave()

    def train_epoch(self) -> None:
        """Train on what is left of the epoch, validate, and save."""
        self.call("on_epoch_start")
        self.freezing.set_train_mode(self.networks)
        asked, left = time.perf_counter(), self.progress.updates_left(self.opt.max_updates)
        for update in islice(self.train_loader.updates(self.progress.epoch, self.progress.sample), left):
            self.epoch_log.seconds["data_wait"] += time.perf_counter() - asked
            self.train_update(update)
            self.epoch_log.seconds["train"] += time.perf_counter() - asked
            asked = time.perf_counter()
            if self.asked_to_stop():
                return self.save("last")
        settle(self)  # a GPU may still be at work on the last updates
        self.epoch_log.seconds["train"] += time.perf_counter() - asked
        self.finish_epoch()

    def train_update(self, update: Update) -> None:
        """Make one update, count it, and tell who watches."""
        self.exact = False
        used_lr = learning_rates(self.optimizers)
        self.call("on_update_start", update)
        num_own = sum(map(count_samples, update.micro_batches[: len(update.micro_batches) - update.num_idle]))
        self.train_loader.unite_bad(self.distributed.gather)
        plan = (num_own, update.num_samples, update.num_idle, self.opt.skip_bad_samples == 0)
        values = guarded_step(self, update) if self.distributed.begin_update(*plan) else {}  # {}: none could be loaded
        for scheduler in self.schedulers.values():
            scheduler.step()
        self.epoch_log.add(values, num_own, used_lr)
        self.progress.finish_update(update.num_samples)  # the position counts samples that could not be loaded, too
        self.exact = True

        is_logged = bool(values) and self.progress.update % self.opt.log_every == 0
        settle(self, wait=is_logged or bool(self.opt.trace))
        self.call("on_update_end", values)
        if is_logged:
            numbers = dict(zip(values, read_scalars([*values.values()]), strict=True))
            self.call("on_log", self.distributed.mean(numbers, num_own) | used_lr)
        if self.progress.sample < self.train_loader.num_samples and self.checkpointer.is_due(self.progress.update):
            self.save("last")

    def finish_epoch(self) -> None:
        """Validate, count the epoch, tell who watches, and save: the score of an epoch is in its checkpoint."""
        row, kinds, started = self.epoch_log.row(self.distributed.gather), [], time.perf_counter()
        is_last = self.progress.epoch + 1 == self.opt.n_epoch or self.progress.updates_left(self.opt.max_updates) == 0
        self.averaging.finish_epoch(self)
        if self.opt.val_every and (is_last or (self.progress.epoch + 1) % self.opt.val_every == 0):
            results = self.evaluator.evaluate(self.val_loader, before_batch=partial(self.asked_to_stop, at_once=True))
            counts = {"update": self.progress.update, "num_samples": self.evaluator.num_samples}
            self.score = {**counts, "results": results}
            row |= {f"val/{name}": value for name, value in results.items()}
            row["time/val"] = time.perf_counter() - started
            self.exact = False  # a validation must not count twice
            if self.stopper.update(results[self.opt.monitor]):
                kinds.append("best")
            self.call("on_validation_end", results)
        row |= self.epoch_log.times(self.progress.sample)

        self.progress.finish_epoch()
        self.epoch_log.clear()
        self.call("on_epoch_end", {"epoch": self.progress.epoch, "update": self.progress.update, **row})
        self.exact = True
        if self.stopper.should_stop:
            kinds.append("earlystop")
        if self.ends_here() or is_last or self.checkpointer.is_due(self.progress.update):
            kinds.append("last")
        self.save(*kinds)

    def ends_here(self) -> bool:
        """Say whether training ends between two epochs: early, as a callback asked in process 0, or as all is done."""
        self.should_stop = bool(self.distributed.largest(self.should_stop))
        is_done = self.progress.updates_left(self.opt.max_updates) == 0 and self.progress.sample == 0
        return self.should_stop or self.stopper.should_stop or is_done

    def asked_to_stop(self, at_once: bool = False) -> bool:
        """Raise what ends the run, if a signal has reached any process; say whether a callback has asked to stop.

        Several processes go by what they knew an update ago, so as not to wait for each other, unless `at_once`.
        """
        code = self.distributed.agree(self.stop_signal.pending() or (STOP_ASKED if self.should_stop else 0), at_once)
        self.should_stop |= code == STOP_ASKED
        self.stop_signal.raise_for(code)
        return code == STOP_ASKED

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of the callbacks."""
        self.callbacks.call(hook, self, *arguments)

    # ---- checkpoints ---------------------------------------------------------------------------------------------
    def save(self, *kinds: str) -> None:
        """Write the state of now as checkpoints of these kinds."""
        if kinds:
            settle(self)
            self.call("on_save")
            self.stop_signal.reserve = self.checkpointer.save(self.state_dict(), *kinds)

    def stateful(self) -> dict[str, Any]:
        """Everything that has a state: an object with `state_dict`, or a dictionary of such objects."""
        return {
            "networks": self.networks, "criterion": self.criterion, "optimizers": self.optimizers,
            "schedulers": self.schedulers, "scaler": self.precision, "progress": self.progress,
            "stopper": self.stopper, "guard": self.guard, "loader": self.train_loader, "epoch_log": self.epoch_log,
            "callbacks": self.callbacks, **({"averaging": self.averaging} if self.averaging else {}),
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """What a resume and an evaluation need, as data that `torch.load(weights_only=True)` accepts."""
        return collect_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; UserError when it belongs to other networks or optimizers."""
        restore_state(self, state)

    # ---- the command line ----------------------------------------------------------------------------------------
    @classmethod
    def main(cls, argv: list[str] | None = None) -> None:
        """Train from the command line; README says what the exit status means."""
        launch(cls, argv)

    @classmethod
    def parse_options(cls, argv: list[str] | None = None) -> Namespace:
        """Options: the defaults, the task's, a resumed run's, --config files, the command line; later ones win."""
        return parse_train_options(cls, argv)
