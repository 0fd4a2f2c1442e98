"""Give a hint when much of an epoch was spent waiting for data."""

from data.loader import is_in_memory
from extras.choose_workers import usable_cores


def advise(trainer) -> str:
    """Return the hint for a run, or ""."""
    options = vars(trainer.opt)
    return data_advice(
        trainer.train_loader.num_workers,
        usable_cores(),
        was_measured=bool(getattr(trainer.train_loader, "report", "")),
        in_memory=is_in_memory(trainer.datasets["train"]),
        can_cache=options.get("data_type") == "Carvana" and options.get("cache") is False,
        can_move=options.get("data_device") == "cpu" and trainer.device.type == "cuda",
        patch_size=options.get("patch_size"),
    )


def data_advice(
    num_workers: int = 0,
    cores: int = 1,
    *,
    was_measured: bool = False,
    in_memory: bool = False,
    can_cache: bool = False,
    can_move: bool = False,
    patch_size: int | None = None,
) -> str:
    """Return a hint for an epoch that waited much for data; "" when there is none.

    Args:
        num_workers: worker processes.
        cores: available to this process.
        was_measured: `num_workers` was measured to be the best number.
        in_memory: the data set gives whole batches from memory; no worker does that faster.
        can_cache: the option --cache exists and is off.
        can_move: the option --data_device exists and could move the data to a GPU.
        patch_size: of --patch_size, if there is such an option.

    >>> data_advice(num_workers=0, cores=8)
    'Much of the time is spent waiting for data. Load it in worker processes: --num_workers auto'
    """
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
