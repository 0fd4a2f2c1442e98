"""One row per epoch in a CSV file."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from callbacks.callback import Callback
from utils.errors import UserError
from utils.files import write_atomically


class CSVLogger(Callback):
    """Keeps `path` at one row per completed epoch.

    The whole file is written anew each time: it is small, a column that first appears later (a validation every third
    epoch) gets its place, and rows that a crash left beyond the checkpoint disappear on resume.
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
                f"{self.path} is not what a run has written: {error}. Mend it or move it away, and resume again."
            ) from None
        self.write()

    def on_epoch_end(self, trainer, row: Mapping[str, float]) -> None:
        self.rows.append({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})
        self.write()

    def read(self) -> list[dict]:
        """The rows of the file, by the names of its columns."""
        with open(self.path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames, list(reader)
        if columns and "epoch" not in columns:
            raise ValueError("it has no column 'epoch'")
        if any(None in row for row in rows):
            raise ValueError("it has a row with more entries than columns")
        return rows

    def write(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, file.getvalue().encode())
