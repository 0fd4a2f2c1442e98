"""The checks of tools/doctor.py. A check returns a description when all is well, or raises `Finding`."""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.loader import EvalLoader
from engine.checkpoints.file import FORMAT, load_checkpoint, save_checkpoint
from loss.classification_loss import CrossEntropyLoss
from tools.digest import NOT_THE_RUN, digest, digests
from tools.find_lr import loss_of
from tools.lr_finder import rate_of, set_rate
from tools.replay import shortened
from tools.snapshot import Snapshot
from tools.task import first_update, try_step
from utils.batch import iterate_tensors, move_to
from utils.seed import random_state

NEAR = (0.7, 1.5)  # a first loss between these multiples of the expected one passes
FEW_SAMPLES, MOST_UPDATES, MOST_SECONDS = 4, 300, 60.0  # limits of the attempt to overfit
LEARNED, MUCH_LEARNED = 0.5, 0.2  # multiples of the first loss: enough to pass; enough to stop
RECENT = 10  # updates whose mean loss counts
NUM_ROWS = 8  # samples of the check for leaks
NUM_COMPARED = 3  # updates that are loaded twice
MIXING = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # differ with the micro-batch by nature
PADDED = " The samples are padded to the longest of their batch: does the network run over the padding?"
SAME_LOSS = {"no": 1e-4, "bf16": 0.05, "fp16": 0.02}  # relative difference that is rounding, by --amp


class Finding(Exception):
    """A fault, with a hint at its cause."""


class CannotTell(Exception):
    """The reason why a check says nothing about this task."""


class Seen(Exception):
    """Ends a step early: the call that a check waits for was made."""


