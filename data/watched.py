"""What runs in the loading processes: it notes which sample it is at, names what raises, and leaves out bad samples.

The main process looks at the notes, which are in shared memory, when a batch does not come (see data/loader.py). A note
costs about a microsecond; a data set with `__getitems__` needs one per batch.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import RawArray
from typing import Any

from torch.utils.data import Dataset, get_worker_info

from utils.errors import UserError
from utils.seed import preserved_random_state

MOST_NOTED = 64  # samples of a batch that is loaded in one go
# A note: process, since when (monotonic clock, in nanoseconds; 0: waits for work), how many samples, and which.
NOTE_SIZE = 3 + MOST_NOTED


@dataclass
class Batch:
    """What came of a request for samples.

    Attributes:
        indices: the samples that were asked for, in order.
        bad: those that could not be loaded, with the reason; they are not in `data`.
        data: the collated batch; None when all samples are bad.
        error: what ends the run instead.
        seconds: how long it was loaded and collated, in the process that did it.
    """

    indices: list[int]
    bad: dict[int, str] = field(default_factory=dict)
    data: Any = None
    error: UserError | None = None
    seconds: float = 0.0

    @property
    def given(self) -> list[int]:
        """The samples in `data`, in order."""
        return [index for index in self.indices if index not in self.bad] if self.bad else self.indices

    @property
    def num_samples(self) -> int:
        """The number of samples in `data`."""
        return len(self.given)


class WatchedDataset(Dataset):
    """Loads whole batches, and notes what it is at. Runs in the loading processes.

    Args:
        dataset: is asked by index, or by (epoch, index); in one go if it has `__getitems__`.
        collate_fn: makes a batch of samples, or of what `__getitems__` returned.
        part: what to call the data set in messages, such as "train".
        skip_bad: leave out a sample that raises. A lack of memory is not the sample's fault, and is raised.
        num_workers: how many processes will note.
    """

    def __init__(self, dataset: Dataset, collate_fn: Callable, part: str, skip_bad: bool, num_workers: int):
        self.dataset = dataset
        self.collate_fn = collate_fn
        self.of_part = f" of the {part} part" if part else ""
        self.skip_bad = skip_bad
        self.notes = RawArray("q", max(num_workers, 1) * NOTE_SIZE)
        self.place = 0  # of this process in the notes

    def __getitems__(self, keys: Sequence) -> tuple[Any, Batch]:
        """Return the collated batch, and what is to be told of it."""
        batch = Batch([index for _, index in keys] if isinstance(keys[0], tuple) else list(keys))
        began = time.perf_counter()
        try:
            data = self.load(keys, batch)
            batch.seconds = time.perf_counter() - began
            return data, batch
        except UserError as error:  # travels as it is; DataLoader would make it a text with a traceback in it
            batch.error = type(error)(f"{error}\nThat is {self.noted()}.")
            return None, batch
        except (StopIteration, SystemExit) as error:  # would end the epoch, or the process, as if all were well
            raise RuntimeError(f"{error!r} was raised while loading {self.noted()}") from error
        except Exception as error:
            error.add_note(f"Raised while loading {self.noted()}.")
            raise
        finally:
            self.notes[self.place + 1] = 0

    def load(self, keys: Sequence, batch: Batch) -> Any:
        if hasattr(self.dataset, "__getitems__"):
            samples = self.load_whole(self.dataset.__getitems__, keys, batch)
        else:
            samples = []
            with preserved_random_state() if getattr(self.dataset, "is_seeded", False) else contextlib.nullcontext():
                for key, index in zip(keys, batch.indices, strict=True):
                    samples += self.load_one(self.dataset.__getitem__, key, index, batch)
        self.note(batch.indices)
        return self.collate_fn(samples) if batch.given else None

    def load_whole(self, get_batch: Callable[[Sequence], Any], keys: Sequence, batch: Batch) -> Any:
        """Load a batch in one go, and when that raises, find out for which of its samples."""
        self.note(batch.indices)
        try:
            return get_batch(keys)
        except MemoryError:
            raise
        except Exception:
            pass  # whose is it?
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
            batch.bad[index] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            return []

    def note(self, indices: list[int]) -> None:
        noted = indices[:MOST_NOTED]
        self.notes[self.place + 1 : self.place + 3 + len(noted)] = [time.monotonic_ns(), len(indices), *noted]

    def noted(self, place: int | None = None) -> str:
        """The samples that the process at this place of the notes is at, for a message."""
        place = self.place if place is None else place
        count = self.notes[place + 2]
        indices = self.notes[place + 3 : place + 3 + min(count, MOST_NOTED)]
        if count == 1:
            return self.name(indices[0])
        more = f" and {count - MOST_NOTED} more" if count > MOST_NOTED else ""
        return f"one of {count} samples{self.of_part}: {', '.join(map(self.label, indices))}{more}"

    def name(self, index: int) -> str:
        """What to call a sample in a message."""
        label = self.label(index)
        where = self.of_part if label == str(index) else f" (index {index}{self.of_part})"
        return f"sample {label}{where}"

    def label(self, index: int) -> str:
        names = getattr(self.dataset, "names", None) or ()
        return repr(names[index]) if index < len(names) else str(index)


def start_worker(worker_id: int) -> None:
    """Set up a loading process, as `worker_init_fn`."""
    # Signals to a process group, such as Ctrl-C, do not take the loading from under the main process, which finishes
    # its update first. What that one does on a signal was inherited and must not happen here. SIGTERM stays as
    # DataLoader set it: it is how the main process ends this one.
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()
    signal.set_wakeup_fd(-1)
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # The kernel kills this process when the main one (to be exact, its thread that loads) dies. By itself it would look
    # only between two batches.
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        has_direct_parent = multiprocessing.get_start_method() != "forkserver"
        if has_direct_parent and os.getppid() != multiprocessing.parent_process().pid:
            os._exit(1)  # it was dead before
    dataset = get_worker_info().dataset
    dataset.place = worker_id * NOTE_SIZE
    dataset.notes[dataset.place : dataset.place + 2] = os.getpid(), 0
