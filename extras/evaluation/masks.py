"""Save pictures of an evaluated segmentation: of every --n_snap-th image, and of those with the largest losses."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.loader import EvalLoader
from data.sampler import sample_names
from engine.registry import short_name
from utils.batch import move_to
from utils.draw import contact_sheet, save_picture
from utils.meter import predicted_classes

NUM_IN_SHEET = 24  # rows
NUM_WORST = 12


def save_pictures(evaluator: Any, loader: EvalLoader) -> None:
    """Save origin, mask and prediction of every --n_snap-th image, one sheet with them, and one with the worst images.

    The worst are those with the largest losses; their sheet is `mistakes.png`, and names the loss of each.
    """
    opt, table = evaluator.opt, evaluator.table
    output_dir = evaluator.output_dir / opt.mode / short_name(opt.data_type)
    output_dir.mkdir(parents=True)
    losses = table.columns["loss"].nan_to_num(-1)
    worst = {table.indices[row]: losses[row].item() for row in losses.argsort(descending=True)[:NUM_WORST].tolist()}
    rows, captions = [], []  # of the sheet
    worst_rows = {}
    place = num_saved = 0
    with evaluator.inference(), evaluator.precision.autocast():
        for batch in loader.batches():
            if not batch.num_samples:
                continue  # none of its images can be read
            images, masks = move_to(batch.data, evaluator.device)
            for i, index in enumerate(batch.loaded):
                is_snap = (place + i) % opt.n_snap == 0
                if not is_snap and index not in worst:
                    continue
                row = predicted_row(evaluator, images[i], masks[i])
                if index in worst:
                    worst_rows[index] = [picture.cpu() for picture in row]
                if is_snap:
                    name = picture_name(loader.dataset, index, output_dir)
                    for kind, picture in zip(("origin", "mask", "pred"), row, strict=True):
                        save_picture(picture, output_dir / f"{name}_{kind}.png")
                    num_saved += 1
                    if len(rows) < NUM_IN_SHEET:
                        rows.append(row)
                        captions.append((name, "mask", "prediction"))
            place += batch.num_samples
    contact_sheet(rows, captions, path=output_dir / "contact_sheet.png")
    names = sample_names(loader.dataset)
    order = [index for index in worst if index in worst_rows]
    titles = [(Path(str(names[index])).name, "mask", f"prediction, loss {worst[index]:.4g}") for index in order]
    contact_sheet([worst_rows[index] for index in order], titles, path=evaluator.output_dir / "mistakes.png")
    evaluator.logger.info(
        f"Pictures of {num_saved} of {place} images, and contact_sheet.png: {output_dir}; the {len(order)} with the "
        f"largest losses: {evaluator.output_dir / 'mistakes.png'}"
    )


def predicted_row(evaluator: Any, image: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    """Return an image (C, H, W), its mask and the prediction as pictures."""
    predicted: torch.Tensor = predicted_classes(evaluator.predict(image[None]))[0]  # (H, W)
    return evaluator.row(image, mask, predicted)


def picture_name(dataset: Any, index: int, directory: Path) -> str:
    """Return a name for the pictures of a sample: its own, and its number if another sample has that."""
    name = Path(str(sample_names(dataset)[index])).name  # so that no name leads out of the directory
    return f"{name}_{index}" if (directory / f"{name}_origin.png").exists() else name