@dataclass
class Patient:
    """A trainer under examination.

    Attributes:
        trainer: the task's.
        update: the first of the epoch.
        snapshot: the state of the trainer, restored after each check.
        with_gradient: the ids of parameters that had a non-zero gradient in some update.
        none_yet: no update was made.
    """

    trainer: Any
    update: Any
    snapshot: Snapshot
    with_gradient: set[int] = field(default_factory=set)
    none_yet: bool = True

    def step(self, update: Any) -> float:
        """Make a step and return its loss; NaN when it was not finite."""
        values = try_step(self.trainer, update)
        self.none_yet = False
        for _, parameter in self.parameters():
            if parameter.grad is not None and bool(parameter.grad.count_nonzero()):
                self.with_gradient.add(id(parameter))
        return math.nan if values is None else loss_of(values)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trainable parameters with their names."""
        modules = {**self.trainer.networks, "criterion": self.trainer.criterion}
        for owner, module in modules.items():
            yield from ((f"{owner}.{name}", p) for name, p in module.named_parameters() if p.requires_grad)

    def few(self, count: int, at_once: int | None = None) -> Any:
        """Return the update with its first few samples only, in micro-batches of `at_once`."""
        return first_update(self.trainer.train_loader, min(count, self.update.num_samples), at_once)

    def watch(self, module: nn.Module, stop: bool) -> tuple[Any, Any, Any]:
        """Return (args, kwargs, output) of the first call of a module in a step; with `stop`, output is None.

        Raises:
            CannotTell: the step does not call it.
        """
        seen: list[tuple] = []

        def before(_: nn.Module, args: tuple, kwargs: dict) -> None:
            if stop:
                seen.append((args, kwargs, None))
                raise Seen

        def after(_: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            seen.append((args, kwargs, output))

        handles = [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]
        try:
            with contextlib.suppress(Seen):
                try_step(self.trainer, self.few(NUM_ROWS))
        finally:
            for handle in handles:
                handle.remove()
            self.trainer.guard.check_earlier(wait=True)
        if not seen:
            raise CannotTell("the step does not call it as a module")
        return seen[0]


# ---- the checks -----------------------------------------------------------------------------------------------------
def check_device(patient: Patient) -> str:
    """Check that all tensors of a batch and of the networks move to the device."""
    trainer = patient.trainer
    moved = move_to(patient.update.micro_batches[0], trainer.device)
    for place, value in leaves_of(moved):
        if isinstance(value, Tensor):
            if value.device.type != trainer.device.type:
                raise Finding(f"the batch's {place} stays on {value.device}: its `to` must return what it has moved.")
        elif isinstance(value, np.ndarray) or any(isinstance(v, Tensor) for v in vars_of(value).values()):
            raise Finding(
                f"the batch's {place} is of type {type(value).__name__}, which stays where it is. Let the data set "
                f"give tensors, in tuples, lists or dictionaries, or an object with a method `to`."
            )
    for owner, network in {**trainer.networks, "criterion": trainer.criterion}.items():
        for name, module in network.named_modules():
            for attribute, value in vars(module).items():
                if isinstance(value, Tensor) and not value.requires_grad and value.grad_fn is None:
                    raise Finding(
                        f"{'.'.join(filter(None, (owner, name, attribute)))} is a plain attribute: it is neither moved "
                        f"to a GPU nor saved. Use register_buffer."
                    )
    return f"a batch moves to {trainer.device}, and nothing of the networks is left out"


def check_labels(patient: Patient) -> str:
    """Check the arguments of the criterion: shapes, types, labels from 0 to C - 1."""
    args, _, _ = patient.watch(patient.trainer.criterion, stop=True)
    if len(args) < 2 or not isinstance(args[1], Tensor):
        raise CannotTell("the criterion does not get (outputs, targets)")
    outputs, targets = args[:2]
    outputs = [outputs] if isinstance(outputs, Tensor) else list(iterate_tensors(outputs))
    for output in outputs:
        if targets.is_floating_point():
            if output.shape != targets.shape:
                raise Finding(f"outputs {tuple(output.shape)} and targets {tuple(targets.shape)} differ in shape.")
            continue
        if not output.is_floating_point() or output.ndim < 2:
            raise Finding(f"outputs of {output.dtype} with shape {tuple(output.shape)} are no logits, (N, C, ...).")
        if output.shape[:1] + output.shape[2:] != targets.shape:
            raise Finding(
                f"logits {tuple(output.shape)} need targets {tuple(output.shape[:1] + output.shape[2:])}, "
                f"which are {tuple(targets.shape)}."
            )
        ignored = getattr(patient.trainer.criterion, "ignore_index", None)
        counted = targets if ignored is None else targets[targets != ignored]
        num_classes = max(output.shape[1], 2)  # one logit tells two classes apart
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < num_classes:
            raise Finding(
                f"labels go from {int(counted.min())} to {int(counted.max())}, but with logits of "
                f"{output.shape[1]} classes they must be from 0 to {num_classes - 1}."
            )
    return f"outputs {', '.join(str(tuple(output.shape)) for output in outputs)}, targets {tuple(targets.shape)}"


def check_first_loss(patient: Patient) -> str:
    """Check that the first loss is that of a network that has learned nothing."""
    expected = expected_first_loss(patient)
    loss = patient.step(patient.update)
    text = f"the first loss is {loss:.4g}, expected {expected:.4g}"
    if not NEAR[0] * expected <= loss <= NEAR[1] * expected:
        raise Finding(f"{text}: are the inputs scaled, is the loss a mean, does it get logits and not probabilities?")
    return text


def expected_first_loss(patient: Patient) -> float:
    """Return `expected_first_loss` of the trainer or its evaluator, a number or a method; else ln C of logits."""
    trainer = patient.trainer
    for owner in (trainer, trainer.evaluator):
        if hasattr(owner, "expected_first_loss"):
            expected = owner.expected_first_loss
            expected = expected() if callable(expected) else expected
            if expected is None:
                raise CannotTell("the task expects no value")
            return float(expected)
    if trainer.opt.pretrained:
        raise CannotTell("the weights are pretrained")
    if len(trainer.optimizers) > 1:
        raise CannotTell("no expected value is known of several losses; see expected_first_loss")
    if isinstance(trainer.criterion, nn.BCEWithLogitsLoss):
        return math.log(2)
    if not isinstance(trainer.criterion, nn.CrossEntropyLoss | CrossEntropyLoss):
        raise CannotTell(f"no expected value is known of {type(trainer.criterion).__name__}; see expected_first_loss")
    args, _, _ = patient.watch(trainer.criterion, stop=True)
    patient.snapshot.put_back()
    return math.log(args[0].shape[1])


def check_micro_batches(patient: Patient) -> str:
    """Check that the loss and the gradient of an update do not depend on --micro_batch_size."""
    num_samples = patient.update.num_local
    if num_samples < 2:
        raise CannotTell("an update has a single sample")
    half = max(1, patient.trainer.micro_batch_size // 2)
    few = min(num_samples, NUM_ROWS)
    for count, one, other in ((few, few, 1), (num_samples, patient.trainer.micro_batch_size, half)):
        compare_pieces(patient, count, one, other)
    return f"an update of {num_samples} in micro-batches of other sizes, down to 1, has the same loss and gradient"


def compare_pieces(patient: Patient, count: int, *sizes: int) -> None:
    """Make a step on `count` samples in micro-batches of two sizes; Finding when they differ."""
    trainer = patient.trainer
    modules = [module for network in trainer.networks.values() for module in network.modules()]
    before = random_state()
    updates = [patient.few(count, at_once) for at_once in sizes]
    values = []
    for update in updates:
        for module in modules:
            if isinstance(module, MIXING):
                module.eval()
        values.append(try_step(trainer, update) or {})
        if digest(random_state()) != digest(before):
            raise CannotTell("the step draws random numbers, other ones for each micro-batch")
        patient.snapshot.put_back()
    if name := first_difference(*values, SAME_LOSS[trainer.opt.amp]):
        hint = PADDED if len({form_of(batch) for update in updates for batch in update.micro_batches}) > 1 else ""
        raise Finding(
            f"{name} of {count} samples is {values[0][name]:.5g} with micro-batches of {sizes[0]}, and "
            f"{values[1].get(name, math.nan):.5g} with {sizes[1]}: compute_loss must return the mean over the samples "
            f"of a batch, not a sum, and not a quotient of sums over the batch. If it is a mean over something else, "
            f"loss_counter of the evaluator says so.{hint}"
        )


def first_difference(one: dict[str, float], other: dict[str, float], tolerance: float) -> str | None:
    """Return the name of the first value that differs by more than rounding; None if none does. NaN equals NaN."""
    for name, value in one.items():
        found = other.get(name, math.inf)
        are_both_nan = math.isnan(value) and math.isnan(found)
        if not are_both_nan and not math.isclose(value, found, rel_tol=tolerance, abs_tol=1e-6):
            return name
    return None


def form_of(batch: Any) -> tuple:
    """Return the shapes of the tensors of a batch, without the number of samples."""
    return tuple(tuple(tensor.shape[1:]) for tensor in iterate_tensors(batch))


def check_evaluation(patient: Patient) -> str:
    """Check that the results of the validation do not depend on --eval_batch_size."""
    trainer = patient.trainer
    num_samples = min(NUM_ROWS, trainer.val_loader.num_samples)
    if num_samples < 2:
        raise CannotTell("there are fewer than two samples to validate on")
    dataset = trainer.val_loader.dataset
    at_once = EvalLoader(dataset, num_samples, max_batches=1)
    one_by_one = EvalLoader(dataset, 1, max_batches=num_samples)
    results = [trainer.evaluator.evaluate(loader) for loader in (at_once, one_by_one)]
    if name := first_difference(*results, SAME_LOSS[trainer.opt.amp]):
        hint = PADDED if len({form_of(batch) for loader in (at_once, one_by_one) for batch in loader}) > 1 else ""
        raise Finding(
            f"val/{name} of {num_samples} samples is {results[0][name]:.5g} at once, and {results[1][name]:.5g} one by "
            f"one: a meter must count its samples, such as AvgMeter.update(loss, n=self.loss_count).{hint}"
        )
    return f"{num_samples} samples at once and one by one have the same results"


def check_overfit(patient: Patient) -> str:
    """Check that the network can overfit a few samples."""
    few = patient.few(FEW_SAMPLES)
    started = time.monotonic()
    for optimizer in patient.trainer.optimizers.values():
        for group in optimizer.param_groups:
            set_rate(group, rate_of(group))  # without warm-up
    losses = [patient.step(few)]
    first = last = losses[0]
    if len(patient.trainer.optimizers) > 1:
        raise CannotTell("losses of several optimizers against each other need not fall")
    while len(losses) < MOST_UPDATES and last > first - (1 - MUCH_LEARNED) * abs(first):
        if time.monotonic() - started > MOST_SECONDS:
            break
        losses.append(patient.step(few))
        last = sum(losses[-RECENT:]) / len(losses[-RECENT:])
    text = f"on {few.num_samples} samples the loss falls from {first:.4g} to {last:.4g} in {len(losses)} updates"
    if not last <= first - (1 - LEARNED) * abs(first):
        if len(losses) < MOST_UPDATES and math.isfinite(last):
            raise CannotTell(f"too slow: {text}")
        raise Finding(f"{text}: does the optimizer step these weights, do labels belong to inputs? See tools.find_lr.")
    return text


def check_gradients(patient: Patient) -> str:
    """Check that each trainable parameter has an optimizer and, in any update of the checks so far, a gradient."""
    if patient.none_yet:
        patient.step(patient.update)
    stepped = {id(p) for o in patient.trainer.optimizers.values() for group in o.param_groups for p in group["params"]}
    parameters = list(patient.parameters())
    if forgotten := [name for name, p in parameters if id(p) not in stepped]:
        raise Finding(f"no optimizer has {shortened(forgotten)}.")
    if without := [name for name, p in parameters if id(p) not in patient.with_gradient]:
        raise Finding(
            f"the gradient is none or 0 in all updates for {shortened(without)}: is the layer used, is there a "
            f"detach(), a no_grad() or a dead ReLU behind it?"
        )
    return f"all {len(parameters)} trainable parameters have one"


def check_leaks(patient: Patient) -> str:
    """Check that each output depends on its own sample only; in eval mode, since batch norm mixes samples."""
    checked = []
    for name, network in patient.trainer.networks.items():
        try:
            args, kwargs, _ = patient.watch(network, stop=True)
        except CannotTell:
            continue
        place = next((i for i, value in enumerate(args) if isinstance(value, Tensor) and value.ndim), None)
        if place is None:
            continue
        network.eval()

        def predict(inputs: Tensor, network=network, args=args, kwargs=kwargs, place=place) -> list[Tensor]:
            with patient.trainer.precision.autocast():
                outputs = network(*args[:place], inputs, *args[place + 1 :], **kwargs)
            return [output for output in iterate_tensors(outputs) if output.ndim and output.is_floating_point()]

        leak = find_leak(predict, args[place].detach())
        if leak:
            raise Finding(f"{name!r}: {leak}. Look for view, reshape, flatten or mean over the batch's dimension.")
        checked.append(name)
    if not checked:
        raise CannotTell("the step calls no network as a module with a tensor of samples")
    return f"each output of {', '.join(checked)} depends on its own sample"


def find_leak(predict: Callable[[Tensor], list[Tensor]], inputs: Tensor) -> str:
    """Name a sample that changes the output of another one; "" if there is none.

    Floating-point inputs are tested by the gradient, others by exchanging one sample.
    """
    count = len(inputs)
    generator = torch.Generator().manual_seed(0)
    if count < 2:
        raise CannotTell("an update has a single sample")
    if not inputs.is_floating_point():
        with torch.no_grad():
            before, after = predict(inputs), predict(torch.cat([inputs[1:2], inputs[1:]]))
        for old, new in zip(before, after, strict=True):
            if not torch.allclose(old[1:], new[1:], rtol=1e-4, atol=1e-6):
                return "another sample 0 changes the outputs of the others"
        return ""
    inputs = inputs.clone().requires_grad_()
    for output in predict(inputs):
        if len(output) != count:
            return f"{len(output)} rows come out of {count} samples"
        # Weighted at random: the sum over a softmax, say, would not change whatever leaks.
        weighted = output.float() * torch.randn(output.shape[1:], generator=generator).to(output.device)
        for row in range(count):
            (gradient,) = torch.autograd.grad(weighted[row].sum(), inputs, retain_graph=True, allow_unused=True)
            if gradient is None:
                continue
            reached = gradient.flatten(1).ne(0).any(dim=1).tolist()  # NaN is not 0, either
            if others := [other for other in range(count) if reached[other] and other != row]:
                return f"sample {others[0]} leaks into the output of sample {row}"
    return ""


def check_loader(patient: Patient) -> str:
    """Check that the same position gives the same data, from the beginning of the epoch and from within it."""
    loader = patient.trainer.train_loader
    first, second = (list(islice(loader.updates(0), NUM_COMPARED)) for _ in range(2))
    later = list(islice(loader.updates(0, first[0].num_samples), len(first) - 1))
    for asked, updates in (("asked for again", second), ("asked for from its middle on", first[:1] + later)):
        for number, (a, b) in enumerate(zip(first, updates, strict=True)):
            if a.indices != b.indices:
                raise Finding(
                    f"the epoch {asked} has other samples in update {number + 1}: is its order a function of "
                    f"(seed, epoch) alone?"
                )
            pairs = zip(iterate_tensors(a.micro_batches), iterate_tensors(b.micro_batches), strict=True)
            if not all(x.shape == y.shape and torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in pairs):
                raise Finding(
                    f"the epoch {asked} has the same samples in update {number + 1}, but with other content: does the "
                    f"data set draw at random and say is_random = False, or keep a state?"
                )
    return f"the first {len(first)} updates come twice alike, and from within the epoch"


def check_checkpoint(patient: Patient) -> str:
    """Check that a checkpoint restores the state, and that the next update is the same with it and without."""
    trainer = patient.trainer
    for _ in range(2):  # a fresh optimizer has no state to save
        patient.step(patient.update)
    state = trainer.state_dict()
    saved = digests(state)
    with tempfile.TemporaryDirectory() as directory:
        save_checkpoint({"format": FORMAT, **state}, path := Path(directory) / "doctor_ckpt.pth")
        loaded = load_checkpoint(path)
    loss = patient.step(patient.update)
    ahead = digests(trainer.state_dict())
    trainer.load_state_dict(loaded)
    if differing := differing_parts(saved, digests(trainer.state_dict())):
        raise Finding(f"what is loaded is not what was saved: {', '.join(differing)}. Look at its load_state_dict.")
    again = patient.step(patient.update)
    if differing := differing_parts(ahead, digests(trainer.state_dict())):
        raise Finding(
            f"the update after it differs ({loss:.6g}, again {again:.6g}; {', '.join(differing)}): something that "
            f"decides it is in no state_dict, or comes from the clock or the system. tools.verify_resume tells more."
        )
    return "saved and loaded, the state is the same to the bit, and so is the update that follows"


# ---- helpers ---------------------------------------------------------------------------------------------------------
def leaves_of(batch: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested tuples, lists and dictionaries, each with its place."""
    if isinstance(batch, dict):
        for name, value in batch.items():
            yield from leaves_of(value, f"{place}[{name!r}]")
    elif isinstance(batch, tuple | list):
        for number, value in enumerate(batch):
            yield from leaves_of(value, f"{place}[{number}]")
    else:
        yield place or "content", batch


def vars_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that `move_to` cannot move."""
    return {} if hasattr(value, "to") else getattr(value, "__dict__", {})


def differing_parts(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the names of the parts whose digests differ, without callbacks and times."""
    return [name for name in one if one[name] != other.get(name) and name not in (*NOT_THE_RUN, "run")]


CHECKS: dict[str, Callable[[Patient], str]] = {  # later checks rely on earlier ones
    "data on the device": check_device, "labels and shapes": check_labels, "loader": check_loader,
    "first loss": check_first_loss, "micro-batches": check_micro_batches, "overfits": check_overfit,
    "gradients": check_gradients, "samples apart": check_leaks, "evaluation": check_evaluation,
    "checkpoint": check_checkpoint,
}  # fmt: skip
# Wrong labels would crash these, and on a GPU no later check could run.
NEED_LABELS = ("first loss", "micro-batches", "overfits", "gradients", "evaluation", "checkpoint")
