"""Repeat a run from its last checkpoint to the update that was not finite, and name the layer that it came from.

    python -m tools.replay Results/Vanilla/1663932921
    python -m tools.replay Results/Vanilla/1663932921 examples/own_task.py --gpu_devices cpu

A resume is exact, so the update goes wrong again: the same weights, data and random numbers. The run directory is not
touched. RUN may be a checkpoint instead, to begin earlier. Without a program, that of the run is taken.
"""

import json
import shlex
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from callbacks.callback import Callback
from data.sampler import sample_names
from engine.options.parser import OptionParser, file_path, run_main
from tools.task import read_command, run_tool, trial
from utils.batch import iterate_tensors
from utils.errors import DivergedError, UserError

SHOWN = 10  # names in a message
ANOMALY = "returned nan values"  # in the message of torch's anomaly detection


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(prog="python -m tools.replay", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=file_path, metavar="RUN", help="a run directory, or a checkpoint to begin at")
    own, task, options = read_command(parser, argv, lambda own: program_of(Path(own.run)))
    watch = Watch()
    with tempfile.TemporaryDirectory() as directory:

        def change(opt: Namespace) -> dict[str, Any]:
            in_one_process = {"nproc": 1, "parallel": "none", "compile": False}  # compiled modules call no hooks
            return {"output_dir": directory, "nan_policy": "stop", **in_one_process}

        examine = partial(find_bad_update, watch, task.train)
        run_tool(trial(task, examine, change, [watch]), ["--resume", own.run, *options])


def program_of(run: Path) -> str:
    """Return the program of a run, if it stands in the current directory: a run directory may be from a stranger.

    Raises:
        UserError: it is not there, or unknown.
    """
    record = (run if run.is_dir() else run.parent) / "provenance.json"
    try:
        program = shlex.split(json.loads(record.read_text(encoding="utf-8"))["command"])[1]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        program = ""
    if not program.endswith(".py") or program != Path(program).name or not Path(program).exists():
        raise UserError(f"Name the task's program: python -m tools.replay {run} TASK")
    return program


def find_bad_update(watch: "Watch", train: Callable, trainer: Any) -> None:
    """Train until an update is not finite, and print its origin.

    Raises:
        DivergedError: the update was found.
    """
    say = partial(print, flush=True)
    say(f"Repeating the run after update {trainer.progress.update:,}, in epoch {trainer.progress.epoch + 1}.")
    trainer.train_step = partial(step_under_detection, trainer.train_step)
    try:
        with torch.autograd.set_detect_anomaly(True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Anomaly Detection has been enabled")
            train(trainer)
    except DivergedError as error:
        for line in watch.findings(trainer):
            say(line)
        raise DivergedError(f"the update went wrong again: {' '.join(str(error).split())}") from None
    say("All updates to the end of the run were finite: the fault does not repeat.")


def step_under_detection(train_step: Callable, update: Any) -> dict[str, Tensor]:
    """Make a step, and raise a NaN that torch detects in the backward pass as DivergedError."""
    try:
        return train_step(update)
    except RuntimeError as error:
        if ANOMALY not in str(error):
            raise
        raise DivergedError(str(error).rstrip(".")) from None


class Watch(Callback):
    """Notes, in each update, the first layer whose output or gradient is not finite.

    Attributes:
        update: the data of the update under way.
        output: the first layer with a non-finite output, and its description; "" when all are finite.
        gradient: the same of the gradient that reaches a layer's output, in the order of the backward pass.
    """

    def __init__(self):
        self.update: Any = None
        self.output = ""
        self.gradient = ""

    def on_train_start(self, trainer) -> None:
        for owner, network in {**trainer.networks, "criterion": trainer.criterion}.items():
            for name, module in network.named_modules():
                full_name = f"{owner}.{name}" if name else owner
                module.register_forward_hook(partial(self.look_at_output, full_name))

    def on_update_start(self, trainer, update) -> None:
        self.update = update
        self.output = ""
        self.gradient = ""

    def on_update_end(self, trainer, values: Mapping[str, Any]) -> None:
        trainer.guard.check_earlier(wait=True)  # on a GPU it would report some updates later

    def look_at_output(self, name: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        layer = f"{name} ({type(module).__name__})"
        for tensor in iterate_tensors(output):
            if not tensor.is_floating_point():
                continue
            if not self.output and (count := num_bad(tensor)):
                are_good = not any(num_bad(value) for value in iterate_tensors(inputs))
                of_inputs = "its inputs are finite" if are_good else "so are its inputs"
                self.output = f"{layer}: {count:,} of {tensor.numel():,} values are not finite; {of_inputs}"
            if tensor.requires_grad:
                tensor.register_hook(partial(self.look_at_gradient, layer))

    def look_at_gradient(self, layer: str, gradient: Tensor) -> None:
        if not self.gradient and (count := num_bad(gradient)):
            self.gradient = f"{layer}: {count:,} of {gradient.numel():,} values are not finite"

    def findings(self, trainer: Any) -> Iterator[str]:
        """Yield lines about the update under way: its samples, its data, its layers and its gradients."""
        progress = trainer.progress
        yield f"Not finite: update {progress.update + 1:,}, in epoch {progress.epoch + 1}."
        names = sample_names(trainer.train_loader.dataset)
        yield f"Its {len(self.update.indices)} samples: {shortened([str(names[i]) for i in self.update.indices])}"
        for number, batch in enumerate(self.update.micro_batches, start=1):
            for place, tensor in enumerate(iterate_tensors(batch), start=1):
                bad = [str(row) for row in range(len(tensor)) if num_bad(tensor[row])] if tensor.ndim else []
                if bad:
                    yield f"Data: micro-batch {number}, tensor {place} is not finite in its samples {shortened(bad)}"
        yield f"First output: {self.output or 'the outputs of all layers are finite'}"
        yield f"First gradient: {self.gradient or 'those that reached the outputs of layers are finite'}"
        for name, network in trainer.networks.items():
            bad = [key for key, p in network.named_parameters() if p.grad is not None and num_bad(p.grad)]
            if bad:
                yield f"Parameters of {name!r} with a gradient that is not finite: {shortened(bad)}"


def num_bad(tensor: Tensor) -> int:
    """Count the values of a tensor that are infinite or not a number."""
    return int((~tensor.detach().isfinite()).sum())


def shortened(names: list[str]) -> str:
    """Join names for a message, at most `SHOWN` of them."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


if __name__ == "__main__":
    run_main(main)
