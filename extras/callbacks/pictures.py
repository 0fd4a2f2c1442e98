"""A picture per epoch, in the run directory."""

from collections.abc import Mapping
from pathlib import Path

from callbacks.callback import Callback
from utils.draw import save_picture


class Pictures(Callback):
    """Saves what the evaluator's `draw` makes of the first validation batch as `directory`/epoch_0001.png, and so on.

    A resumed run writes those of its epochs again. Networks that are cut up between processes draw none.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)

    def on_epoch_end(self, trainer, row: Mapping[str, float]) -> None:
        picture = trainer.evaluator.picture(trainer.val_loader)
        if picture is not None:
            self.directory.mkdir(exist_ok=True)
            save_picture(picture.float() / 255, self.directory / f"epoch_{row['epoch']:04d}.png")
