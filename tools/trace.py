"""A line per update: what went in and what came out, as digests."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from callbacks.callback import Callback
from engine.checkpoints.state import PLAIN, digest, get_state
from utils.errors import UserError
from utils.seed import random_state

NUM_DIGITS = 16  # of a digest: 64 bits are enough to tell a few million updates apart


class Trace(Callback):
    """Appends a JSON line for each update to a file. Two runs that compute the same write the same lines::

        python trainer_vanilla.py --seed 0 --trace a.txt
        python trainer_vanilla.py --seed 0 --trace b.txt --num_workers 2
        diff a.txt b.txt

    The first line that differs is the first update that does, and its first entry that differs says where to look:

    | entry | what it is |
    |---|---|
    | update, epoch, sample | the position after the update, in completed ones |
    | data | digest of the micro-batches that went in |
    | values | what `train_step` returned, exact: in hexadecimal |
    | networks, optimizers | digests of their states after the update |
    | random | digest of the states of all global random generators after the update |

    A line is handed to the operating system at once, so that a process that is killed afterwards loses none. An update
    that is made again after a resume gets a second line. Digests take time, on a GPU most of all: a trace is for short
    runs.

    Args:
        path: the file.

    Raises:
        UserError: when the file cannot be written.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.data = ""  # digest of what goes into the update under way
        try:
            with open(self.path, "a+b") as file:
                file.seek(max(file.tell() - 1, 0))
                if file.read(1) not in (b"\n", b""):  # a line that was cut short by a kill stays one of its own
                    file.write(b"\n")
        except OSError as error:
            raise UserError(f"Cannot write the trace {path}: {error.strerror or error}.") from None

    def on_update_start(self, trainer, update) -> None:
        self.data = short_digest(plain(update.micro_batches))

    def on_update_end(self, trainer, values: Mapping[str, Any]) -> None:
        progress = trainer.progress
        line = {
            "update": progress.update,
            "epoch": progress.epoch,
            "sample": progress.sample,
            "data": self.data,
            "values": {name: float(value).hex() for name, value in values.items()},
            "networks": short_digest(get_state(trainer.networks)),
            "optimizers": short_digest(get_state(trainer.optimizers)),
            "random": short_digest(random_state()),
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def short_digest(value: Any) -> str:
    return digest(value)[:NUM_DIGITS]


def plain(batch: Any) -> Any:
    """A batch as what `engine.checkpoints.state.digest` takes: tensors, numbers, text, lists and dictionaries.

    Data classes become dictionaries, named tuples lists. Of what else there may be, only the type counts.
    """
    if isinstance(batch, torch.Tensor):
        return batch.to_dense() if batch.layout != torch.strided else batch
    if isinstance(batch, Mapping):
        return {str(name): plain(entry) for name, entry in batch.items()}
    if isinstance(batch, list | tuple):
        return [plain(entry) for entry in batch]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: plain(getattr(batch, field.name)) for field in dataclasses.fields(batch)}
    if isinstance(batch, np.ndarray | np.generic):
        content = plain(batch.tolist()) if batch.dtype.hasobject else batch.tobytes().hex()
        return [str(batch.dtype), list(batch.shape), content]
    return batch if type(batch) in PLAIN else type(batch).__name__
