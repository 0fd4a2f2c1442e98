"""Write a row per epoch to a CSV file."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from callbacks.callback import Callback
from utils.errors import UserError
from utils.files import write_atomically

TIMES = ("time/", "samples_per_second")  # how the names of columns begin


def without_times(rows: list[dict]) -> list[dict[str, str]]:
    """Return rows as text, without the columns that differ between two runs that compute the same."""
    return [
        {name: str(value) for name, value in row.items() if value != "" and not name.startswith(TIMES)} for row in rows
    ]


class CSVLogger(Callback):
    """Keeps one row per completed epoch in `path`.

    The whole file is rewritten each time, because a column may first appear later (a validation every third epoch), and
    on resume the rows after the checkpoint must go. A checkpoint holds the rows, too: a file that has lost some, or has
    those of another run, is refused on resume, and one that was moved away is written again, without its times.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.rows: list[dict] = []
        self.saved: list[dict] | None = None  # the rows in the checkpoint that is resumed

    def on_train_start(self, trainer) -> None:
        self.rows = self.saved or []
        if self.path.exists():
            try:
                self.rows = [row for row in self.read() if int(row["epoch"]) <= trainer.progress.epoch]
                if self.saved is not None and without_times(self.rows) != self.saved:
                    raise ValueError("its rows are not those of the checkpoint")
            except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
                raise UserError(
                    f"{self.path} is not the file of this run: {error}. Mend it or move it away, and resume again."
                ) from None
        if self.rows or self.path.exists():
            self.write()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": without_times(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.saved = without_times(state["rows"])
        del self.rows[len(self.saved) :]  # what is taken back after a failure of this process

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
