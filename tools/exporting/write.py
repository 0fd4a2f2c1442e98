"""Export a network: write the file, compare it with the network, and give it its name."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from engine.registry import error_line, load
from eval import EvaluatorBase
from tools.exporting.formats import (
    PACKAGES,
    SCALE,
    Run,
    dynamic_axes,
    require,
    to_program,
    write_onnx,
    write_pt2,
    write_safetensors,
)
from tools.prediction.opening import open_evaluator
from tools.prediction.predictor import class_names
from utils.errors import UserError

TOLERANCE = 1e-4  # of the largest output, which counts as 1 at least
NUM_REAL = 16  # samples that are compared
MOST_MULTIPLE = 512  # of the divisor: the largest height and width
ACTIVATIONS = {"classification": "softmax", "segmentation": "softmax", "table": "softmax"}


def export(opt: Namespace, flags: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """Export the network of a checkpoint, print how near the file is to it, and return the file and its metadata.

    Args:
        opt: the options of the program, see `tools.export.make_parser`.
        flags: those that change the options of the checkpoint.

    Raises:
        UserError: a package is missing, the network cannot be exported, or the file computes something else.
    """
    require(PACKAGES[opt.to], f"--to {opt.to}")
    evaluator, checkpoint = open_evaluator(opt.run, opt.task, flags, opt.use_average, "cpu")
    path = Path(opt.output) if opt.output else checkpoint.with_suffix(f".{opt.to}")
    if path.suffix != f".{opt.to}":
        raise UserError(f"--output {path}: the name of a file of --to {opt.to} ends in .{opt.to}")
    if path.exists():
        raise UserError(f"{path} exists, and nothing is overwritten: remove it, or give another --output FILE.")
    network = only_network(evaluator)
    real, note = real_inputs(evaluator, checkpoint, flags)
    example = random_inputs(evaluator, real, 2)
    divisor = getattr(network, "divisor", None) if evaluator.task == "segmentation" else None
    metadata = describe(evaluator, opt, example, divisor)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")  # with the suffix that readers look at
    try:
        with torch.no_grad():
            run = write(opt.to, evaluator, example, divisor, temporary, metadata)
            compare(run, network, random_inputs(evaluator, real, 1), "random input")
            compare(run, network, random_inputs(evaluator, real, 3, divisor), "random input")
            if real is not None:
                compare(run, network, real, note)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from None
    finally:
        temporary.unlink(missing_ok=True)
    if real is None:
        print(f"Compared with random input only: {note}")
    return path, metadata


def only_network(evaluator: EvaluatorBase) -> nn.Module:
    """Return the network of a task, on the CPU in eval mode."""
    if len(evaluator.networks) != 1:
        names = ", ".join(evaluator.networks)
        raise UserError(f"This task has {len(evaluator.networks)} networks ({names}), and one is exported.")
    return evaluator.model.eval()


def write(
    kind: str, evaluator: EvaluatorBase, example: Tensor, divisor: int | None, path: Path, metadata: dict[str, Any]
) -> Run:
    """Write a network to a file of a kind, and return the function that the file computes."""
    if kind == "safetensors":

        def new_network() -> nn.Module:
            return next(iter(evaluator.build_networks(evaluator.opt).values()))

        return write_safetensors(evaluator.model, path, metadata, new_network)
    program = to_program(evaluator.model, example, dynamic_axes(divisor, example.shape, MOST_MULTIPLE))
    return (write_onnx if kind == "onnx" else write_pt2)(program, path, metadata)


# ---- inputs ----------------------------------------------------------------------------------------------------------
def random_inputs(evaluator: EvaluatorBase, real: Tensor | None, count: int, divisor: int | None = None) -> Tensor:
    """Return random inputs, (count, ...), in [0, 1]; whole numbers, such as those of words, as far as real ones go.

    They have the shape of the images that the options tell, or of real inputs.

    Args:
        evaluator: of the task.
        real: real inputs, or None.
        count: how many.
        divisor: make images that are larger by this.
    """
    shape = list(real.shape[1:]) if real is not None else None
    side = load("extras.image_input:side_of", "image_size")(evaluator.opt)
    if side is not None:  # real images may be of their own size
        shape = [evaluator.opt.n_channels, side, side]
    if shape is None:
        raise UserError("Nothing says the shape of an input: give --image_size, or the options of the data.")
    if evaluator.task == "segmentation" and (step := getattr(evaluator.model, "divisor", 1)):
        shape[-2:] = [max(2, -(-size // step)) * step for size in shape[-2:]]
    if divisor is not None:
        shape[-1] += divisor
    generator = torch.Generator().manual_seed(count)
    if real is not None and not real.is_floating_point():
        return torch.randint(int(real.max()) + 1, (count, *shape), generator=generator, dtype=real.dtype)
    return torch.rand(count, *shape, generator=generator)


def real_inputs(evaluator: EvaluatorBase, checkpoint: Path, flags: Sequence[str]) -> tuple[Tensor | None, str]:
    """Return inputs of the test part of the data and what they are; or None and why there are none."""
    task = type(evaluator)
    try:
        opt = task.parse_options(["--model_path", str(checkpoint), *flags])
        dataset = task.build_datasets(opt)["test"]
        samples = [dataset[index] for index in range(min(NUM_REAL, len(dataset)))]
        inputs = [sample[0] if isinstance(sample, list | tuple) else sample for sample in samples]
        alike = [one for one in inputs if one.shape == inputs[0].shape]
        return cropped(evaluator, default_collate(alike)), f"{len(alike)} samples of the test part"
    except UserError as error:
        return None, " ".join(str(error).split())
    except SystemExit:
        return None, "the options of its data are not known here."
    except Exception as error:  # own data may raise anything
        return None, error_line(error)


def cropped(evaluator: EvaluatorBase, images: Tensor) -> Tensor:
    """Return images whose sides are what the network divides: an exported one does not pad."""
    step = getattr(evaluator.model, "divisor", 1) if evaluator.task == "segmentation" else 1
    if images.ndim != 4 or step == 1:
        return images
    height, width = (size // step * step for size in images.shape[-2:])
    return images[..., :height, :width]


# ---- compare ---------------------------------------------------------------------------------------------------------
def compare(run: Run, network: nn.Module, inputs: Tensor, what: str) -> None:
    """Print the largest difference between a file and a network; UserError when it is above the tolerance."""
    with torch.no_grad():
        expected, found = network(inputs), run(inputs)
    if not isinstance(expected, Tensor):
        raise UserError(f"The network returns {type(expected).__name__}, and one that returns a tensor is exported.")
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    difference = float((found - expected).abs().max())
    shape = " x ".join(map(str, inputs.shape))
    text = f"{what}, {shape}: largest difference {difference:.1e} (allowed: {allowed:.1e})"
    if not difference <= allowed:  # also when it is not a number
        raise UserError(f"The file does not compute what the network does. {text}")
    print(text)


# ---- metadata --------------------------------------------------------------------------------------------------------
def describe(evaluator: EvaluatorBase, opt: Namespace, example: Tensor, divisor: int | None) -> dict[str, Any]:
    """Return what a program must know to use the file: how an input is made, and what the outputs mean."""
    of_run = evaluator.opt
    scale = {name: getattr(of_run, name) for name in SCALE if getattr(of_run, name, None)}
    is_image = example.ndim == 4
    columns = getattr(of_run, "columns", None) or {}  # of a table
    is_number = columns.get("target") is not None
    activation = None if is_number else ACTIVATIONS.get(str(evaluator.task))
    if activation and of_run.n_classes == 1:
        activation = "sigmoid"
    metadata: dict[str, Any] = {
        "task": evaluator.task,
        "model_type": of_run.model_type,
        "model_args": of_run.model_args,
        "checkpoint": Path(of_run.model_path).name,
        "input": {
            "name": "images" if is_image else "inputs",
            "shape": [None, *example.shape[1:]],
            "dtype": str(example.dtype).removeprefix("torch."),
        },
        "output": {  # the activation turns outputs into probabilities
            "name": "logits" if activation else "outputs",
            "activation": activation,
        },
    }
    if is_image:
        metadata["input"] |= {
            "layout": "NCHW",
            "range": [0, 1],
            "colour": {1: "grey", 3: "RGB"}.get(of_run.n_channels),
            "multiple_of": divisor,
            "is_normalized_inside": bool(scale) and opt.to != "safetensors",
        }
        metadata |= scale
        metadata["input"]["resize"] = None if getattr(of_run, "mode", None) == "padding" else example.shape[-1]
    if divisor is not None:
        metadata["input"]["shape"][-2:] = [None, None]
    if columns:
        metadata["columns"] = columns["inputs"]  # in the order of the inputs
        metadata["target"] = {"name": of_run.target} | (columns["target"] or {})
        if is_number:
            metadata["output"]["is_in_unit_of_target"] = opt.to != "safetensors"
    if evaluator.task in ACTIVATIONS and not is_number:
        metadata["class_names"] = class_names(evaluator)
    if getattr(of_run, "mask_values", None):
        metadata["mask_values"] = of_run.mask_values
    return metadata
