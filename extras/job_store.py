"""The key-value store of a job of several processes, which the launcher keeps over all attempts."""

import json
import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from utils.errors import PeerError, UserError

DEFAULT_TIMEOUT = 600.0  # seconds
RUN = "run"  # the key of what a later attempt needs

_store: Any = None  # once it was reached


def attempt() -> int:
    """Return how often the launcher has restarted the processes of this job after a failure.

    Raises:
        UserError: the launcher's variable is no number.
    """
    text = os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0"
    if not text.isdecimal():
        raise UserError(f"TORCHELASTIC_RESTART_COUNT={text} is no number: torchrun sets it. Unset it.")
    return int(text)


def job_store(timeout: float = DEFAULT_TIMEOUT) -> dist.Store:
    """Return the store.

    Raises:
        PeerError: there is no answer within about `timeout` seconds, or the port is taken.
    """
    global _store
    if _store is None:
        try:
            _store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
        except (dist.DistError, RuntimeError, ValueError, OSError) as error:
            reason = f"no answer within {timeout:g} seconds (--dist_timeout). Is process 0 started, the address right?"
            if "EADDRINUSE" in str(error):
                reason = "another program uses the port. Choose another one."
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ['MASTER_PORT']}"
            raise PeerError(f"The processes cannot meet at {address} (MASTER_ADDR:MASTER_PORT): {reason}") from None
    return _store


def earlier_run() -> dict[str, Any]:
    """Return what an earlier attempt stored: "run_dir" and "seed"; empty at the first attempt."""
    if not attempt() or not job_store().check([RUN]):
        return {}
    return json.loads(job_store().get(RUN))
