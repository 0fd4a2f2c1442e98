"""Save a picture per epoch."""

from collections.abc import Mapping
from pathlib import Path

from callbacks.callback import Callback
from utils.draw import save_picture


class Pictures(Callback):
    """Saves the evaluator's drawing of the first validation batch as `directory`/epoch_0001.png, and so on.

    A resumed run writes the pictures of its epochs again. Sharded networks (FSDP) have none.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)

    def on_epoch_end(self, trainer, row: Mapping[str, float]) -> None:
        picture = trainer.evaluator.picture(trainer.val_loader)
        if picture is not None:
            self.directory.mkdir(exist_ok=True)
            save_picture(picture.float() / 255, self.directory / f"epoch_{row['epoch']:04d}.png")
