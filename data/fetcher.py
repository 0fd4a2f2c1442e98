"""The code that runs in a loading process: it loads batches, names the sample that raises, and skips bad samples.

It notes in shared memory which samples it is loading. The main process reads the notes when a process dies or hangs,
see data/dataloader.py. A note costs about a microsecond; a data set with `__getitems__` needs one per batch.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import RawArray
from typing import Any

from torch.utils.data import Dataset, default_collate, get_worker_info

from data.loader import Batch
from utils.errors import UserError
from utils.seed import preserved_random_state

MOST_NOTED = 64  # samples of a batch that is loaded in one call
# A note of a process: since when (monotonic clock, in nanoseconds; 0: it waits for work), how many samples, and which.
NOTE_SIZE = 2 + MOST_NOTED


class BatchFetcher(Dataset):
    """Loads whole batches, and notes the samples that it is loading.

    Args:
        dataset: is asked by index, or by (epoch, index); in one call if it has `__getitems__`.
        part: the name of the data set in messages, such as "train".
        skip_bad: skip a sample that raises. MemoryError is not the sample's fault, and is raised.
        num_workers: how many processes note.
    """

    def __init__(self, dataset: Dataset, part: str = "", skip_bad: bool = False, num_workers: int = 0):
        self.dataset = dataset
        self.collate_fn = getattr(dataset, "collate_fn", None) or default_collate
        self.of_part = f" of the {part} part" if part else ""
        self.skip_bad = skip_bad
        self.notes = RawArray("q", max(num_workers, 1) * NOTE_SIZE)
        self.worker = 0  # the number of this process

    def __getitems__(self, keys: Sequence) -> tuple[Any, Batch]:
        """Return the collated data, and the batch that describes it."""
        batch = Batch([index for _, index in keys] if isinstance(keys[0], tuple) else list(keys))
        started = time.perf_counter()
        try:
            data = self.load(keys, batch)
            batch.seconds = time.perf_counter() - started
            return data, batch
        except UserError as error:  # DataLoader would turn it into a text with a traceback
            batch.error = type(error)(f"{error}\nThat is {self.noted_samples()}.")
            return None, batch
        except (StopIteration, SystemExit) as error:  # would end the epoch, or the process, without an error
            raise RuntimeError(f"{error!r} was raised while loading {self.noted_samples()}") from error
        except Exception as error:
            error.add_note(f"Raised while loading {self.noted_samples()}.")
            raise
        finally:
            self.notes[self.worker * NOTE_SIZE] = 0

    def load(self, keys: Sequence, batch: Batch) -> Any:
        if hasattr(self.dataset, "__getitems__"):
            samples = self.load_together(self.dataset.__getitems__, keys, batch)
        else:
            samples = []
            with preserved_random_state() if getattr(self.dataset, "is_seeded", False) else contextlib.nullcontext():
                for key, index in zip(keys, batch.indices, strict=True):
                    samples += self.load_one(self.dataset.__getitem__, key, index, batch)
        self.note(batch.indices)
        return self.collate_fn(samples) if batch.num_samples else None

    def load_together(self, get_batch: Callable[[Sequence], Any], keys: Sequence, batch: Batch) -> Any:
        """Load a batch in one call. If that raises, find the samples that raise."""
        self.note(batch.indices)
        try:
            return get_batch(keys)
        except MemoryError:
            raise
        except Exception:
            pass  # the samples are tried one by one below
        pairs = zip(keys, batch.indices, strict=True)
        good = [key for key, index in pairs if self.load_one(lambda one: get_batch([one]), key, index, batch)]
        self.note(batch.indices)
        return get_batch(good) if good else None

    def load_one(self, get: Callable[[Any], Any], key: Any, index: int, batch: Batch) -> list:
        """Return [sample], or [] when it is bad."""
        self.note([index])
        try:
            return [get(key)]
        except MemoryError:
            raise
        except Exception as error:
            if not self.skip_bad:
                raise
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            batch.bad[index] = f"{self.name(index)}: {reason}"
            return []

    def note(self, indices: list[int]) -> None:
        first = self.worker * NOTE_SIZE
        noted = indices[:MOST_NOTED]
        self.notes[first : first + 2 + len(noted)] = [time.monotonic_ns(), len(indices), *noted]

    # ---- read by the main process, too -------------------------------------------------------------------------------
    def loading_since(self, worker: int) -> int:
        """Return when a process began to load, in nanoseconds of the monotonic clock; 0 when it waits for work."""
        return self.notes[worker * NOTE_SIZE]

    def noted_samples(self, worker: int | None = None) -> str:
        """Return the samples that a process (None: this one) is loading, for a message."""
        first = (self.worker if worker is None else worker) * NOTE_SIZE
        count = self.notes[first + 1]
        indices = self.notes[first + 2 : first + 2 + min(count, MOST_NOTED)]
        if count == 1:
            return self.name(indices[0])
        more = f" and {count - MOST_NOTED} more" if count > MOST_NOTED else ""
        return f"one of {count} samples{self.of_part}: {', '.join(map(self.label, indices))}{more}"

    def name(self, index: int) -> str:
        """Return the name of a sample for a message."""
        label = self.label(index)
        where = self.of_part if label == str(index) else f" (index {index}{self.of_part})"
        return f"sample {label}{where}"

    def label(self, index: int) -> str:
        names = getattr(self.dataset, "names", None) or ()
        return repr(names[index]) if index < len(names) else str(index)


def start_worker(worker_id: int) -> None:
    """Set up a loading process: the `worker_init_fn` of the DataLoader."""
    # Signals to a process group, such as Ctrl-C, must not stop the loading: the main process finishes its update first.
    # The main process's reactions to signals were inherited and must not run here. SIGTERM stays as DataLoader set it:
    # the main process ends this one by it.
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()
    signal.set_wakeup_fd(-1)
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # The kernel kills this process when the main one (to be exact, its thread that loads) dies. DataLoader would only
    # look for it between two batches.
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        has_direct_parent = multiprocessing.get_start_method() != "forkserver"
        if has_direct_parent and os.getppid() != multiprocessing.parent_process().pid:
            os._exit(1)  # the main process has died before
    fetcher = get_worker_info().dataset
    fetcher.worker = worker_id
    fetcher.notes[worker_id * NOTE_SIZE] = 0
