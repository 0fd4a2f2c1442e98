"""Where the time of an epoch went, and what to change when too much of it was spent on waiting for data."""

from collections.abc import Mapping

MUCH_WAITING = 0.2  # of an epoch, above which something should be changed
ALWAYS_SHOWN = ("step", "data")


def time_shares(
    total: float, train: float, data_wait: float = 0.0, evaluation: float = 0.0, saving: float = 0.0,
    saving_in_train: float = 0.0,
) -> dict[str, float]:
    """Return what part of `total` went to each of "step", "data", "evaluation", "saving" and "other"; the sum is 1.

    Args:
        total: seconds of the epoch. Less than what is named below counts as that.
        train: from asking for the first batch to the end of the last update, waiting for data included.
        data_wait: of `train`, waiting for data.
        evaluation: the validation.
        saving: writing checkpoints.
        saving_in_train: of `saving`, what is in `train` as well, since it was done between two updates.

    >>> time_shares(10.0, train=8.0, data_wait=2.0, evaluation=1.0)
    {'step': 0.6, 'data': 0.2, 'evaluation': 0.1, 'saving': 0.0, 'other': 0.1}
    """
    seconds = {"step": max(train - data_wait - saving_in_train, 0.0), "data": data_wait}
    seconds |= {"evaluation": evaluation, "saving": saving}
    total = max(total, sum(seconds.values()), 1e-9)
    seconds["other"] = total - sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}


def shares_text(shares: Mapping[str, float]) -> str:
    """Write shares in whole percent that make 100 together; small ones are left out, but for those of step and data.

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
    """Return a line that says what to change when an epoch waits much for data; "" without need, or without an idea.

    Args:
        share: of the epoch's time that was spent on waiting for data, 0 to 1.
        num_workers: loading processes.
        cores: that this process may use.
        was_measured: `num_workers` was found to be the best number.
        in_memory: the data set gives whole batches from memory, which no other process can do faster.
        can_cache: there is an option --cache, and it is not in use.
        can_move: there is an option --data_device and a device to move the data to, and it is not there yet.
        patch_size: that of --patch_size, if there is such an option.

    >>> data_advice(0.63, num_workers=0, cores=8)
    'Much of the time is spent on waiting for data. Load it in processes of their own: --num_workers auto'
    """
    if share <= MUCH_WAITING:
        return ""
    if in_memory:
        what = "Keep the data on the device: --data_device auto" if can_move else ""
        what = "It is in memory, and processes only cost time: --num_workers 0" if num_workers else what
    elif num_workers == 0 and not was_measured:
        what = "Load it in processes of their own: --num_workers auto"
    elif num_workers < cores and not was_measured:
        what = f"Load it in more processes, there are {cores} cores: --num_workers {min(2 * num_workers, cores)}"
    elif can_cache:
        what = "Keep what was decoded: --cache"
    elif can_move:
        what = "Keep the data on the device: --data_device auto"
    elif patch_size:
        what = f"If the task allows it, load less: a --patch_size below {patch_size}, or files of smaller images"
    else:
        what = "A sample takes long to load: store it decoded, or smaller, or on a faster disk"
    return what and f"Much of the time is spent on waiting for data. {what}"
