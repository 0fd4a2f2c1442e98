"""Explain in one line why data could not be loaded. data/dataloader.py comes here when something has failed."""

import gc
import signal
import time
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from utils.errors import LoadingError, UserError

HINTS = {
    "SIGKILL": "Often the memory ran out: a smaller --num_workers needs less.",
    "SIGBUS": "Often the shared memory ran out (df /dev/shm): a smaller --num_workers needs less.",
}
SCARCE = {  # words in errors: what is to be done
    "Too many open files": "Raise their number (ulimit -n), or give a smaller --num_workers.",
    "received 0 items of ancdata": "Raise the number of open files (ulimit -n), or give a smaller --num_workers.",
    "No space left on device": "Make room in shared memory (df /dev/shm), or give a smaller --num_workers.",
    "unable to allocate shared memory": "Make room in it (df /dev/shm), or give a smaller --num_workers.",
}
HINT = "With --num_workers 0 it is loaded in the main process, where a debugger sees it."
SIGNALS = {one.value: one.name for one in signal.Signals}  # most of the real-time signals have no name


def of_start(error: Exception) -> Exception:
    """Return the error for what starting the loading processes raised."""
    if isinstance(error, OSError):
        return LoadingError(f"No loading process could be started ({error}). Try a smaller --num_workers.")
    if "pickle" not in str(error):
        return error
    return UserError(
        f"The data set cannot be sent to loading processes: {error}. Define its classes and functions at the top of a "
        f"module, without lambda, or give --num_workers 0."
    )


def of_wait(error: Exception, workers: list[BaseProcess], fetcher: Any) -> Exception:
    """Return the error for what waiting for a batch raised: a process has died, something is scarce, or the same one.

    Args:
        error: of any kind, since a batch cannot be received from a dead process.
        workers: the processes.
        fetcher: the `data.dataloader.BatchFetcher`, which knows what each is loading.
    """
    for number, worker in enumerate(workers):
        worker.join(0.05)  # a process that is dying must be seen as dead
        if worker.is_alive():
            continue
        status = worker.exitcode  # the negative number of a signal
        name = SIGNALS.get(-status, f"signal {-status}")
        how = f"was ended by {name}" if status < 0 else f"ended by itself, with status {status},"
        where = "while it waited for work"
        if fetcher.loading_since(number):
            where = f"while it loaded {fetcher.noted_samples(number)}"
        return LoadingError(f"A loading process {how} {where}.\n{HINTS.get(name, HINT)}")
    for words, advice in SCARCE.items():
        if words in str(error):
            release(error)
            return LoadingError(f"Batches cannot be sent between processes: {words}. {advice}")
    return error


def release(error: Exception) -> None:
    """End the processes of a DataLoader's iterator that could not be made, and close its pipes.

    The frames of the error hold it, and while its files are open, the checkpoint of the run could not be written.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "__init__"]
    iterator = None
    for iterator in [frame.f_locals.get("self") for frame in frames]:
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown = True  # else its end would look for what was never made
            for worker in getattr(iterator, "_workers", ()):
                worker.kill()
                worker.join()
    error.__traceback__ = None
    frames = iterator = None
    gc.collect()  # its parts hold each other


def of_hang(timeout: float, workers: list[BaseProcess], fetcher: Any) -> LoadingError:
    """Return the error for batches that have not come for `timeout` seconds; see `of_wait`."""
    text = f"No data came for {timeout:g} seconds (--worker_timeout)"
    loading = [number for number in range(len(workers)) if fetcher.loading_since(number)]
    if not loading:
        return LoadingError(f"{text}, and no process is loading any: can the samples be sent between processes?")
    first = min(loading, key=fetcher.loading_since)
    seconds = (time.monotonic_ns() - fetcher.loading_since(first)) / 1e9
    return LoadingError(f"{text}: {fetcher.noted_samples(first)} has been loading for {seconds:.0f} seconds.\n{HINT}")


def of_collating(error: Exception, samples: Sequence[Any]) -> tuple[int | None, UserError]:
    """Return which of the samples is unlike the others, if one is, and the error for a batch that cannot be made."""
    forms = list(map(form_of, samples))
    usual = max(forms, key=forms.count)
    unlike = next((place for place, form in enumerate(forms) if form != usual), None)
    if unlike is None:
        why = f"A batch cannot be made of samples like this, {usual}: {' '.join(str(error).split())}"
    else:
        why = f"A sample is unlike the others of its batch: it is {forms[unlike]}, and they are {usual}."
    return unlike, UserError(f"{why} Let all be tensors, numbers or texts of one shape, or give a collate_fn.")


def form_of(sample: Any) -> str:
    """Describe a sample: the types in it, and the shapes of tensors and arrays.

    >>> import numpy as np
    >>> form_of((np.zeros((3, 8)), {"label": 1}))
    '(float64 (3, 8), {label: int})'
    """
    if hasattr(sample, "shape") and hasattr(sample, "dtype"):
        return f"{str(sample.dtype).removeprefix('torch.')} {tuple(sample.shape)}"
    if isinstance(sample, Mapping):
        return f"{{{', '.join(f'{key}: {form_of(value)}' for key, value in sample.items())}}}"
    if isinstance(sample, tuple | list):
        return f"({', '.join(map(form_of, sample))})"
    return type(sample).__name__
