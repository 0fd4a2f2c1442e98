"""A DataLoader that cannot fail in silence.

A loading process that is killed, crashes, raises or hangs ends the run in bounded time, and the message names the
sample. Samples that cannot be loaded are skipped and counted on request, see `data.sampler.BadSamples`.

The first half of this file runs in the main process. The second half runs in a loading process, and notes in shared
memory which samples it is loading. The main process reads the notes when a process dies or hangs. A note costs about a
microsecond; a data set with `__getitems__` needs one per batch.
"""

import contextlib
import ctypes
import itertools
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from data.sampler import BadSamples, Batch, may_be_random, sample_names
from engine.registry import load
from utils.errors import LoadingError, UserError
from utils.seed import mix, preserved_random_state, seed_cpu

POLL_SECONDS = 0.5  # DataLoader restarts its clock with each batch that arrives out of order, hence so short
ABANDONED: list[Any] = []  # iterators whose processes were killed, see `abandon`
ERRORS = "extras.loading_errors"
COLLATE = 1  # makes the seed of `collate_fn` another one than that of a sample
MOST_NOTED = 64  # samples of a batch that is loaded in one call
# A note of a process: since when (monotonic clock, in nanoseconds; 0: it waits for work), how many samples, and which.
NOTE_SIZE = 2 + MOST_NOTED


class PollTimeout(Exception):
    """DataLoader did not have the next batch within one poll."""


