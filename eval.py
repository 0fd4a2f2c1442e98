"""The evaluation, for validation and for test.

A task says how a prediction is scored (`build_meters`, `eval_step`). The trainer calls `evaluate` for validation. As a
program, `run_test` evaluates a checkpoint. So each metric is defined once.
"""

import contextlib
import copy
import logging
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.data_entry import build_datasets, build_eval_loader, data_notes, refuse_seen, with_found
from data.loader import EvalLoader
from engine.checkpoints.file import load_checkpoint, weights_of
from engine.devices.job import launch
from engine.devices.process_group import Distributed
from engine.devices.setup import place_network
from engine.options.parser import OptionParser
from engine.registry import load
from engine.runs.scores import scalars
from loss.loss_entry import build_criterion
from model.model_entry import build_networks
from options import parse_test_options
from utils.batch import move_to
from utils.precision import Precision
from utils.seed import preserved_random_state, seed_everything


class EvaluatorBase:
    """Measures networks on a part of the data.

    Args:
        opt: the options.
        networks: by name, on the device.
        criterion: the loss module.
        device: where the networks are.
        precision: casts the forward pass.
        distributed: the processes that share the batches; None for this one alone.
    """

    task: str | None = None  # "classification" or "segmentation": narrows --data_type, --model_type, --loss_type

    def __init__(
        self,
        opt: Namespace,
        networks: Mapping[str, nn.Module],
        criterion: nn.Module,
        device: torch.device,
        precision: Precision,
        distributed: Distributed | None = None,
    ):
        self.opt = opt
        self.networks = networks
        self.criterion = criterion
        self.device = device
        self.precision = precision
        self.distributed = distributed or Distributed()
        self.logger = logging.getLogger(__name__)
        self.output_dir: Path | None = None  # of the evaluation as a program
        self.num_samples = 0  # of the last evaluation
        self.num_in_batch = 0  # samples of the batch that `eval_step` gets
        self.loss_count = 0  # elements over which the loss of this batch is a mean
        self.table: Any = None  # of an evaluation as a program: takes what `record` gets
        self.weights = contextlib.nullcontext  # makes a block in which the networks have other weights: the averages
        self.meters = {name: meter.to(device) for name, meter in self.build_meters().items()}

    @property
    def model(self) -> nn.Module:
        """The only network, for the common case of one."""
        (model,) = self.networks.values()
        return model

    @property
    def classes(self) -> list[str]:
        """The names of the classes; their numbers where the data has none."""
        return getattr(self.opt, "class_names", None) or [str(number) for number in range(self.opt.n_classes)]

    # ---- the task: override --------------------------------------------------------------------------------------
    @classmethod
    def add_options(cls, parser: OptionParser) -> None:
        """Add the task's options that training and evaluation share."""

    @classmethod
    def add_test_options(cls, parser: OptionParser) -> None:
        """Add the task's options of the evaluation as a program."""

    @classmethod
    def build_datasets(cls, opt: Namespace) -> dict[str, Any]:
        """Return the data sets "train", "val" and "test" (see data/data_entry.py), for training and evaluation."""
        return build_datasets(opt)

    @classmethod
    def build_networks(cls, opt: Namespace) -> dict[str, nn.Module]:
        """Return the networks by name, for training and evaluation."""
        return build_networks(opt)

    @classmethod
    def build_criterion(cls, opt: Namespace) -> nn.Module:
        """Return the loss module, for training and evaluation."""
        return build_criterion(opt)

    def build_meters(self) -> dict[str, Any]:
        """Return meters by name, with `update`, `compute`, `reset` and `to`; metrics of torchmetrics have these."""
        raise NotImplementedError(f"{type(self).__name__} must define build_meters()")

    def loss_counter(self) -> Callable[[Any], int | None] | None:
        """Return a function that says over how many elements the loss of a batch is a mean; None: over its samples.

        A loss that leaves out padding or ignored pixels is a mean over a number that differs from batch to batch.
        Training weighs the micro-batches of an update by it, so their size changes no result, and so does `loss_count`
        in `eval_step`. The function gets a batch that need not be on the device yet.
        """
        return None

    def eval_step(self, batch: Any) -> None:
        """Predict one batch, which is on the device, and update the meters. Gradients are off."""
        raise NotImplementedError(f"{type(self).__name__} must define eval_step(batch)")

    def predict_step(self, inputs: Any) -> dict[str, torch.Tensor]:
        """Predict a batch of inputs without targets, which is on the device; gradients are off, averages in place.

        predict.py and the export call it, see docs/predict.md.

        Returns:
            For classes "probabilities" (N, C); for segmentation "masks" (N, H, W) and "probabilities" (N, C, H, W); for
            regression "values" (N, K). Further tensors with a row for each sample may be beside them.
        """
        raise NotImplementedError(f"{type(self).__name__} must define predict_step(inputs)")

    def read_samples(self, path: Path) -> Iterator[tuple[str, Any]]:
        """Yield the name and the input, as in training, of each sample in a file of a user; here, the one of an image.

        Raises:
            UserError: the file cannot be read. Prediction goes on with the next one.
        """
        yield path.name, load("extras.image_input:read_image", "data_type")(path, self.opt)

    def record(self, outputs: Any, targets: Any) -> None:
        """Pass the outputs for a batch and its targets, of a row for each sample, to an evaluation as a program.

        `eval_step` calls it; predictions.csv is made from it, see docs/evaluation.md. In training it does nothing.
        """
        if self.table is not None:
            self.table.add(outputs, targets)

    def draw(self, batch: Any) -> torch.Tensor | None:
        """Return a picture of predictions on a batch, (3, H, W) uint8; None if there is nothing to draw."""
        return None

    def report(self, loader: Iterable) -> None:
        """Log, and save in `self.output_dir`, results that are more than numbers; called when those are saved."""

    @classmethod
    def eval_batch_size(cls, opt: Namespace, default: int = 64) -> int:
        """Return the number of samples that are predicted at once; it changes no result.

        Args:
            opt: the options.
            default: for options that name none. In training it is the size of the micro-batches.
        """
        return opt.eval_batch_size or default

    # ---- the loop ------------------------------------------------------------------------------------------------
    def evaluate(self, loader: EvalLoader, before_batch: Callable[[], Any] = lambda: None) -> dict[str, float]:
        """Run every batch through `eval_step`, and return the scalars of the meters by name.

        It leaves no trace on a training around it: modes of the networks and random states are restored.

        Args:
            loader: the batches of this process.
            before_batch: called before each batch; may raise, to stop.

        Raises:
            UserError: there is no sample.
        """
        for meter in self.meters.values():
            meter.reset()
        count = self.loss_counter()
        with self.inference():
            self.distributed.share_buffers(self.networks.values())  # all processes measure the network of process 0
            # Not real: padding, where a sharded network needs all processes and others have batches left.
            for batch, is_real in self.distributed.in_step(loader, before_batch):
                self.num_in_batch = loader.num_in_batch
                counted = count and count(batch)
                self.loss_count = self.num_in_batch if counted is None else int(counted)
                aside = contextlib.nullcontext() if is_real else self.meters_aside()  # padding counts in no meter
                with self.precision.autocast(), aside:
                    self.eval_step(move_to(batch, self.device))
        self.distributed.merge(self.meters)
        self.num_samples = loader.num_evaluated(self.distributed.totals)  # raises if no sample could be loaded
        return self.distributed.broadcast(self.results())  # the same bits, so that all decide alike

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Put networks and loss in eval mode without gradients; restore all modes and random states afterwards."""
        parts = [*self.networks.values(), self.criterion]
        modes = [(module, module.training) for part in parts for module in part.modules()]
        for part in parts:
            part.eval()
        try:
            with torch.no_grad(), preserved_random_state(), self.weights():
                yield
        finally:
            for module, mode in modes:  # one by one: a frozen layer was in eval mode before
                module.training = mode

    @contextlib.contextmanager
    def meters_aside(self) -> Iterator[None]:
        """Undo what the block does to the meters: its batch is padding, which other processes wait for."""
        kept = self.meters
        self.meters = copy.deepcopy(self.meters)
        yield
        self.meters = kept

    def picture(self, loader: Iterable) -> torch.Tensor | None:
        """Draw the first batch of a loader; None without one, or if the network is sharded (one process draws)."""
        with self.inference(), self.precision.autocast():
            batch = None if self.distributed.is_sharded else next(iter(loader), None)
            return None if batch is None else self.draw(move_to(batch, self.device))

    def results(self) -> dict[str, float]:
        """Return the scalars of all meters by name; a meter that computes a dict gives one per entry, a matrix none."""
        return scalars(self.meters)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return the 95 % intervals of the meters that have one."""
        intervals = {name: meter.interval() for name, meter in self.meters.items() if hasattr(meter, "interval")}
        return {name: interval for name, interval in intervals.items() if interval is not None}

    # ---- as a program --------------------------------------------------------------------------------------------
    @classmethod
    def main(cls, argv: list[str] | None = None) -> None:
        """Evaluate a checkpoint from the command line; exit with status 2 on an error that the user can mend."""
        launch(cls, argv, cls.run_test)

    @classmethod
    def parse_options(cls, argv: list[str] | None = None) -> Namespace:
        """Resolve the options: those of the checkpoint, then --config files, then the command line; later ones win."""
        return parse_test_options(cls, argv)

    @classmethod
    def run_test(cls, opt: Namespace) -> "EvaluatorBase":
        """Evaluate a checkpoint on the part `opt.split` of the data, log and save the results; return the evaluator."""
        from engine.checkpoints.restore import check_parts  # here, as training needs it only to resume

        # ---- load
        state = load_checkpoint(opt.model_path, tensors_of=("networks", "averaging"))  # of a sharded one: only these
        check_parts(state, opt.model_path)  # that it has all that is read below
        seed_everything(opt.seed or 0, opt.deterministic)
        distributed, device, device_note = load("extras.evaluation.processes:join", "nproc")(opt)
        with distributed.main_first():  # else two processes would fill a cache at once
            datasets = load("extras.evaluation.moved_data:datasets_of", "data_dir")(cls, opt)
        opt = with_found(opt, datasets)
        evaluator = cls.from_state(opt, state, device, distributed)
        if opt.split == "all":
            datasets["all"] = load("extras.evaluation.all_parts:AllParts", "split")(datasets)
        dataset = datasets[opt.split]
        if not opt.allow_seen:
            refuse_seen(dataset, opt.split, state["groups"])  # hashes of the data that the weights have seen
        loader = build_eval_loader(opt, dataset, opt.split, cls.eval_batch_size(opt), device, distributed.share)

        # ---- evaluate
        open_output = load("extras.evaluation.processes:open_output", "save_path")
        evaluator.output_dir, evaluator.logger = open_output(opt, distributed)
        evaluator.logger.info("\n".join([device_note, *opt.resume_notes, *data_notes({opt.split: dataset}, loader)]))
        loader.bad.warn = evaluator.logger.warning
        evaluator.table = load("extras.evaluation.table:Table", "save_path")(evaluator.criterion)
        results = evaluator.evaluate(loader)

        # ---- report
        load("extras.evaluation.report:write_report", "save_path")(evaluator, dataset, loader, results, state)
        return evaluator

    @classmethod
    def from_state(
        cls, opt: Namespace, state: Mapping[str, Any], device: torch.device, distributed: Distributed | None = None
    ) -> "EvaluatorBase":
        """Build an evaluator with the networks and the loss of a checkpoint.

        Args:
            opt: the options.
            state: the content of the checkpoint `opt.model_path`.
            device: where to put the networks.
            distributed: the processes that share the batches; None for this one alone.

        Raises:
            UserError: the weights are those of other networks.
        """
        from engine.checkpoints.restore import set_state  # here, as training needs it only to resume

        networks = dict(cls.build_networks(opt))
        criterion = cls.build_criterion(opt)
        set_state(networks, weights_of(state, opt.use_average), f"The checkpoint {opt.model_path}")
        set_state(criterion, state.get("criterion"), f"The loss of the checkpoint {opt.model_path}")
        for name, network in networks.items():  # now, as lazy layers had no shape before
            networks[name] = place_network(network, device, opt.channels_last, opt.compile)
        criterion = criterion.to(device)
        return cls(opt, networks, criterion, device, Precision(opt.amp, device), distributed)
