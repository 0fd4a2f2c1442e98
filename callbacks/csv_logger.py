"""Write a row per epoch to a CSV file."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from callbacks.callback import Callback
from utils.errors import UserError
from utils.files import write_atomically


class CSVLogger(Callback):
    """Keeps one row per completed epoch in `path`.

    The whole file is rewritten each time, because a column may first appear later (a validation every third epoch), and
    on resume the rows after the checkpoint must go.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.rows: list[dict] = []

    def on_train_start(self, trainer) -> None:
        if not self.path.exists():
            return
        try:
            self.rows = [row for row in self.read() if int(row["epoch"]) <= trainer.progress.epoch]
        except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
            raise UserError(
                f"{self.path} is not a file of a run: {error}. Mend it or move it away, and resume again."
            ) from None
        self.write()

    def on_epoch_end(self, trainer, row: Mapping[str, float]) -> None:
        self.rows.append({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
        self.write()

    def read(self) -> list[dict]:
        """Read the rows of the file, as dictionaries by column."""
        with open(self.path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = reader.fieldnames
        if columns and "epoch" not in columns:
            raise ValueError("it has no column 'epoch'")
        if any(None in row for row in rows):
            raise ValueError("it has a row with more entries than columns")
        return rows

    def write(self) -> None:
        """Write all rows; a cell without a value stays empty."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, file.getvalue().encode())
