"""A DataLoader that cannot fail in silence.

A loading process that is killed, crashes, raises or hangs ends the run in bounded time, and the message names the
sample. Samples that cannot be loaded are skipped and counted on request, see `data.loader.BadSamples`.
"""

import contextlib
import copy
import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data.fetcher import BatchFetcher, start_worker
from data.loader import BadSamples, Batch
from utils.errors import LoadingError

HINTS = {
    "SIGKILL": "Often the memory ran out: a smaller --num_workers needs less.",
    "SIGBUS": "Often the shared memory ran out (df /dev/shm): a smaller --num_workers needs less.",
}
HINT = "With --num_workers 0 it is loaded in the main process, where a debugger sees it."
POLL_SECONDS = 0.5  # DataLoader restarts its clock with each batch that arrives out of order, hence so short
ABANDONED: list[Any] = []  # iterators whose processes were killed, see `abandon`


class PollTimeout(Exception):
    """DataLoader did not have the next batch within one poll."""


class DataLoaderSource:
    """Loads the batches of a sampler with a DataLoader.

    Args:
        dataset: a map-style data set; its `names`, if there, are used in messages.
        sampler: a batch sampler: yields the indices of each batch, or pairs (epoch, index).
        num_workers: loading processes; with 0, data is loaded in the main process, and a crash or hang is not noticed.
        persistent: keep the processes from one iteration to the next; then iterate one at a time.
        pin_memory: put batches in page-locked memory, from which copies to a GPU can overlap with computing.
        worker_timeout: seconds to wait for a batch before the processes are taken to hang; 0 waits forever.
        bad: where samples that cannot be loaded are counted; raises at the first one by default.
        part: the name of the data set in messages, such as "train".
        seed: seed of the processes' own generators.

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
        self.fetcher = BatchFetcher(dataset, part, self.bad.limit > 0, num_workers)
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

    def first_good_sample(self, keys: Iterable) -> list:
        """Return [a batch of one sample], loaded in this process; [] when all are bad, or more than are allowed."""
        fetcher = copy.copy(self.fetcher)
        fetcher.notes = list(fetcher.notes)  # its own: the notes of a loading process stay as they are
        fetcher.skip_bad = True
        for key in keys:
            data, batch = fetcher.__getitems__([key])
            self.bad.add(batch.bad)
            if batch.num_samples:
                return [data]
            if len(self.bad) > self.bad.limit:
                break
        return []

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
        except OSError as error:
            raise LoadingError(f"No loading process could be started ({error}). Try a smaller --num_workers.") from None

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
        raise LoadingError(self.hang_message(workers))

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
            self.raise_if_dead(workers)  # a batch cannot be received from a dead process, with any kind of error
            raise

    def raise_if_dead(self, workers: list[BaseProcess]) -> None:
        """Raise LoadingError with the sample that a process was loading when it died."""
        for number, worker in enumerate(workers):
            worker.join(0.05)  # a process that is dying must be seen as dead
            if worker.is_alive():
                continue
            name = signal_name(-worker.exitcode) if worker.exitcode < 0 else ""
            how = f"was ended by {name}" if name else f"ended by itself, with status {worker.exitcode},"
            where = "while it waited for work"
            if self.fetcher.loading_since(number):
                where = f"while it loaded {self.fetcher.noted_samples(number)}"
            raise LoadingError(f"A loading process {how} {where}.\n{HINTS.get(name, HINT)}") from None

    def hang_message(self, workers: list[BaseProcess]) -> str:
        text = f"No data came for {self.worker_timeout:g} seconds (--worker_timeout)"
        loading = [number for number in range(len(workers)) if self.fetcher.loading_since(number)]
        if not loading:
            return f"{text}, and no process is loading any: can the samples be sent between processes?"
        first = min(loading, key=self.fetcher.loading_since)
        seconds = (time.monotonic_ns() - self.fetcher.loading_since(first)) / 1e9
        return f"{text}: {self.fetcher.noted_samples(first)} has been loading for {seconds:.0f} seconds.\n{HINT}"


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


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals, most of which have no name
        return f"signal {number}"
