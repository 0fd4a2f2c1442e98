"""The training loop.

A task derives from `TrainerBase` and says how a batch becomes a loss: `compute_loss` is all that most tasks override.
Read `train`, `train_epoch`, `train_update`, `guarded_step`, `train_step` and `finish_epoch` in this order: that is the
whole loop.

One update is one step of the optimizer. Its samples may go through the network in several micro-batches, and may be
shared among several processes. With one process every exchange on `self.distributed` returns at once.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from callbacks.callback import Callback, CallbackList
from callbacks.callback_entry import build_asked_for, build_default_callbacks
from data.data_entry import build_loaders, data_notes, describe, seen_groups, with_found
from data.loader import EvalLoader, Update, UpdateLoader
from engine.checkpoints.checkpointer import build_checkpointer
from engine.checkpoints.state import collect_state, plain
from engine.devices.job import launch
from engine.devices.setup import agree_on_options, join_processes, place_network, place_networks
from engine.epoch_log import EpochLog
from engine.nan_guard import NanGuard, can_be_voided
from engine.optimizers import (
    checked_optimizers,
    checked_schedulers,
    freeze,
    length_of,
    make_clipper,
    make_optimizers,
    make_schedulers,
)
from engine.options.parser import OptionParser, saved_options
from engine.progress import Progress
from engine.registry import load  # what few runs need; its second argument is the option to name in an error
from engine.runs.provenance import name_of_class
from engine.runs.run_dir import RunDir
from engine.runs.scores import Score, check_monitor
from engine.session import Session
from eval import EvaluatorBase
from loss.terms import add_up, as_terms
from options import parse_train_options
from utils.batch import move_to
from utils.earlystopper import EarlyStopper, direction
from utils.errors import DivergedError, UserError
from utils.precision import Precision
from utils.scheduler import learning_rates
from utils.seed import GlobalGenerators, seed_apart, seed_everything


class TrainerBase:
    """Trains networks. A task overrides the methods in the first section, and its options' defaults."""

    evaluator_class: type[EvaluatorBase] = EvaluatorBase
    defaults: Mapping[str, Any] = {}  # the task's values for the options

    def __init__(self, opt: Namespace):
        # ---- the machine
        self.distributed, self.devices, device_note = self.join_processes(opt)
        self.device = self.devices[0]  # the others only help, with --parallel dp
        self.opt = opt = agree_on_options(opt, self.distributed)  # on process 0's drawn seed and --resume auto's run
        seed_everything(opt.seed, opt.deterministic)
        self.precision = Precision(opt.amp, self.device)

        # ---- the data
        with self.distributed.main_first():  # else two processes would download, or fill a cache, at once
            self.datasets = self.build_datasets()
        self.opt = opt = with_found(opt, self.datasets)  # such as the values of the masks, which checkpoints keep
        # Hashes of the data that the weights have seen, also before --pretrained: an evaluation on it is refused.
        self.seen_groups = seen_groups(self.datasets, opt)

        # ---- the networks, and how they learn
        self.progress = Progress()  # where the run stands
        # auto: until the session has measured how many fit
        self.micro_batch_size = opt.batch_size if opt.micro_batch_size in (None, "auto") else opt.micro_batch_size
        # They are initialized (--init), put on the device and compiled (--compile).
        self.networks = place_networks(opt, self.with_shapes(self.build_networks()), self.device, self.distributed)
        # --freeze: those parameters get no gradients. Returns, by network, the modules that stay in eval mode.
        self.in_eval_mode = freeze(opt, self.networks)
        pretrained_notes = self.load_initial_weights()
        # The modules that compute_loss calls: they exchange gradients between processes; with one, the networks.
        self.wrapped = {name: self.distributed.wrap(network, self.device) for name, network in self.networks.items()}
        self.criterion = place_network(self.build_criterion(), self.device, compile=opt.compile)
        self.evaluator = self.build_evaluator()
        check_monitor(opt.monitor, self.evaluator.meters)
        # Checked: an error for a name that fits nothing, parameters that nobody steps, a schedule that ends too early.
        self.optimizers = checked_optimizers(
            self.build_optimizers(), self.networks, self.criterion, self.distributed.size
        )
        self.train_loader, self.val_loader = self.build_loaders()
        self.train_loader.count = self.evaluator.loss_counter()  # what weighs a micro-batch; None: its samples
        num_updates = length_of(opt, self.train_loader.updates_per_epoch)  # of the run: --n_epoch or --max_updates
        self.schedulers = checked_schedulers(self.build_schedulers(), self.optimizers, num_updates)
        self.averaging = self.build_averaging()
        self.clipper = make_clipper(opt, self.networks)
        seed_apart(opt.seed, self.distributed.rank)  # else dropout would drop the same units in all processes

        # ---- where the run stands
        self.run_dir = RunDir(opt.output_dir, opt.proj_name, opt.resume, self.distributed)
        self.logger = self.run_dir.logger
        self.stopper = EarlyStopper(direction(opt.monitor, opt.monitor_mode), opt.patience, opt.min_delta)
        self.epoch_log = EpochLog()
        self.score = Score()  # of the last validation, with the update it belongs to
        self.should_stop = False  # a callback may set it
        self.guard = self.build_guard()
        self.session = Session(self)

        # ---- who watches
        per_epoch = self.train_loader.updates_per_epoch
        num_networks = len(self.networks)  # the checkpoints of one are named after --model_type, else after --proj_name
        self.checkpointer = build_checkpointer(opt, self.run_dir.path, num_networks, per_epoch, self.distributed)
        self.callbacks = CallbackList([])
        if self.distributed.is_main:
            watching = [*self.build_callbacks(), *build_asked_for(opt, self.logger)]
            self.callbacks = CallbackList(watching, is_checked=opt.debug)  # --debug: none may change the training
        self.introduce(device_note, *pretrained_notes)

    # ---- the task: override --------------------------------------------------------------------------------------
    @classmethod
    def add_options(cls, parser: OptionParser) -> None:
        """Add the task's options of training; those that evaluation needs too are added by the evaluator."""

    def compute_loss(self, batch: Any) -> Tensor | dict[str, Tensor]:
        """Return the loss of a batch that is on the device: a scalar, the mean over its samples.

        A task may return a dictionary instead: its "loss" is trained on, and the other scalars are logged beside it,
        as means over the samples of the epoch.
        """
        raise NotImplementedError(f"{type(self).__name__} must define compute_loss(batch)")

    def train_step(self, update: Update) -> dict[str, Tensor]:
        """Make one optimizer update from its micro-batches, and return scalars for the log.

        A task overrides it for two networks, or for two passes: see docs/own_step.md.
        """
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, Tensor] = {}
        for batch, weight in self.weighted(update):  # weight: the micro-batch's share of the samples
            with self.precision.autocast():
                loss = self.compute_loss(batch)  # (), or {"loss": (), ...}
            values = add_up(values, self.backward(loss, weight))
        values["grad_norm"] = self.optimizer_step()
        return values

    def build_datasets(self) -> dict[str, Any]:
        """Return the data sets "train", "val" and "test"; from the evaluator, which needs the same ones."""
        return self.evaluator_class.build_datasets(self.opt)

    def build_loaders(self) -> tuple[UpdateLoader, EvalLoader]:
        """Return the loader of the training updates and the loader of the validation batches."""
        eval_batch_size = self.evaluator_class.eval_batch_size(self.opt, self.micro_batch_size)
        share = self.distributed.share
        return build_loaders(self.opt, self.datasets, self.micro_batch_size, eval_batch_size, self.device, share)

    def build_networks(self) -> dict[str, nn.Module]:
        """Return the networks by name; from the evaluator, which needs the same ones."""
        return self.evaluator_class.build_networks(self.opt)

    def build_criterion(self) -> nn.Module:
        """Return the loss module; from the evaluator."""
        criterion = self.evaluator_class.build_criterion(self.opt)
        if self.opt.class_weights:
            load("extras.class_weights:count_classes", "class_weights")(criterion, self.opt, self.datasets["train"])
        return criterion

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return an optimizer for each network, by the network's name."""
        return make_optimizers(self.opt, self.networks)

    def build_schedulers(self) -> dict[str, torch.optim.lr_scheduler.LRScheduler]:
        """Return a scheduler for each optimizer, by the same name. It is stepped once per update."""
        return make_schedulers(self.opt, self.optimizers, self.train_loader.updates_per_epoch)

    def build_evaluator(self) -> EvaluatorBase:
        """Return the evaluator that validates."""
        return self.evaluator_class(
            self.opt, self.networks, self.criterion, self.device, self.precision, self.distributed
        )

    def build_callbacks(self) -> list[Callback]:
        """Return the callbacks; extend the list by `[*super().build_callbacks(), Mine()]`."""
        return build_default_callbacks(self.opt, self.run_dir.path, self.logger)

    # ---- the parts of a step -------------------------------------------------------------------------------------
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

    def weighted(self, update: Update) -> Iterator[tuple[Any, float]]:
        """Yield each micro-batch on the device, with its share of the samples of the update in this process.

        The sum of the weighted losses is the mean over this process's samples, also when the last micro-batch is short;
        `backward` makes it the mean over those of all processes. They exchange gradients with the last micro-batch.
        A loss that is a mean over something else than samples says so, see `EvaluatorBase.loss_counter`.
        """
        # Amounts are samples, or the elements that the loss counts. 0 of 0: only in step with processes that have more.
        total = sum(update.amounts) or 1
        last = len(update.micro_batches) - 1
        for number, (batch, amount) in enumerate(zip(update.micro_batches, update.amounts, strict=True)):
            with self.distributed.gradients(synchronize=number == last):
                yield move_to(batch, self.device, non_blocking=True), amount / total

    def backward(self, loss: Tensor | Mapping[str, Tensor], weight: float = 1.0) -> dict[str, Tensor]:
        """Add the gradients of `weight * loss` to those of the update; return all terms times `weight`, detached."""
        terms = as_terms(loss)  # {"loss": (), ...}
        if weight == 0 and not self.distributed.needs_backward:  # the mean over nothing may be NaN, and its gradients
            return {name: torch.zeros_like(term.detach()) for name, term in terms.items()}
        if weight == 0:  # NaN * 0 would stay
            terms = {name: term.nan_to_num(0.0, 0.0, 0.0) for name, term in terms.items()}
        self.guard.add_loss(terms["loss"])  # to check that it is finite
        share = self.distributed.to_share(terms["loss"], weight)  # weight * loss, scaled for the mean over processes
        self.precision.backward(share)
        return {name: term.detach() * weight for name, term in terms.items()}

    def optimizer_step(self, name: str | None = None) -> Tensor:
        """Clip the gradients that optimizer `name` steps, step it, and return their norm before clipping.

        Args:
            name: the optimizer; not needed when there is one.

        Raises:
            DivergedError: the gradients or the loss are not finite. No weight has changed. A GPU does not raise here:
                it skips this step and all later ones, until `train_update` reads its answer and takes them back.
        """
        name = name or next(iter(self.optimizers))
        optimizer = self.optimizers[name]
        self.precision.unscale(optimizer)  # float16: to their true size, so that the limit of --clip means what it says
        grad_norm = self.clipper(p for group in optimizer.param_groups for p in group["params"])
        # Infinite float16 gradients are no failure: the scaler skips the step, and lowers its scale.
        self.guard.check(name, grad_norm, may_overflow=self.precision.may_overflow)
        self.guard.stepped.append(name)  # a later failure in this train_step can be neither undone nor skipped
        self.precision.step(optimizer)  # the fused optimizers of a GPU read the guard's flag: if set, nothing changes
        return grad_norm

    # ---- the loop ------------------------------------------------------------------------------------------------
    def train(self) -> None:
        """Train until the last epoch, from the start or from a checkpoint.

        Whatever ends the run after its first update, it leaves a checkpoint.
        """
        with self.session:  # resumes, locks the run directory, hears signals, saves what an exception breaks off
            self.call("on_train_start")
            while not self.is_over():
                self.train_epoch()
            self.checkpointer.finish()  # a sharded checkpoint is written in the background
            self.call("on_train_end")
        was_validated = bool(self.score)  # it is empty before
        if was_validated and not self.stopper.has_best:  # else the program would end as if all were well
            raise DivergedError(f"--monitor {self.opt.monitor} was a number in no validation: none is the best.")

    def train_epoch(self) -> None:
        """Train on the rest of the epoch, validate, and save."""
        self.call("on_epoch_start")
        self.set_train_mode()
        for update in self.epoch_log.timed(self.updates_left()):  # times the wait for data, and the work
            self.train_update(update)
            if self.session.should_stop():  # raises on a signal; True if a callback asked to stop
                return self.save("last")
        self.finish_epoch()

    def set_train_mode(self) -> None:
        """Put the networks in train mode, except for what is frozen; and optimizers that have modes."""
        for name, network in self.networks.items():
            network.train()
            for layer in self.in_eval_mode.get(name, ()):  # by name, since wrapping may replace modules
                network.get_submodule(layer).eval()
        if self.opt.unfreeze:
            load("extras.unfreeze:follow", "unfreeze")(self)  # freezes what is to be trained from a later epoch on
        for optimizer in self.optimizers.values():
            if hasattr(optimizer, "train"):  # it makes its own average of the weights, see extras/schedule_free.py
                optimizer.train()

    def train_update(self, update: Update) -> None:
        """Make one optimizer update, count it, and tell the callbacks."""
        self.call("on_update_start", update)

        # Count: a state from inside this block belongs to no position of the run, so it is not saved. Only the guard
        # undoes: an update that it refuses, or whose error comes before a weight has changed, such as full memory.
        with self.progress.transaction():
            values = self.guarded_step(update)
            self.epoch_log.add(values, sum(update.amounts), learning_rates(self.optimizers))
            for scheduler in self.schedulers.values():
                scheduler.step()  # also after a skipped update: the schedule follows the position
            self.progress.finish_update(update.num_samples)

        # Tell, and save.
        is_logged = bool(values) and self.progress.update % self.opt.log_every == 0
        # A GPU reports a non-finite update some updates later. This then raises, with all counts as before that update.
        self.guard.check_earlier(wait=is_logged)
        self.call("on_update_end", values)
        if is_logged:
            self.call("on_log", self.epoch_log.read_newest(self.distributed.mean))
        if self.checkpointer.is_due(self.progress.update) and not self.is_end_of_epoch():  # finish_epoch saves that one
            self.save("last")

    def guarded_step(self, update: Update) -> dict[str, Tensor]:
        """Call `train_step` on an update; {} if it is skipped: not finite, or none of its samples could be loaded."""
        # Samples that cannot be loaded may be missing in one process; all agree on how many they learn from together.
        amount = self.distributed.begin_update(update, may_lose_samples=self.opt.skip_bad_samples > 0)  # of all of them
        if amount == 0:
            return {}
        # Not finite: undone. With --nan_policy skip it returns None, at most --max_skips times; else it raises.
        values = self.guard.attempt(self.train_step, update)
        self.precision.finish_update()  # float16: adapts the scale of the loss
        if self.averaging and values is not None and not self.precision.overflowed:
            self.averaging.finish_update()  # --ema: takes the new weights into their average
        return values or {}

    def finish_epoch(self) -> None:
        """Validate, count the epoch, tell the callbacks, and save: the score of an epoch is in its checkpoint."""
        with self.epoch_log.clock("train"):
            self.guard.check_earlier(wait=True)  # a GPU may still be at work on the last updates
        row = self.epoch_log.row(self.distributed.gather)  # {"train/loss": mean over the epoch, ..., "lr": ...}

        # Validate.
        if self.averaging:
            # --swa_start: takes the weights into their mean over epochs; those of one epoch only once.
            self.averaging.finish_epoch()
        results = self.validate() if self.is_time_to_validate() else {}
        row |= {f"val/{name}": value for name, value in results.items()}
        row |= self.epoch_log.times(self.progress.sample)  # {"time/train": seconds, ..., "samples_per_second": ...}

        # Count. If a callback fails, all of this is taken back: the state is that before the validation, and saved.
        counted = (self.stopper, self.epoch_log, self.epoch_log.seconds, self.callbacks)  # each with its own state
        with self.progress.rollback(*counted):
            # The stopper counts the validations without a better score.
            is_best = bool(results) and self.stopper.update(results[self.opt.monitor])
            if results:
                self.call("on_validation_end", results)
            self.progress.finish_epoch()
            self.epoch_log.clear()
            self.call("on_epoch_end", {"epoch": self.progress.epoch, "update": self.progress.update, **row})

        for scheduler in self.schedulers.values():
            if results and hasattr(scheduler, "step_by"):  # ReduceLROnPlateau; its `step` does nothing
                scheduler.step_by(results[self.opt.monitor])

        # Save.
        kinds = []
        if is_best:
            kinds.append("best")
        if self.stopper.should_stop:
            kinds.append("earlystop")
        if self.is_over() or self.checkpointer.is_due(self.progress.update):
            kinds.append("last")
        self.save(*kinds)

    def validate(self) -> dict[str, float]:
        """Evaluate on the validation part, with averaged weights if there are any; return the results by name."""
        with self.epoch_log.clock("val"):
            stop = partial(self.session.should_stop, at_once=True)  # a signal raises; a callback's wish waits
            results = self.evaluator.evaluate(self.val_loader, before_batch=stop)
        self.score.load_state_dict({  # goes into the checkpoint, so that an evaluation of it can be compared
            "update": self.progress.update,
            "num_samples": self.evaluator.num_samples,
            "results": results,
        })
        return results

    def updates_left(self) -> Iterator[Update]:
        """Yield the updates of this epoch that are left, up to --max_updates."""
        updates = self.train_loader.updates(self.progress.epoch, self.progress.sample)
        for update in islice(updates, self.progress.updates_left(self.opt.max_updates)):
            self.train_loader.bad.unite(self.distributed.gather)  # --skip_bad_samples: raises when there are too many
            yield update

    def is_end_of_epoch(self) -> bool:
        """Return whether the epoch under way has no sample left."""
        return self.progress.sample >= self.train_loader.num_samples

    def is_time_to_validate(self) -> bool:
        """Return whether the epoch that ends here is validated: every --val_every epochs, and the last one."""
        epoch = self.progress.current_epoch
        is_last = epoch == self.opt.n_epoch or self.progress.updates_left(self.opt.max_updates) == 0
        return bool(self.opt.val_every) and (is_last or epoch % self.opt.val_every == 0)

    def is_over(self) -> bool:
        """Return whether training ends between two epochs: all is done, early stopping, or a callback asked for it."""
        self.should_stop = bool(self.distributed.largest(self.should_stop))  # callbacks are in process 0
        is_counted = self.progress.sample == 0  # else the validation of the last epoch is still to come, after a resume
        updates_done = self.progress.updates_left(self.opt.max_updates) == 0 and is_counted
        all_done = updates_done or self.progress.epoch >= self.opt.n_epoch
        return all_done or self.should_stop or self.stopper.should_stop

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of every callback."""
        self.callbacks.call(hook, self, *arguments)

    # ---- how a trainer is set up: Lightning's and other loops override these ---------------------------------------
    def join_processes(self, opt: Namespace) -> tuple[Any, list[torch.device], str]:
        """Meet the other processes; return them, the devices of this one, and a line about both for the log."""
        return join_processes(opt)

    def with_shapes(self, networks: dict[str, nn.Module]) -> dict[str, nn.Module]:
        """Return the networks after lazy layers, such as `nn.LazyLinear`, have got their shapes by the first batch."""
        if any(isinstance(module, LazyModuleMixin) for network in networks.values() for module in network.modules()):
            load("extras.lazy_layers:materialize", "model_type")(self, networks)
        return networks

    def load_initial_weights(self) -> list[str]:
        """Load the weights of --pretrained into the networks; return a note on each for the log."""
        if not self.opt.pretrained or self.opt.resume:
            return []
        with self.distributed.main_first():  # else two processes would download at once
            return load("extras.pretrained:load_initial_weights", "pretrained")(self.opt, self.networks)

    def build_guard(self) -> NanGuard:
        """Return the guard that undoes an update that is not finite; the loop waits for a GPU's answer only if it must.

        The scaler of float16 and averages of the weights need the answer before the next update, and so does skipping.
        """
        settings = {
            "modules": (*self.networks.values(), self.criterion),
            "progress": self.progress,
            "sum_losses": self.distributed.sum if self.distributed.size > 1 else None,
            "describe": self.describe_failure,
        }
        must_wait = self.opt.nan_policy == "skip" or self.opt.amp == "fp16" or self.opt.ema is not None
        if not must_wait and not self.opt.unfreeze and can_be_voided(self.optimizers.values()):
            counters = (self.progress, *self.schedulers.values(), self.epoch_log)
            late_guard = load("extras.late_nan_guard:DeferredNanGuard", "nan_policy")
            return late_guard(optimizer=self.optimizer, counters=counters, **settings)
        warn = partial(self.run_dir.note, is_warning=True)
        return NanGuard(policy=self.opt.nan_policy, max_skips=self.opt.max_skips, warn=warn, **settings)

    def build_averaging(self) -> Any:
        """Return the average of the weights, which the evaluator then measures; None if nothing makes one."""
        if any(hasattr(optimizer, "train") for optimizer in self.optimizers.values()):
            if self.opt.swa_start is not None or self.opt.ema is not None:
                raise UserError("The optimizer makes its own average of the weights: leave out --ema and --swa_start.")
            averaging = load("extras.schedule_free:OptimizerAverage", "optim")(self.networks, self.optimizers)
        elif self.opt.swa_start is not None:
            averaging = load("extras.mean_over_epochs:MeanOverEpochs", "swa_start")(self)
        elif self.opt.ema is not None:
            averaging = load("extras.averaging:Averaging", "ema")(self.networks, self.opt.ema)
        else:
            return None
        self.evaluator.weights = averaging.applied
        return averaging

    def introduce(self, *notes: str) -> None:
        """Record what the run is made of in its directory, and describe it in the log.

        Args:
            notes: lines for the log: on the devices, and on the weights that were loaded.
        """
        self.distributed.save_for_restart(run_dir=str(self.run_dir.path), seed=self.opt.seed)
        evaluator = name_of_class(type(self.evaluator))
        self.run_dir.record(saved_options(self.opt), evaluator, self.devices, self.networks, *describe(self.datasets))
        device_note, *loaded = notes
        text = "\n".join([device_note, *data_notes(self.datasets, self.train_loader), *loaded])
        is_part_of_data = self.opt.train_val_sample_rate != 1
        self.run_dir.note(text, is_warning=is_part_of_data)

    def describe_failure(self, update: Update, error: Exception) -> str:
        """Say what failed in the update under way, and name its samples."""
        return load("extras.failures:describe_update", "nan_policy")(self, update, error)

    # ---- checkpoints ---------------------------------------------------------------------------------------------
    def save(self, *kinds: str) -> None:
        """Write the current state as checkpoints of these kinds."""
        if kinds:
            self.guard.check_earlier(wait=True)
            self.call("on_save")
            with self.epoch_log.clock("save"):
                seconds = self.checkpointer.save(self.state_dict(), *kinds)
            self.session.stop_signal.reserve = seconds  # --max_time ends the run so much earlier: for the last save

    def stateful(self) -> dict[str, Any]:
        """Return everything that has a state: objects with `state_dict`, or dictionaries of such objects."""
        states = {
            "networks": self.networks,
            "criterion": self.criterion,
            "optimizers": self.optimizers,
            "schedulers": self.schedulers,
            "scaler": self.precision,
            "progress": self.progress,
            "stopper": self.stopper,
            "guard": self.guard,
            "loader": self.train_loader.bad,
            "epoch_log": self.epoch_log,
            "seconds": self.epoch_log.seconds,
            "score": self.score,
            "groups": self.seen_groups,
            "callbacks": self.callbacks,
            "random": GlobalGenerators(),
        }
        if self.averaging:
            states["averaging"] = self.averaging
        return states

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume and an evaluation need, as data that `torch.load(weights_only=True)` accepts."""
        with suppress(DivergedError):  # the state is then that before the bad update, which Session.rescue saves
            self.guard.check_earlier(wait=True)
        state = collect_state(self.stateful(), self.distributed, self.checkpointer.in_shards)
        options = plain(saved_options(self.opt), "The run cannot be saved: options")
        evaluator = name_of_class(type(self.evaluator))  # a text: predict.py looks for it
        return {**state, "options": options, "run_name": self.run_dir.name, "evaluator": evaluator}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; UserError when it belongs to other networks or optimizers."""
        from engine.checkpoints.restore import restore_state  # here, as only a resumed run needs it

        restore_state(self.stateful(), state, self.opt.resume, self.distributed, self.opt.seed)

    # ---- the command line ----------------------------------------------------------------------------------------
    @classmethod
    def main(cls, argv: list[str] | None = None) -> None:
        """Train from the command line; docs/tour.md lists the exit statuses."""
        launch(cls, argv)

    @classmethod
    def parse_options(cls, argv: list[str] | None = None) -> Namespace:
        """Resolve the options: the defaults, the task's, a resumed run's, --config files, the command line."""
        return parse_train_options(cls, argv)
