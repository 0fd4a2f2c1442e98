"""Predict inputs in batches, and images of a notebook."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import default_collate

from eval import EvaluatorBase
from tools.prediction.opening import open_evaluator
from utils.batch import iterate_tensors, move_to
from utils.errors import UserError, shown
from utils.image_file import image_size
from utils.meter import predicted_classes

KINDS = ("probabilities", "values")  # what a prediction is made of; the mean of two is one
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
ARRAYS = ("uint8", "uint16", "bool")  # the types of arrays that are images
BATCH_SIZE = 16  # of inputs whose evaluator names none


class Predictor:
    """Predicts with the networks of an evaluator.

    Args:
        evaluator: see `tools.prediction.opening.open_evaluator`.
        batch_size: inputs that go through the network at once; None for the evaluator's.
        tta: "flip" for the mean of what is predicted for an image and its mirror image, or "none".

    Attributes:
        classes: the names of the classes.
    """

    def __init__(self, evaluator: EvaluatorBase, batch_size: int | None = None, tta: str = "none"):
        if tta not in ("none", "flip"):
            raise UserError(f"tta {shown(tta)} is unknown: give none or flip.")
        self.evaluator = evaluator
        self.batch_size = batch_size or evaluator.eval_batch_size(evaluator.opt, BATCH_SIZE)
        self.tta = tta
        self.classes = class_names(evaluator)

    def __call__(self, images: Any) -> list[dict[str, Any]]:
        """Predict images, and return a dictionary for each.

        Args:
            images: one image or several: the path of a file, an image of Pillow, an array (H, W) or (H, W, 3) of uint8,
                or a tensor (C, H, W), floats in [0, 1] as the network takes it, or uint8; and a batch of these.

        Returns:
            With "probabilities" and, for a classification, "class" and "probability"; for a segmentation "mask", the
            class of each pixel, int64 (H, W), at the image's own size; for a regression "values".

        Raises:
            UserError: an image cannot be read, or what is predicted for it is not a number.
        """
        found: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as directory:
            samples = (sample for image in listed(images) for sample in self.samples_of(image, Path(directory)))
            for size, outputs in self.predict(samples):
                if not all_finite(outputs):
                    number = len(found) + 1
                    raise UserError(f"What the network predicts for input {number} is not a number: see its values.")
                found.append(self.described(outputs, size))
        return found

    def samples_of(self, image: Any, directory: Path) -> Iterator[tuple[tuple[int, int] | None, Any]]:
        """Yield the own size (height, width) and the input of an image; None for what is no image."""
        if isinstance(image, Tensor):
            yield tuple(image.shape[-2:]), as_input(image)
            return
        path = image_file(image, directory / "image.png")
        for _, inputs in self.evaluator.read_samples(path):
            yield own_size(path) if is_image(inputs) else None, inputs

    def described(self, outputs: dict[str, Tensor], size: tuple[int, int] | None) -> dict[str, Any]:
        """Return what was predicted for a sample in the form of `__call__`."""
        probabilities = outputs.get("probabilities")
        if probabilities is None:
            return outputs
        if probabilities.ndim == 3:
            return outputs | {"mask": mask_of(probabilities, size or probabilities.shape[-2:])}
        best = int(probabilities.argmax())
        return outputs | {"class": self.classes[best], "probability": float(probabilities[best])}

    def predict(self, samples: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        """Yield for each sample (key, input) its key and its outputs on the CPU, without the dimension of the batch.

        Inputs of one shape that follow each other are a batch.
        """
        keys: list[Any] = []
        inputs: list[Any] = []
        for key, one in samples:
            if inputs and (len(inputs) == self.batch_size or form_of(one) != form_of(inputs[0])):
                yield from zip(keys, self.predict_batch(inputs), strict=True)
                keys, inputs = [], []
            keys.append(key)
            inputs.append(one)
        if inputs:
            yield from zip(keys, self.predict_batch(inputs), strict=True)

    def predict_batch(self, inputs: Sequence[Any]) -> list[dict[str, Tensor]]:
        """Return the outputs for each of some inputs of one shape, on the CPU."""
        evaluator = self.evaluator
        batch = move_to(default_collate(list(inputs)), evaluator.device)
        try:
            with evaluator.inference(), evaluator.precision.autocast():
                outputs = checked(evaluator, evaluator.predict_step(batch), len(inputs))
                if self.tta == "flip":
                    outputs = with_mirrored(outputs, evaluator.predict_step(mirrored(batch)))
        except torch.OutOfMemoryError:
            raise UserError(f"The memory does not hold {len(inputs)} inputs: give a smaller --batch_size.") from None
        except NotImplementedError as error:
            raise UserError(f"This task does not predict files yet: {error}.") from None
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in iterate_tensors(batch))
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"The network does not take inputs of shape {shapes}: {reason}") from error
        whole = {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}
        return [{name: value[i].cpu() for name, value in whole.items()} for i in range(len(inputs))]


def load_predictor(
    run: str | Path,
    *,
    task: str | None = None,
    device: str = "0",
    batch_size: int | None = None,
    tta: str = "none",
    flags: Sequence[str] = (),
) -> Predictor:
    """Return a function that predicts images: ``load_predictor(run)(images)``, see `Predictor.__call__`.

    Args:
        run: a checkpoint, the directory of a run, or latest.
        task: the program of a task of one's own.
        device: the number of a GPU, or cpu.
        batch_size, tta: see `Predictor`.
        flags: options that change those of the checkpoint, as ["--mode", "padding"].
    """
    evaluator, _ = open_evaluator(run, task, flags, devices=device)
    return Predictor(evaluator, batch_size, tta)


def class_names(evaluator: EvaluatorBase) -> list[str]:
    """Return the names of the classes; beyond those that the data has named, their numbers."""
    names = list(getattr(evaluator, "classes", None) or ())
    num_classes = max(evaluator.opt.n_classes or 0, 2)
    return [*names, *map(str, range(len(names), num_classes))]


# ---- inputs ----------------------------------------------------------------------------------------------------------
def listed(images: Any) -> list[Any]:
    """Return one image, a list of images or a batch of them as a list."""
    if isinstance(images, Tensor | np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    return list(images) if isinstance(images, list | tuple) else [images]


def image_file(image: Any, place: Path) -> Path:
    """Return the file of an image; one in memory is written to `place`, so that it is read as any other."""
    if isinstance(image, str | Path):
        return Path(image)
    if isinstance(image, np.ndarray):
        image = image_of(image)
    if not isinstance(image, Image.Image):
        raise UserError(f"{type(image).__name__} is no image: give a path, an image of Pillow, an array or a tensor.")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip levels instead of scaling them
        levels = np.asarray(image)
        is_deep = image.mode != "F" and levels.size and levels.min() >= 0 and levels.max() < 1 << 16
        image = image_of(levels.astype(np.uint16) if is_deep else levels)
    image = image if image.mode in PNG_MODES else image.convert("RGB")
    image.info.pop("exif", None)
    image.save(place, compress_level=1)
    return place


def image_of(array: np.ndarray) -> Image.Image:
    """Return an array as an image; UserError for a type whose white is not known, or a shape of no image."""
    try:
        if array.dtype.name in ARRAYS:
            return Image.fromarray(array.astype(array.dtype.newbyteorder("=")))
    except (TypeError, ValueError):
        pass
    raise UserError(
        f"An array is no image as {array.dtype} {array.shape}: give {', '.join(ARRAYS)} (H, W), or uint8 (H, W, 3); "
        f"or values in [0, 1] as a tensor (C, H, W)."
    )


def as_input(image: Tensor) -> Tensor:
    """Return a tensor as float32 in [0, 1]; UserError for whole numbers whose white is not known."""
    if image.dtype == torch.uint8:
        return image.float() / 255
    if not (image.is_floating_point() or image.dtype == torch.bool):
        raise UserError(f"A tensor of {image.dtype} is no image: give uint8, or floating-point values in [0, 1].")
    return image.float()


def is_image(value: Any) -> bool:
    """Return whether an input is an image (C, H, W)."""
    return isinstance(value, Tensor) and value.ndim == 3


def own_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image file, upright."""
    width, height = image_size(path)
    return height, width