class DataLoaderSource:
    """Loads the batches of a sampler with a DataLoader.

    Args:
        dataset: a map-style data set, see `BatchFetcher`.
        sampler: a batch sampler: yields the epoch and the indices of each batch.
        num_workers: loading processes; with 0, data is loaded in the main process, and a crash or hang is not noticed.
        persistent: keep the processes from one iteration to the next; then iterate one at a time.
        pin_memory: put batches in page-locked memory, from which copies to a GPU can overlap with computing.
        worker_timeout: seconds to wait for a batch before the processes are taken to hang; 0 waits forever.
        bad: where samples that cannot be loaded are counted; raises at the first one by default.
        part: the name of the data set in messages, such as "train".
        seed: seed of what is random in a sample, and of the processes' own generators.

    Raises, on iterating:
        LoadingError: a process died or hangs.
        UserError: there are more bad samples than allowed, or the data set raised it.
        Exception: any other error of the data set, with a note that names the sample, or of `interrupt`.
        In each case the processes are killed, and a source with persistent ones cannot be used again.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Iterable,
        *,
        num_workers: int = 0,
        persistent: bool = False,
        pin_memory: bool = False,
        worker_timeout: float = 300,
        bad: BadSamples | None = None,
        part: str = "",
        seed: int = 0,
    ):
        self.worker_timeout = worker_timeout if num_workers else 0
        # Polls are counted, not seconds, and there are at least two: when the whole job was halted (SIGSTOP) during
        # one of them, no process hangs.
        self.num_polls = max(2, math.ceil(self.worker_timeout / POLL_SECONDS))
        self.bad = BadSamples() if bad is None else bad
        self.fetcher = BatchFetcher(dataset, seed, part, self.bad.limit > 0, num_workers)
        if num_workers:
            load(f"{ERRORS}:of_wait", "num_workers")  # where no more files can be opened, it could not be imported
        self.settings = {
            "batch_sampler": sampler,
            "collate_fn": as_it_is,
            "num_workers": num_workers,
            "persistent_workers": persistent and num_workers > 0,
            "pin_memory": pin_memory,
            "timeout": (self.worker_timeout / self.num_polls or POLL_SECONDS) if num_workers else 0,
            "worker_init_fn": start_worker,
            "generator": torch.Generator().manual_seed(seed),  # else each iteration draws from the global generator
        }
        self.loader = self.make_loader()

    def make_loader(self) -> DataLoader:
        return DataLoader(self.fetcher, **self.settings)

    @property
    def workers(self) -> list[BaseProcess]:
        """The persistent loading processes."""
        return workers_of(self.loader._iterator)

    def batches(self, interrupt: Callable[[], None] = lambda: None) -> Iterator[Batch]:
        """Yield every batch, including those without a good sample.

        Args:
            interrupt: called about twice a second while batches are waited for; may raise, to stop. Without loading
                processes, only between two batches.
        """
        iterator = self.start()
        self.polled = time.monotonic()
        try:
            for _ in range(len(self.loader)):
                data, batch = self.fetch(iterator, interrupt)
                if batch.error is not None:
                    raise batch.error
                batch.data = data
                self.bad.add(batch.bad)
                yield batch
                del data, batch  # so that its memory is free while the next one is waited for
        except GeneratorExit:
            raise
        except BaseException:
            abandon(iterator)
            raise
        next(iterator, None)  # ends the processes, unless they are persistent

    def start(self) -> Iterator:
        """Return a new iterator, with new processes, or with the persistent ones if they are free."""
        try:
            with without_child_handler():
                return self.ask(lambda: iter(self.loader), self.workers)
        except LoadingError:
            abandon(self.loader._iterator)
            raise
        except PollTimeout:  # the processes still load for an iteration that was left
            abandon(self.loader._iterator)
            self.loader = self.make_loader()
            return self.start()
        except (OSError, pickle.PicklingError, AttributeError, TypeError) as error:
            raise explained("of_start", error) from None

    def fetch(self, iterator: Iterator, interrupt: Callable[[], None]) -> tuple[Any, Batch]:
        """Return the next batch, and call `interrupt` now and then until it comes."""
        workers = workers_of(iterator)
        for _ in range(self.num_polls) if self.worker_timeout else itertools.count():
            if time.monotonic() - self.polled >= POLL_SECONDS:
                interrupt()
                self.polled = time.monotonic()
            try:
                return self.ask(lambda: next(iterator), workers)
            except PollTimeout:
                pass  # DataLoader has taken nothing: the next poll waits for the same batch
        raise explained("of_hang", self.worker_timeout, workers, self.fetcher)

    def close(self) -> None:
        """End the persistent loading processes. They start again when batches are asked for.

        Left to the garbage collector, an iterator waits five seconds for each process: its queues are closed first.
        """
        iterator = self.loader._iterator
        if not workers_of(iterator):
            return
        if iterator._tasks_outstanding:  # left within an epoch; a process may be busy for long
            abandon(iterator)
        else:
            iterator._shutdown_workers()
        self.loader = self.make_loader()

    def ask(self, call: Callable[[], Any], workers: list[BaseProcess]) -> Any:
        """Return ``call()``, which asks DataLoader for something.

        Raises:
            PollTimeout: DataLoader did not have it in time.
            LoadingError: one of the processes died.
        """
        try:
            return call()
        except Exception as error:
            if not self.loader.num_workers:
                raise
            if str(error).startswith("DataLoader timed out"):  # raised after DataLoader has looked for dead processes
                raise PollTimeout from None
            raise explained("of_wait", error, workers, self.fetcher) from None


def explained(function: str, *arguments: Any) -> Any:
    """Return the error that a function of extras/loading_errors.py makes of what has failed."""
    return load(f"{ERRORS}:{function}", "num_workers")(*arguments)


def as_it_is(fetched: Any) -> Any:
    """The collate function of a DataLoader whose data set returns whole batches; spawned processes can import it."""
    return fetched


def workers_of(iterator: Any) -> list[BaseProcess]:
    return getattr(iterator, "_workers", [])


def abandon(iterator: Any) -> None:
    """Kill the processes of an iterator, and keep it until the program ends.

    Deleting it would wait five seconds for each process, for locks and messages that never come.
    """
    for worker in workers_of(iterator):
        worker.kill()
    ABANDONED.append(iterator)


@contextlib.contextmanager
def without_child_handler() -> Iterator[None]:
    """Run a block in which DataLoader starts processes, and remove its handler of SIGCHLD afterwards.

    That handler raises wherever the main process is, such as in the middle of an optimizer step.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    is_of_torch = str(getattr(before, "__module__", "")).startswith("torch.")
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None or is_of_torch else before)


