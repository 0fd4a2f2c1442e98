"""The formats of an export: how a network is written to a file, and how the file predicts."""

import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.registry import load
from utils.errors import UserError

KEY = "plainloop"  # of the metadata in a file, as JSON
SCALE = ("input_mean", "input_std")  # where --pretrained looks for the normalization
AXES = ("batch", "height", "width")
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": (), "safetensors": ("safetensors",)}
Run = Callable[[Tensor], Tensor]


def require(packages: Sequence[str], option: str) -> None:
    """Raise UserError when one of the packages that an option needs is missing."""
    missing = []
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        names = " ".join(missing)
        raise UserError(f"{option} needs {names.replace(' ', ' and ')}, which is missing: pip install {names}")


def dynamic_axes(divisor: int | None, shape: Sequence[int], most: int) -> dict[int, Any]:
    """Return which axes of an input may have other sizes: the first; with a divisor also height and width.

    Args:
        divisor: of height and width; None where they are fixed.
        shape: of an input.
        most: the largest height and width, as a multiple of the divisor.
    """
    from torch.export import Dim

    axes: dict[int, Any] = {0: Dim("batch", min=1)}
    if divisor is not None:
        for axis, name in zip((len(shape) - 2, len(shape) - 1), AXES[1:], strict=True):
            size = Dim(f"{name}_parts", min=2, max=most)
            axes[axis] = divisor * size if divisor > 1 else size
    return axes


def to_program(network: nn.Module, example: Tensor, axes: dict[int, Any]) -> Any:
    """Return a network as a program of `torch.export`, or raise a UserError with the reason in one line."""
    try:
        with quiet():
            return torch.export.export(network, (example,), dynamic_shapes=(axes,))
    except Exception as error:  # of many types, whatever the network does that cannot be traced
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"torch.export cannot trace this network: {type(error).__name__}: {reason}") from error


class quiet:
    """Keep warnings and messages of the exporters off the terminal: they are for their authors."""

    def __enter__(self) -> None:
        self.warnings = warnings.catch_warnings(action="ignore")
        self.streams = [redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())]
        self.level = logging.root.manager.disable
        logging.disable(logging.ERROR)
        self.warnings.__enter__()
        for stream in self.streams:
            stream.__enter__()

    def __exit__(self, *failure: Any) -> None:
        for stream in reversed(self.streams):
            stream.__exit__(*failure)
        self.warnings.__exit__(*failure)
        logging.disable(self.level)


# ---- write: each writes a file, and returns the function that it computes --------------------------------------------
def write_onnx(program: Any, path: Path, metadata: Mapping[str, Any]) -> Run:
    """Write an ONNX file with named axes."""
    import onnxruntime

    first, last = metadata["input"]["name"], metadata["output"]["name"]
    with quiet():
        made = torch.onnx.export(program, (), dynamo=True, input_names=[first], output_names=[last], verbose=False)
    graph = made.model.graph
    for value in (*graph.inputs, *graph.outputs):
        names = (AXES[0], *(None,) * (len(value.shape) - 3), *AXES[1:])
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int):
                value.shape[axis] = names[axis]
    made.model.metadata_props[KEY] = json.dumps(metadata)
    made.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([last], {first: images.numpy()})[0])


def write_pt2(program: Any, path: Path, metadata: Mapping[str, Any]) -> Run:
    """Write a program of torch.export."""
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={f"{KEY}.json": json.dumps(metadata)})
        path.write_bytes(buffer.getvalue())
        with open(path, "rb") as file:
            return torch.export.load(io.BytesIO(file.read())).module()


def write_safetensors(network: nn.Module, path: Path, metadata: Mapping[str, Any], new_network: Callable) -> Run:
    """Write the weights of a network, with tied ones written out; `--pretrained FILE` reads them."""
    from safetensors.torch import save_file

    weights = {name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()}
    texts = {"format": "pt", KEY: json.dumps(metadata)}
    texts |= {name: json.dumps(metadata[name]) for name in SCALE if name in metadata}
    save_file(weights, str(path), metadata=texts)
    other = new_network()
    other.load_state_dict(load("extras.weights_from:read_weights", "to")(path))
    return other.eval()
