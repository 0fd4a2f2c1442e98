"""Describe how the time of an epoch was spent, and give a hint when much of it was spent waiting for data."""

import os
from collections.abc import Mapping

MUCH_WAITING = 0.2  # of an epoch, above which a hint is given
ALWAYS_SHOWN = ("step", "data")


def usable_cores() -> int:
    """Return the cores that this process may use; a scheduler may have left it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def time_shares(
    total: float, train: float, data_wait: float = 0.0, evaluation: float = 0.0, saving: float = 0.0,
    saving_in_train: float = 0.0,
) -> dict[str, float]:
    """Return the shares of "step", "data", "evaluation", "saving" and "other" in `total`; their sum is 1.

    Args:
        total: seconds of the epoch; at least the sum of the times below.
        train: from the request of the first batch to the end of the last update, waiting for data included.
        data_wait: of `train`, waiting for data.
        evaluation: the validation.
        saving: writing checkpoints.
        saving_in_train: of `saving`, the part within `train`, between two updates.

    >>> time_shares(10.0, train=8.0, data_wait=2.0, evaluation=1.0)
    {'step': 0.6, 'data': 0.2, 'evaluation': 0.1, 'saving': 0.0, 'other': 0.1}
    """
    seconds = {"step": max(train - data_wait - saving_in_train, 0.0), "data": data_wait}
    seconds |= {"evaluation": evaluation, "saving": saving}
    total = max(total, sum(seconds.values()), 1e-9)
    seconds["other"] = total - sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}


def shares_text(shares: Mapping[str, float]) -> str:
    """Format shares in whole percent that sum to 100, without zeros, except those of step and data.

    >>> shares_text({"step": 0.708, "data": 0.181, "evaluation": 0.09, "saving": 0.001, "other": 0.02})
    '71 % step, 18 % data, 9 % evaluation, 2 % other'
    """
    percent = {name: int(100 * share) for name, share in shares.items()}
    by_rest = sorted(shares, key=lambda name: percent[name] - 100 * shares[name])
    for name in by_rest[: 100 - sum(percent.values())]:
        percent[name] += 1
    return ", ".join(f"{value} % {name}" for name, value in percent.items() if value or name in ALWAYS_SHOWN)


def data_advice(
    share: float,
    num_workers: int = 0,
    cores: int = 1,
    *,
    was_measured: bool = False,
    in_memory: bool = False,
    can_cache: bool = False,
    can_move: bool = False,
    patch_size: int | None = None,
) -> str:
    """Return a hint for an epoch that waited much for data; "" when it did not, or when there is no hint.

    Args:
        share: of the epoch's time that was spent waiting for data, 0 to 1.
        num_workers: worker processes.
        cores: available to this process.
        was_measured: `num_workers` was measured to be the best number.
        in_memory: the data set gives whole batches from memory; no worker does that faster.
        can_cache: the option --cache exists and is off.
        can_move: the option --data_device exists and could move the data to a GPU.
        patch_size: of --patch_size, if there is such an option.

    >>> data_advice(0.63, num_workers=0, cores=8)
    'Much of the time is spent waiting for data. Load it in worker processes: --num_workers auto'
    """
    if share <= MUCH_WAITING:
        return ""
    if in_memory:
        hint = "Keep the data on the device: --data_device auto" if can_move else ""
        hint = "It is in memory, and workers only cost time: --num_workers 0" if num_workers else hint
    elif num_workers == 0 and not was_measured:
        hint = "Load it in worker processes: --num_workers auto"
    elif num_workers < cores and not was_measured:
        hint = f"Use more workers, there are {cores} cores: --num_workers {min(2 * num_workers, cores)}"
    elif can_cache:
        hint = "Keep decoded images: --cache"
    elif can_move:
        hint = "Keep the data on the device: --data_device auto"
    elif patch_size:
        hint = f"If the task allows it, load less: a --patch_size below {patch_size}, or files of smaller images"
    else:
        hint = "A sample takes long to load: store it decoded, or smaller, or on a faster disk"
    return hint and f"Much of the time is spent waiting for data. {hint}"
