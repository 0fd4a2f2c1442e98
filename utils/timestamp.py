"""Result directories named by the second in which a run began."""

import time
from pathlib import Path

from utils.errors import UserError


def make_timestamped_dir(parent: str | Path) -> tuple[Path, str]:
    """Create ``parent/TIMESTAMP``, with the Unix time in seconds, for one run alone.

    Two runs that start in the same second do not share it: making a directory is atomic, and the second to come takes
    the next free second.

    Raises:
        UserError: when the directory cannot be made.
    """
    timestamp = int(time.time())
    try:
        Path(parent).mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path = Path(parent) / str(timestamp)
                path.mkdir()
                return path, str(timestamp)
            except FileExistsError:
                timestamp += 1
    except OSError as error:
        raise UserError(f"Cannot make a directory for the results in {parent}: {error.strerror}.") from None
