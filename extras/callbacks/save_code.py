"""Copy the code into the run directory."""

import logging

from callbacks.callback import Callback
from engine.registry import load


class SaveCode(Callback):
    """Writes `code_atN.tar.gz` when a run starts (N is 0) or resumes after N updates, because code may have changed.

    Args:
        logger: of the run.
    """

    def __init__(self, logger: logging.Logger):
        self.logger = logger

    def on_train_start(self, trainer) -> None:
        target = trainer.run_dir.path / f"code_at{trainer.progress.update}.tar.gz"
        if not target.exists():
            count, warnings = load("tools.source_copy:copy_source", "save_code")(target)
            self.logger.info(f"Code: {count} files in {target.name}")
            for warning in warnings:
                self.logger.warning(warning)
