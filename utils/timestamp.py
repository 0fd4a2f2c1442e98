"""Result directories named by the second in which a run began."""

import time
from pathlib import Path

from utils.errors import UserError


def make_timestamped_dir(parent: str | Path) -> Path:
    """Create ``parent/TIMESTAMP``, with the Unix time in seconds, for one run alone.

    Making a directory is atomic. So of two runs that start in the same second, one takes the next free second.

    Raises:
        UserError: the directory cannot be made.
    """
    timestamp = int(time.time())
    while True:
        path = Path(parent, str(timestamp))
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            timestamp += 1
        except OSError as error:
            raise UserError(f"Cannot make a directory for the results in {parent}: {error.strerror}.") from None
