"""Write the gradient norm of each layer. An example of a callback that a task attaches::

    def build_callbacks(self):
        return [*super().build_callbacks(), GradientNorms(self.run_dir.path)]
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from callbacks.callback import Callback
from callbacks.tensorboard import open_writer
from extras.callbacks.gradients import gradient_norms
from utils.errors import UserError
from utils.files import write_atomically
from utils.logger import open_own


class GradientNorms(Callback):
    """Writes the norm of each layer's gradients after every --log_every-th update, as the optimizer saw them: clipped.

    They go to gradients.csv (columns update, layer, norm), and to TensorBoard as gradients/LAYER. The events have a
    directory of their own, summary/gradients, because two writers in one would hide each other's. A sharded network
    (FSDP) is refused, because no process has whole gradients.

    Args:
        run_dir: of the run.
        depth: see `extras.callbacks.gradients.gradient_norms`.
        tensorboard: whether to write events too.
    """

    def __init__(self, run_dir: str | Path, depth: int | None = None, tensorboard: bool = True):
        self.path, self.depth = Path(run_dir) / "gradients.csv", depth
        self.log_dir = Path(run_dir) / "summary" / "gradients" if tensorboard else None
        self._writer: Any = None

    def on_train_start(self, trainer) -> None:
        if trainer.distributed.is_sharded:
            raise UserError("GradientNorms needs whole gradients: with --parallel fsdp no process has them.")
        rows = []
        if self.path.exists():  # drop rows after the checkpoint
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.reader(file) if row[0].isdigit() and int(row[0]) <= trainer.progress.update]
        file = io.StringIO(newline="")
        csv.writer(file, lineterminator="\n").writerows([("update", "layer", "norm"), *rows])
        write_atomically(self.path, file.getvalue().encode())
        if self.log_dir is not None:
            self._writer = open_writer(self.log_dir, trainer.progress.update + 1)

    def on_log(self, trainer, values: Mapping[str, float]) -> None:
        norms = {}
        for name, network in trainer.networks.items():
            start = f"{name}." if len(trainer.networks) > 1 else ""
            norms |= {start + layer: norm for layer, norm in gradient_norms(network, self.depth).items()}
        numbers = dict(zip(norms, torch.stack([*norms.values()]).tolist() if norms else [], strict=True))
        update = trainer.progress.update
        with open_own(self.path) as file:
            rows = ((update, layer, f"{norm:.6g}") for layer, norm in numbers.items())
            csv.writer(file, lineterminator="\n").writerows(rows)
        if self._writer is not None:
            for layer, norm in numbers.items():
                self._writer.add_scalar(f"gradients/{layer}", norm, update)

    def on_save(self, trainer) -> None:
        if self._writer is not None:
            self._writer.flush()

    def on_train_end(self, trainer) -> None:
        if self._writer is not None:
            self._writer.close()

    def on_exception(self, trainer, error: BaseException) -> None:
        self.on_train_end(trainer)