def form_of(value: Any) -> Any:
    """Return the shapes of the tensors in an input: those of one form make a batch."""
    return [tensor.shape for tensor in iterate_tensors(value)]


# ---- outputs ---------------------------------------------------------------------------------------------------------
def checked(evaluator: EvaluatorBase, outputs: Any, num_inputs: int) -> dict[str, Tensor]:
    """Return the outputs of `predict_step`; UserError unless they are tensors with a row for each input."""
    is_known = isinstance(outputs, dict) and any(name in outputs for name in KINDS)
    if is_known and all(isinstance(value, Tensor) and value.shape[:1] == (num_inputs,) for value in outputs.values()):
        return outputs
    raise UserError(
        f"{type(evaluator).__name__}.predict_step must return a dictionary of tensors with a row for each of its "
        f"{num_inputs} inputs, and 'probabilities' or 'values' among them."
    )


def all_finite(outputs: dict[str, Tensor]) -> bool:
    """Return whether all that was predicted for an input are numbers."""
    return all(bool(value.isfinite().all()) for value in outputs.values())


def mirrored(batch: Any) -> Tensor:
    """Return images (N, C, H, W) with left and right exchanged."""
    if not isinstance(batch, Tensor) or batch.ndim != 4:
        raise UserError("--tta flip is for images: leave it out.")
    return batch.flip(-1)


def with_mirrored(outputs: dict[str, Tensor], others: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the means of what was predicted for images and for their mirror images."""
    means = {}
    for name in KINDS:
        if name in outputs:
            other = others[name].flip(-1) if others[name].ndim == 4 else others[name]
            means[name] = (outputs[name].float() + other.float()) / 2
    if "masks" in outputs:
        probabilities = means["probabilities"]  # (N, C, H, W)
        means["masks"] = predicted_classes(probabilities if probabilities.shape[1] > 1 else probabilities - 0.5)
    return outputs | means


def mask_of(probabilities: Tensor, size: tuple[int, int], num_classes: int | None = None) -> Tensor:
    """Return the most probable class of each pixel, int64 (H, W), at another size.

    The classes are resized one by one, because all of them at the size of a photo would not fit into memory.

    Args:
        probabilities: (C, h, w); with C = 1 those of class 1.
        size: height and width.
        num_classes: consider only so many of them.
    """
    planes = (at_size(plane, size) for plane in probabilities[:num_classes])
    best = next(planes)  # (H, W)
    if len(probabilities) == 1:
        return (best > 0.5).long()
    mask = torch.zeros(best.shape, dtype=torch.int64)
    for number, plane in enumerate(planes, start=1):
        mask[plane > best] = number
        best = torch.maximum(best, plane)
    return mask


def at_size(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a plane (h, w) resized to (H, W)."""
    if plane.shape == torch.Size(size):
        return plane
    return F.interpolate(plane[None, None], tuple(size), mode="bilinear", align_corners=False, antialias=True)[0, 0]
