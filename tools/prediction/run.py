"""Predict files and write what was predicted: the program behind the command line."""

import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from engine.options.parser import printable
from engine.registry import error_line, load
from eval import EvaluatorBase
from eval_seg_on_carvana import EvaluatorSeg
from tools.prediction.files import Found, Sample, find_files
from tools.prediction.opening import open_evaluator
from tools.prediction.predictor import Predictor, all_finite
from tools.prediction.writing import MaskWriter, TableWriter
from utils.errors import UserError
from utils.files import NO_SPACE, write_json
from utils.timestamp import make_timestamped_dir

READ_AT_ONCE = 32  # files
READING_THREADS = 4
IMAGE_READERS = (EvaluatorBase.read_samples, EvaluatorSeg.read_samples)


def predict_files(opt: Namespace, flags: Sequence[str]) -> int:
    """Predict the files of a command line, and return the exit status of the program.

    Args:
        opt: the options of this program, see `tools.prediction.command.make_parser`.
        flags: those that change the options of the checkpoint.
    """
    evaluator, path = open_evaluator(opt.run, opt.task, flags, opt.use_average, opt.gpu_devices)
    predictor = Predictor(evaluator, opt.batch_size, opt.tta)
    reads_images = type(evaluator).read_samples in IMAGE_READERS
    if reads_images:
        load("extras.image_input:reading_of", "set")(evaluator.opt)  # an option that is wrong fails once, not per file
    files, num_others = find_files(
        opt.files, image_suffixes() if reads_images else getattr(evaluator, "suffixes", None)
    )
    directory = make_timestamped_dir(opt.output_dir)
    report = Report()
    try:
        written = write_all(predictor, files, directory, report)
    finally:
        if report.num_predicted == 0:
            shutil.rmtree(directory, ignore_errors=True)
    if report.num_predicted == 0:
        raise UserError(f"None of {len(files):,} files could be predicted.")
    write_json(
        directory / "prediction.json",
        {
            "checkpoint": str(path),
            "use_average": opt.use_average,
            "tta": opt.tta,
            "options": list(flags),
        },
    )
    others = f" Files of other kinds that were passed over: {num_others:,}." if num_others else ""
    failed = f" Failed: {report.num_failed:,}." if report.num_failed else ""
    print(f"Device: {evaluator.device}")
    print(f"Predicted {report.num_predicted:,} of {len(files):,} files with {path}.{failed}{others}")
    print(f"Saved in {directory}: {', '.join(written)}")
    return 1 if report.num_failed else 0


class Report:
    """Counts files, and prints a line for each that cannot be read."""

    def __init__(self) -> None:
        self.num_predicted = 0
        self.num_failed = 0

    def failed(self, path: Path, error: Exception) -> None:
        """Print why a file cannot be read, in one line that names it."""
        reason = str(error) if isinstance(error, UserError) else error_line(error)
        text = " ".join(reason.split())
        line = text if str(path) in text else f"{path}: {text}"
        tqdm.write(f"predict.py: {printable(line)}", file=sys.stderr)
        self.num_failed += 1


def image_suffixes() -> set[str]:
    """Return the suffixes of the image files that Pillow opens."""
    return {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN} - {".pdf"}


def write_all(predictor: Predictor, files: Sequence[Found], directory: Path, report: Report) -> list[str]:
    """Predict files, write the results to a directory, and return the names of what was written there."""
    writer: Any = None
    last: Found | None = None
    samples = read_all(predictor.evaluator, files, report)
    try:
        for sample, outputs in predictor.predict((sample, sample.inputs) for sample in samples):
            if not all_finite(outputs):
                report.failed(sample.found.path, UserError("what the network predicts for it is not a number"))
                continue
            if writer is None:
                is_mask = "probabilities" in outputs and outputs["probabilities"].ndim == 3
                writer = (MaskWriter if is_mask else TableWriter)(directory, predictor)
            writer.add(sample, outputs)
            report.num_predicted += sample.found is not last  # of a file with several samples, once
            last = sample.found
    finally:
        if writer is not None:
            writer.close()
    return writer.written if writer is not None else []


def read_all(evaluator: EvaluatorBase, files: Sequence[Found], report: Report) -> Iterator[Sample]:
    """Yield the samples of the files that can be read, with a bar on a terminal; some files are read ahead."""
    read = partial(read_file, evaluator)
    with (
        ThreadPoolExecutor(READING_THREADS) as pool,
        tqdm(total=len(files), unit="file", disable=None, dynamic_ncols=True, leave=False) as bar,
    ):
        for first in range(0, len(files), READ_AT_ONCE):
            some = files[first : first + READ_AT_ONCE]
            for found, content in zip(some, pool.map(read, some), strict=True):
                if isinstance(content, Exception):
                    report.failed(found.path, content)
                else:
                    yield from content
                bar.update()


def read_file(evaluator: EvaluatorBase, found: Found) -> list[Sample] | Exception:
    """Return the samples of a file, or why it cannot be read."""
    try:
        samples = list(evaluator.read_samples(found.path))
        if not samples:
            return UserError(f"{found.path} holds no sample.")
        # A task whose files are tables has a method that returns the cells of each row, to stand before its prediction.
        texts_of = getattr(evaluator, "texts_of", None)
        cells = texts_of(found.path) if texts_of else [{}] * len(samples)
        return [Sample(found, name, inputs, row) for (name, inputs), row in zip(samples, cells, strict=True)]
    except MemoryError:
        raise
    except Exception as error:  # a reader may raise anything on a damaged file
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise
        return error
