"""Train a task and kill the process after an update, to try out a resume.

    python -m tools.kill --at 7 trainer_vanilla.py --seed 0 --save_every_updates 3
"""

import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from callbacks.callback import Callback
from engine.options.parser import OptionParser, file_path, number, run_main
from engine.registry import load


def main(argv: Sequence[str] | None = None) -> None:
    # Imported here, so that other programs may take `Kill` without a trainer.
    from tools.task import attached, read_command, run_tool
    from tools.trace import Trace

    parser = OptionParser(prog="python -m tools.kill", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--at", type=number(int, low=1), required=True, metavar="N", help="the update, counted from the first of a run")
    add("--trace", type=file_path, default=None, metavar="FILE", help="write a line per update, see tools.trace")
    own, task, options = read_command(parser, argv)
    callbacks = [partial(Trace, own.trace)] if own.trace else []
    run_tool(attached(task, *callbacks, partial(Kill, own.at)), options)


class Kill(Callback):
    """Kills its own process with SIGKILL, as a lack of memory would: nothing is cleaned up.

    It does so after an update and before the checkpoint of that update, so there are updates to repeat. A run resumed
    beyond the update is killed after its first one, unless a launcher has restarted its processes. Windows has no
    SIGKILL.

    Args:
        update: number of completed updates, counted from the beginning of the run.
    """

    def __init__(self, update: int):
        self.update = update

    def on_update_end(self, trainer, values: Mapping[str, Any]) -> None:
        if trainer.progress.update >= self.update and not load("extras.job_store:attempt", "max_restarts")():
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    run_main(main)
