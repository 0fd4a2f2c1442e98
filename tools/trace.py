"""Train a task and write a line per update: digests of its data, its values and the state after it.

    python -m tools.trace --file a.txt trainer_vanilla.py --seed 0
    python -m tools.trace --file b.txt trainer_vanilla.py --seed 0 --num_workers 2
    diff a.txt b.txt

Two runs that compute the same write the same lines. The first line that differs is the first update that does.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from callbacks.callback import Callback
from engine.checkpoints.state import SCALARS, get_state
from engine.options.parser import OptionParser, file_path, run_main
from tools.digest import digest
from utils.errors import UserError
from utils.seed import random_state

NUM_DIGITS = 16  # of a digest: 64 bits are enough to tell a few million updates apart


def main(argv: Sequence[str] | None = None) -> None:
    # Imported here, so that other programs may take `Trace` without a trainer.
    from tools.task import attached, read_command, run_tool

    parser = OptionParser(prog="python -m tools.trace", description=__doc__.split("\n")[0])
    parser.add_argument("--file", type=file_path, required=True, help="the file to append to")
    own, task, options = read_command(parser, argv)
    run_tool(attached(task, partial(Trace, own.file)), options)


class Trace(Callback):
    """Appends a JSON line for each update to a file. The first entry that differs shows where to look:

    | entry | content |
    |---|---|
    | update, epoch, sample | the position after the update, in completed ones |
    | data | digest of the micro-batches |
    | values | the values that `train_step` returned, exact: in hexadecimal |
    | networks, optimizers | digests of their states after the update |
    | random | digest of the states of all global random generators after the update |

    A line is handed to the operating system at once, so that a process which is killed afterwards loses none. An update
    that is repeated after a resume gets a second line. Digests take time, most of all on a GPU: a trace is for short
    runs.

    Args:
        path: the file.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.data = ""  # digest of the micro-batches of the update under way
        try:
            with open(self.path, "a+b") as file:
                file.seek(max(file.tell() - 1, 0))
                if file.read(1) not in (b"\n", b""):  # keep apart from a line that a kill has truncated
                    file.write(b"\n")
        except OSError as error:
            raise UserError(f"Cannot write the trace {path}: {error.strerror or error}.") from None

    def on_update_start(self, trainer, update) -> None:
        self.data = short_digest(plain(update.micro_batches))

    def on_update_end(self, trainer, values: Mapping[str, Any]) -> None:
        trainer.guard.check_earlier(wait=True)  # on a GPU, an update is refused some updates later
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
    """Return the first digits of a digest."""
    return digest(value)[:NUM_DIGITS]


def plain(batch: Any) -> Any:
    """Convert a batch to tensors, numbers, text, lists and dictionaries, which `tools.digest.digest` takes.

    Data classes become dictionaries, named tuples become lists. Of other objects only the type counts.
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
    return batch if type(batch) in SCALARS else type(batch).__name__


if __name__ == "__main__":
    run_main(main)