# ---- in a loading process --------------------------------------------------------------------------------------------
class BatchFetcher(Dataset):
    """Loads whole batches, and notes the samples that it is loading.

    What is random in a sample is a function of (seed, epoch, index), and what is random in `collate_fn` one of (seed,
    epoch, first index), in whatever process they are loaded. The generators are as before afterwards.

    Args:
        dataset: is asked by index; for whole batches if it has `__getitems__(indices)`, and `seeded_items(indices,
            epoch, seed)` if its samples may be random, see `data.sampler.may_be_random`.
        seed: of the random numbers.
        part: the name of the data set in messages, such as "train".
        skip_bad: skip a sample that raises. MemoryError is not the sample's fault, and is raised.
        num_workers: how many processes note.
    """

    def __init__(self, dataset: Dataset, seed: int = 0, part: str = "", skip_bad: bool = False, num_workers: int = 0):
        self.dataset = dataset
        self.seed = seed
        self.is_random = may_be_random(dataset)
        self.collate_fn = getattr(dataset, "collate_fn", None) or default_collate
        self.of_part = f" of the {part} part" if part else ""
        self.skip_bad = skip_bad
        self.notes = RawArray("q", max(num_workers, 1) * NOTE_SIZE)
        self.worker = 0  # the number of this process

    def __getitems__(self, wanted: tuple[int, Sequence[int]]) -> tuple[Any, Batch]:
        """Return the collated data of an epoch's samples, and the batch that describes it."""
        epoch, indices = wanted
        batch = Batch(indices)
        started = time.perf_counter()
        try:
            data = self.load(epoch, batch)
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

    def load(self, epoch: int, batch: Batch) -> Any:
        """Return the collated samples of a batch; None if there is no good one."""
        get_batch = getattr(self.dataset, "seeded_items" if self.is_random else "__getitems__", None)
        with preserved_random_state() if self.is_random else contextlib.nullcontext():
            if get_batch is None:
                samples: Any = []
                for index in batch.indices:
                    samples += self.load_one(lambda one: self.sample(epoch, one), index, batch)
            else:
                get = partial(get_batch, epoch=epoch, seed=self.seed) if self.is_random else get_batch
                samples = self.load_together(get, batch)
        self.note(batch.indices)
        if not batch.num_samples:
            return None
        if self.collate_fn is default_collate:
            return self.collated(samples, batch.loaded)
        with preserved_random_state():
            seed_cpu(mix(self.seed, epoch, batch.indices[0], COLLATE))
            return self.collate_fn(samples)

    def collated(self, samples: list, indices: Sequence[int]) -> Any:
        """Return the batch of samples; UserError that names the one that is unlike the others."""
        try:
            return default_collate(samples)
        except (TypeError, ValueError, LookupError, RuntimeError, AttributeError) as error:
            unlike, explanation = explained("of_collating", error, samples)
            if unlike is not None:
                self.note([indices[unlike]])
            raise explanation from None

    def sample(self, epoch: int, index: int) -> Any:
        if self.is_random:
            seed_cpu(mix(self.seed, epoch, index))
        return self.dataset[index]

    def load_together(self, get_batch: Callable[[Sequence[int]], Any], batch: Batch) -> Any:
        """Load a batch in one call. If that raises, find the samples that raise."""
        self.note(batch.indices)
        try:
            return get_batch(batch.indices)
        except MemoryError:
            raise
        except Exception:
            pass  # the samples are tried one by one below
        good = [index for index in batch.indices if self.load_one(lambda one: get_batch([one]), index, batch)]
        self.note(batch.indices)
        return get_batch(good) if good else None

    def load_one(self, get: Callable[[int], Any], index: int, batch: Batch) -> list:
        """Return [sample], or [] when it is bad."""
        self.note([index])
        try:
            return [get(index)]
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
        index %= getattr(self.dataset, "num_distinct", len(self.dataset))  # one that comes again has a larger index
        label = self.label(index)
        where = self.of_part if label == str(index) else f" (index {index}{self.of_part})"
        return f"sample {label}{where}"

    def label(self, index: int) -> str:
        name = sample_names(self.dataset)[index]
        return repr(name) if isinstance(name, str) else str(name)


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
