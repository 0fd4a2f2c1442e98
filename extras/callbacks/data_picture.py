"""Save the first training samples of a run as a picture: --data_picture."""

import logging

import torch

from callbacks.callback import Callback
from extras.data_picture import draw, is_picture, legend_cells, sample_cells

MOST = 32  # samples


class DataPicture(Callback):
    """Draws the samples of the first update as data.png in the run's directory, before the network normalizes them.

    They are loaded already, so it costs only the drawing, a tenth of a second.
    """

    def __init__(self, logger: logging.Logger):
        self.logger = logger

    def on_update_start(self, trainer, update) -> None:
        path = trainer.run_dir.path / "data.png"
        if trainer.progress.update or path.exists():
            return
        cells, legend = [], []
        for batch in update.micro_batches:
            if not isinstance(batch, tuple | list) or len(batch) != 2 or not is_picture(batch[0]) or len(cells) >= MOST:
                break
            with torch.no_grad():
                cells += sample_cells(*batch, trainer.evaluator.classes)
                legend = legend or legend_cells(batch[1], trainer.evaluator.classes)
        if cells:
            draw(cells[:MOST], legend, path)
        else:
            self.logger.warning("--data_picture: the samples are no pairs of an image and a target, so none is drawn.")
