"""Write what an evaluation as a program has found: results.json, predictions.csv, curves, and the lines of the log."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.data_entry import build_eval_loader, sample_groups
from data.sampler import sample_names
from engine.registry import as_list
from extras.compare_scores import compare_with_stored
from extras.evaluation.curves import HAS_TORCHMETRICS, areas, bins_of, curves_of, save_calibration, save_curves
from extras.evaluation.results import format_classes, save_results
from extras.evaluation.scores import NAMES, class_counts, intervals, per_class, trivial_scores
from extras.evaluation.table import MOST_CLASSES, Table
from utils.overlap import LEAST_SAMPLES, Overlap, mean_ratio


def write_report(evaluator: Any, dataset: Any, loader: Any, results: dict[str, float], state: dict[str, Any]) -> None:
    """Write and log the results of an evaluation, see docs/evaluation.md. Of several processes, all call it.

    Args:
        evaluator: with its table, after the evaluation.
        dataset: the part that was evaluated.
        loader: of the samples of this process.
        results: the scores.
        state: the checkpoint.
    """
    opt, table, directory, log = evaluator.opt, evaluator.table, evaluator.output_dir, evaluator.logger.info
    table.merge(evaluator.distributed)
    bad = {index for of_process in evaluator.distributed.gather(list(loader.bad.reasons)) for index in of_process}
    if not evaluator.distributed.is_main:
        return
    if evaluator.distributed.size > 1:
        batch_size = evaluator.eval_batch_size(opt)
        loader = build_eval_loader(opt, dataset, opt.split, batch_size, evaluator.device)  # of all samples
    why_not = reason_for_no_table(evaluator)
    if why_not:
        found, notes = {"intervals": evaluator.intervals()}, [f"No predictions.csv: {why_not}"]
    else:
        table.indices = [index for _, batch in loader.sampler for index in batch if index not in bad]
        found, notes = scores_of(evaluator, class_names(evaluator), group_numbers(dataset, table.indices), results)
        write_predictions(directory / "predictions.csv", table, dataset, class_names(evaluator))
    part = "all parts" if opt.split == "all" else f"the {opt.split} part"
    title = f"{opt.model_path} on {part} of {opt.data_type}"
    if opt.split in ("train", "all"):
        notes.append("The network was trained on samples of these: the scores flatter.")
    text = save_results(directory, what=title, n=evaluator.num_samples, results=results, **found)
    log("\n".join([text, *notes, f"Saved in {directory}"]))
    evaluator.report(loader)
    if opt.split == "val":
        log(compare_with_stored(results, evaluator.num_samples, state, vars(opt)))


def reason_for_no_table(evaluator: Any) -> str:
    """Return why there is no row for each sample; "" if there is."""
    table, name = evaluator.table, type(evaluator).__name__
    if len(table) == evaluator.num_samples:
        return ""
    if not len(table):
        return f"eval_step of {name} does not call self.record(outputs, targets), a row of tensors for each sample."
    return f"eval_step of {name} has recorded {len(table):,} rows for {evaluator.num_samples:,} samples."


def group_numbers(dataset: Any, indices: Sequence[int]) -> Tensor | None:
    """Return a number for the group of each sample, (N,); None if each sample is a group of its own."""
    groups = sample_groups(dataset)
    numbers: dict[Any, int] = {}
    found = [numbers.setdefault(groups[index], len(numbers)) for index in indices]
    return torch.tensor(found) if len(numbers) < len(found) else None


def class_names(evaluator: Any) -> list[str]:
    """Return the names of the classes; [] for values."""
    table = evaluator.table
    if table.kind == "values":
        return []
    columns = table.columns
    count = columns["counts"].shape[1] if table.kind == "masks" else max(evaluator.opt.n_classes, 2)
    names = getattr(evaluator.opt, "class_names", None)
    if not names and table.kind == "masks" and count == 2:
        names = ["background", "foreground"]
    elif not names and table.kind == "masks" and len(as_list(getattr(evaluator.opt, "mask_values", None))) == count:
        names = [f"value {value}" for value in evaluator.opt.mask_values]
    names = list(map(str, names or []))[:count]
    return [*names, *map(str, range(len(names), count))]


# ---- scores ----------------------------------------------------------------------------------------------------------
def scores_of(
    evaluator: Any, names: Sequence[str], groups: Tensor | None, results: dict[str, float]
) -> tuple[dict[str, Any], list[str]]:
    """Return the entries of results.json beside the scores, and lines for the log."""
    table, meters = evaluator.table, evaluator.meters
    found: dict[str, Any] = {"trivial": trivial_scores(table, meters, names, results)}
    found["intervals"] = intervals(table, meters, len(names), groups)
    notes = interval_notes(evaluator, found["intervals"], groups)
    if groups is not None:
        found["num_groups"] = int(groups.max()) + 1
    if table.kind == "values":
        return found, notes
    found["per_class"] = per_class(class_counts(table, len(names)).sum(dim=0), names)
    bins = bins_of(table)
    if bins is None:
        notes.append(f"No calibration and no curves: more than {MOST_CLASSES} classes, or no target that counts.")
    else:
        unit = "pixels" if table.kind == "masks" else "samples"
        found["calibration_error"] = bins.calibration_error()
        notes.append(f"Expected calibration error of the {unit}: {found['calibration_error']:.4f}")
        if evaluator.opt.viz:
            save_calibration(bins, evaluator.output_dir / "calibration.png", unit)
        if table.kind == "masks" or HAS_TORCHMETRICS:
            curves = curves_of(table, bins)
            for k, curve in curves.items():
                found["per_class"][names[k]] |= areas(curve)
            if evaluator.opt.viz and curves:
                save_curves(curves, names, evaluator.output_dir / "curves.png")
        else:
            notes.append("No curves of precision, recall and ROC: they need torchmetrics (pip install torchmetrics).")
    return found, [format_classes(found["per_class"]), *notes]


def interval_notes(evaluator: Any, found: dict[str, Any], groups: Tensor | None) -> list[str]:
    """Say of which units the intervals are, and where there is none."""
    n = evaluator.num_samples if groups is None else int(groups.max()) + 1
    unit = "samples" if groups is None else "groups of samples, which are resampled as a whole"
    notes = []
    ratios = [name for name, meter in evaluator.meters.items() if isinstance(meter, Overlap) or type(meter) in NAMES]
    missing = [name for name in ratios if name not in found]
    if missing and n < LEAST_SAMPLES:
        wrong = f"of fewer than {LEAST_SAMPLES} it would be too narrow"
        notes.append(f"No interval of {', '.join(missing)}: n = {n} {unit}, and {wrong}.")
    if groups is not None and evaluator.table.kind == "classes":
        notes.append(f"The samples are of {n} groups; an interval of an accuracy takes them as independent.")
    return notes


# ---- predictions.csv -------------------------------------------------------------------------------------------------
def write_predictions(path: Path, table: Table, dataset: Any, names: Sequence[str]) -> None:
    """Write a line for each sample: its name, target, prediction, probability and loss, see docs/evaluation.md."""
    columns = table.columns
    of_all = sample_names(dataset)
    rows: dict[str, Sequence[Any]] = {"name": [of_all[index] for index in table.indices]}
    if parts := getattr(dataset, "part_of", None):  # --split all
        rows["part"] = [parts[index] for index in table.indices]
    if table.kind == "classes":
        counts = columns["counts"].tolist()
        targets = zip(columns["target"].tolist(), counts, strict=True)
        rows["target"] = [names[k] if is_counted else "" for k, is_counted in targets]
        rows["prediction"] = [names[k] for k in columns["prediction"].tolist()]
        rows["probability"] = columns["probability"].tolist()
    elif table.kind == "masks":
        rows |= {name: score.tolist() for name, score in image_scores(columns["counts"]).items()}
    else:
        for name in ("target", "prediction"):
            values = columns[name].T.tolist()
            rows |= {name if len(values) == 1 else f"{name}_{k}": value for k, value in enumerate(values)}
    rows["loss"] = columns["loss"].tolist()
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows)
        writer.writerows([as_text(value) for value in row] for row in zip(*rows.values(), strict=True))


def image_scores(counts: Tensor) -> dict[str, Tensor]:
    """Return Dice and IoU of each image, (N,), of counts (N, C, 3): means over the foreground classes that it has."""
    both, predicted, actual = counts[:, 1:].double().unbind(dim=-1)
    return {"dice": mean_ratio(2 * both, predicted + actual), "iou": mean_ratio(both, predicted + actual - both)}


def as_text(value: Any) -> Any:
    """Return a number with six digits, and NaN as nothing."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"
