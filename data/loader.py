"""A DataLoader that cannot fail in silence.

A loading process that is killed, crashes, raises or hangs ends the run in bounded time, and the message names the
sample. On request, samples that cannot be loaded are left out of their batches, named and counted.
"""

import itertools
import math
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from data.watched import NOTE_SIZE, Batch, WatchedDataset, start_worker
from utils.errors import LoadingError, UserError

HINTS = {
    "SIGKILL": "Often the memory ran out: a smaller --num_workers needs less.",
    "SIGBUS": "Often the shared memory ran out (df /dev/shm): a smaller --num_workers needs less.",
}
HINT = "With --num_workers 0 it is loaded in the main process, where a debugger sees it."
LOOK_EVERY = 0.5  # seconds; DataLoader's clock starts anew with each batch that comes before its turn, hence so short
ABANDONED: list[Any] = []  # iterators whose processes were killed, see `abandon`


class TimedOut(Exception):
    """What DataLoader was asked for did not come in the time of one look."""


def as_it_is(batch: Any) -> Any:
    return batch


def set_child_handler(handler: Any) -> Any:
    """Set what SIGCHLD does and return what it did; without effect where only polling can tell of a death."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return None
    before = signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
    # DataLoader's own handler raises wherever the main process is, such as in the middle of an optimizer's step.
    return signal.SIG_DFL if str(getattr(before, "__module__", "")).startswith("torch.") else before


def abandon(workers: list[BaseProcess], iterator: Any) -> None:
    """Kill processes, and leave their iterator to the end of the program.

    DataLoader would end it by locks, which those that were killed may hold, and by messages that do not arrive when it
    is deleted by the garbage collector: five seconds for each process.
    """
    for worker in workers:
        worker.kill()
    ABANDONED.append(iterator)


class WatchedLoader:
    """Loads batches; iterating gives the data alone, `batches` also tells what is in it.

    Args:
        dataset: a map-style data set; its `names`, if there, are used in messages.
        batch_sampler: gives the keys of each batch: indices, or pairs (epoch, index). Has a length.
        collate_fn: how samples become a batch; None for torch's default.
        num_workers: loading processes; 0 loads in this one, where nothing can be done about a crash or hang.
        persistent: keep the processes from one iteration to the next; then iterate one at a time.
        pin_memory: put batches in page-locked memory, from which copies to a GPU can overlap with computing.
        worker_timeout: seconds to wait for a batch before the processes are taken to hang; 0 waits for ever.
        max_bad_samples: leave out up to so many different samples that raise when loaded; 0 raises at once.
        part: what to call the data set in messages, such as "train".
        seed: seed of the processes' own generators.

    Attributes:
        bad: the samples that could not be loaded, by index, with the reason.
        is_alone: whether too many bad samples end the run at once; False when other processes load other samples of the
            same part, and all are to be counted together: see `unite_bad` and `num_given`.
        report: a line for the log on how the data is loaded; "" at first.
        warn: is told of each of them once.
        interrupt: called about twice a second while batches are waited for; may raise, to stop. With no processes, only
            between two batches.

    Raises, on iterating:
        LoadingError: a process died or hangs.
        UserError: there are more bad samples than allowed, or the data set raised it.
        Exception: what else the data set raised, with a note that names the sample, or what
            `interrupt` raised.
        In each case the processes are killed, and a loader with persistent ones cannot be used again.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_sampler: Iterable,
        *,
        collate_fn: Callable | None = None,
        num_workers: int = 0,
        persistent: bool = False,
        pin_memory: bool = False,
        worker_timeout: float = 300,
        max_bad_samples: int = 0,
        part: str = "",
        seed: int = 0,
    ):
        self.dataset = dataset
        self.sampler = getattr(batch_sampler, "sampler", batch_sampler)
        self.worker_timeout = worker_timeout if num_workers else 0
        # Looks are counted, not seconds, and there are at least two: when the whole job was halted (SIGSTOP) during
        # one, nobody is to blame.
        self.num_looks = max(2, math.ceil(self.worker_timeout / LOOK_EVERY))
        self.max_bad_samples = max_bad_samples
        self.part = part
        self.is_alone = True
        self.bad: dict[int, str] = {}
        self.report = ""
        self.warn: Callable[[str], Any] = lambda message: print(message, file=sys.stderr)
        self.interrupt: Callable[[], Any] = lambda: None
        self.looked = 0.0  # when it was last called
        self.watched = WatchedDataset(dataset, collate_fn or default_collate, part, max_bad_samples > 0, num_workers)
        self.workers: list[BaseProcess] = []  # the persistent ones
        self.new_loader = partial(
            DataLoader,
            self.watched,
            batch_sampler=batch_sampler,
            collate_fn=as_it_is,
            num_workers=num_workers,
            persistent_workers=persistent and num_workers > 0,
            pin_memory=pin_memory,
            timeout=(self.worker_timeout / self.num_looks or LOOK_EVERY) if num_workers else 0,
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(seed),  # else each iteration draws from the global generator
        )
        self.loader = self.new_loader()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return (batch.data for batch in self.batches() if batch.given)

    @property
    def num_samples(self) -> int:
        """Samples that one pass asks for; those in `bad` are among them, but not given."""
        return len(self.sampler)

    @property
    def num_bad(self) -> int:
        """Samples that turned out to be bad up to now."""
        return len(self.bad)

    def state_dict(self) -> dict[str, str]:
        return {str(index): reason for index, reason in self.bad.items()}

    def load_state_dict(self, state: dict[str, str]) -> None:
        self.bad = {int(index): reason for index, reason in state.items()}

    def batches(self) -> Iterator[Batch]:
        """Yield every batch, those without a good sample included."""
        iterator, workers = self.start()
        self.looked = time.monotonic()
        try:
            for _ in range(len(self.loader)):
                data, batch = self.fetch(iterator, workers)
                if batch.error is not None:
                    raise batch.error
                batch.data = data
                self.count(batch.bad)
                yield batch
                del data, batch  # so that its memory is free while the next one is waited for
        except GeneratorExit:
            raise
        except BaseException:
            abandon(workers, iterator)
            raise
        next(iterator, None)  # the processes end here, if they are not persistent: no death to be reported

    def count(self, bad: dict[int, str]) -> None:
        """Tell of the samples that were not known to be bad."""
        for index in [index for index in bad if index not in self.bad]:
            self.bad[index] = bad[index]
            if len(self.bad) <= self.max_bad_samples:
                number = f"bad sample {len(self.bad)} of {self.max_bad_samples} allowed"
                self.warn(f"Left out {self.watched.name(index)}, {number}: {bad[index]}")
            elif self.is_alone:
                self.refuse(index)

    def refuse(self, index: int) -> None:
        """End the run, since there are too many bad samples, of which this is the last."""
        raise UserError(
            f"{len(self.bad)} samples cannot be loaded, but --skip_bad_samples allows {self.max_bad_samples}. "
            f"The last is {self.watched.name(index)}: {self.bad[index]}"
        )

    def unite_bad(self, gather: Callable[[Any], list[Any]]) -> None:
        """Count the samples that turned out to be bad in other processes, too; to be called by all of them.

        Args:
            gather: returns what the processes give it, in the order of their ranks.

        Raises:
            UserError: in all of them, when these are too many.
        """
        for bad in gather(self.bad) if self.max_bad_samples else ():
            self.count(bad)
        if len(self.bad) > self.max_bad_samples:
            self.refuse(max(self.bad))

    def start(self) -> tuple[Iterator, list[BaseProcess]]:
        """Return a new iterator and its processes: new ones, or the persistent ones if they are free."""
        before = set(multiprocessing.active_children())
        try:
            iterator = self.ask(lambda: iter(self.loader), self.workers)
        except LoadingError:
            abandon(self.workers, self.loader)
            raise
        except TimedOut:  # still at what an iteration that was left had asked for; DataLoader cannot be asked again
            abandon(self.workers, self.loader)
            self.loader, self.workers = self.new_loader(), []
            return self.start()
        except OSError as error:
            raise LoadingError(f"No loading process could be started ({error}). Try a smaller --num_workers.") from None
        workers = [child for child in multiprocessing.active_children() if child not in before] or self.workers
        if self.loader.persistent_workers:
            self.workers = workers
        return iterator, workers

    def fetch(self, iterator: Iterator, workers: list[BaseProcess]) -> Any:
        """Return the next batch. While it does not come, `interrupt` is called now and then."""
        for _ in range(self.num_looks) if self.worker_timeout else itertools.count():
            if time.monotonic() - self.looked >= LOOK_EVERY:
                self.interrupt()
                self.looked = time.monotonic()
            try:
                return self.ask(lambda: next(iterator), workers)
            except TimedOut:
                pass  # nothing was taken: asked again, DataLoader waits for the same batch
        raise LoadingError(self.hang_message(workers))

    def ask(self, call: Callable[[], Any], workers: list[BaseProcess]) -> Any:
        """Return call(). While it waits, and only then, the death of a process is reported, at once.

        Args:
            call: asks DataLoader for something.
            workers: the processes that must not die.

        Raises:
            TimedOut: DataLoader did not have it in time.
        """
        if not self.loader.num_workers:
            return call()
        earlier = set_child_handler(lambda *_: self.raise_if_dead(workers))
        try:
            self.raise_if_dead(workers)
            return call()
        except Exception as error:  # the data set's, or because a batch cannot be had from the dead
            if str(error).startswith("DataLoader timed out"):  # after a look at each process
                raise TimedOut from None
            for worker in workers:
                worker.join(0.05)  # who is dying shall be dead
            self.raise_if_dead(workers)
            raise
        finally:
            set_child_handler(earlier)

    def raise_if_dead(self, workers: list[BaseProcess]) -> None:
        """Raise LoadingError if one of the processes ended, with its sample."""
        dead = next((worker for worker in workers if not worker.is_alive()), None)
        if dead is None:
            return
        name = signal_name(-dead.exitcode) if dead.exitcode < 0 else ""
        how = f"was ended by {name}" if name else f"ended by itself, with status {dead.exitcode},"
        place = self.places().get(dead.pid)
        if place is None:
            where = "before it began to load"
        elif self.watched.notes[place + 1]:
            where = f"while it loaded {self.watched.noted(place)}"
        else:
            where = "while it waited for work"
        raise LoadingError(f"A loading process {how} {where}.\n{HINTS.get(name, HINT)}") from None

    def hang_message(self, workers: list[BaseProcess]) -> str:
        pids = {worker.pid for worker in workers}
        since = {place: self.watched.notes[place + 1] for pid, place in self.places().items() if pid in pids}
        since = {place: start for place, start in since.items() if start}
        text = f"No data came for {self.worker_timeout:g} seconds (--worker_timeout)"
        if not since:
            return f"{text}, and no process is loading any: can what the data set gives be sent between processes?"
        place = min(since, key=since.get)
        seconds = (time.monotonic_ns() - since[place]) / 1e9
        return f"{text}: {self.watched.noted(place)} has been loading for {seconds:.0f} seconds.\n{HINT}"

    def places(self) -> dict[int, int]:
        """Where in the notes each process writes, by its number."""
        return {self.watched.notes[place]: place for place in range(0, len(self.watched.notes), NOTE_SIZE)}


def num_given(loader: Any, totals: Callable[..., tuple[int, ...]] = lambda *counts: counts) -> int:
    """How many samples a pass over a loader gave, in all processes.

    Args:
        loader: any iterable; one that does not tell how many samples it has counts as none.
        totals: returns the sums of numbers over all processes.

    Raises:
        UserError: when too many samples of all processes together are bad, or none is good.
    """
    asked, bad = totals(getattr(loader, "num_samples", 0), getattr(loader, "num_bad", 0))
    if bad > (most := getattr(loader, "max_bad_samples", bad)):
        raise UserError(f"{bad:,} samples cannot be loaded, but --skip_bad_samples allows {most:,}.")
    if bad and bad == asked:
        raise UserError(f"None of the {bad:,} samples to evaluate can be loaded: there is nothing to measure.")
    return asked - bad


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals, most of which have no name
        return f"signal {number}"
