"""Death of the process after a certain update, to try out what is left of a run."""

import os
import signal
from collections.abc import Mapping
from typing import Any

from callbacks.callback import Callback
from engine.devices.process_group import attempt


class Kill(Callback):
    """Kills its own process with SIGKILL, as a lack of memory or a machine that fails would: nothing is tidied up.

    It does so after an update and before the checkpoint of this update, so that there are updates to be made again.
    A run that begins beyond the update is killed after its first one, but not when a launcher has started its processes
    again: once is enough to try that. Not on Windows, which has no such signal.

    Args:
        update: number of completed updates, counted from the beginning of the run.
    """

    def __init__(self, update: int):
        self.update = update

    def on_update_end(self, trainer, values: Mapping[str, Any]) -> None:
        if trainer.progress.update >= self.update and not attempt():
            os.kill(os.getpid(), signal.SIGKILL)
