"""A loading process that dies, raises or hangs ends the run in bounded time with the sample's name; bad samples can be
left out."""

import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import active_children

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from data.dataloader import DataLoaderSource
from data.loader import EvalLoader, UpdateLoader
from data.sampler import BadSamples, epoch_order, may_be_random
from tests import fork_server
from utils.errors import LoadingError, UserError

pytestmark = pytest.mark.clock

NUM_SAMPLES = 24
FAULTY = 7  # in the order of evaluation: in the second batch of 4
PROMPT = 5  # seconds; DataLoader alone would look for the dead only so often, and wait as long for each that hangs

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's signals and /proc")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_later():
    time.sleep(0.5)
    kill()


def crash():
    ctypes.string_at(0)


def end():
    os._exit(3)


def leave():
    raise SystemExit(0)


def stop_iteration():
    next(iter([]))


def hang():
    while True:
        time.sleep(60)


def refuse():
    raise UserError("The file cannot be read.")


def fail():
    raise KeyError("label")


def lack_memory():
    raise MemoryError


class Numbers(Dataset):
    """A sample is its index; faulty samples cause the given fault instead."""

    is_random = False

    def __init__(self, fault=None, faulty=(FAULTY,), num_samples=NUM_SAMPLES):
        self.names = [f"number_{index}" for index in range(num_samples)]
        self.fault = fault
        self.faulty = set(faulty)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        if index in self.faulty and self.fault:
            self.fault()
        return torch.tensor(index)


class BatchedNumbers(Numbers):
    """Loads whole batches."""

    def __getitems__(self, indices):
        return torch.stack([self[index] for index in indices])

    @staticmethod
    def collate_fn(batch):
        return batch


class RandomNumbers(Numbers):
    """A sample is its index and a random number."""

    is_random = True

    def __getitem__(self, index):
        return torch.stack([super().__getitem__(index).double(), torch.rand((), dtype=torch.float64)])


def loader_of(dataset, num_workers=2, batch_size=4, **settings) -> EvalLoader:
    return EvalLoader(dataset, batch_size, num_workers=num_workers, part="val", **settings)


def seconds_until(error: type[Exception], loader, match: str) -> float:
    """Iterate until the error; return how long that took, the way out of it included."""
    started = time.perf_counter()
    with pytest.raises(error, match=match) as caught:
        list(loader)
    del caught
    gc.collect()  # DataLoader ends its processes when its iterator is deleted
    return time.perf_counter() - started


def left_running() -> list[multiprocessing.Process]:
    """Return the loading processes that go on; one that was killed takes a moment to end."""
    children = active_children()
    for child in children:
        child.join(2)
    return [child for child in children if child.is_alive()]


# ---- a process that dies ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("dataset", "fault", "told"),
    [
        (Numbers, kill, "was ended by SIGKILL while it loaded.*memory ran out"),
        (RandomNumbers, crash, "was ended by SIGSEGV while it loaded.*--num_workers 0"),
        (BatchedNumbers, end, "ended by itself, with status 3, while it loaded"),
    ],
)
def test_a_process_that_dies_is_reported_at_once_with_its_sample(dataset, fault, told):
    before = signal.SIG_DFL
    signal.signal(signal.SIGCHLD, before)  # a plain DataLoader of another test leaves its own handler
    sample = "sample 'number_7' \\(index 7 of the val part\\)"
    if dataset is BatchedNumbers:
        sample = "one of 4 samples of the val part: 'number_4', 'number_5', 'number_6', 'number_7'"
    told = f"(?s){told.replace('loaded', f'loaded {sample}', 1)}"
    assert seconds_until(LoadingError, loader_of(dataset(fault)), told) < PROMPT
    assert signal.getsignal(signal.SIGCHLD) == before
    assert not left_running()


def test_a_death_between_two_batches_is_reported_where_the_next_one_is_fetched():
    class Listed(Numbers):
        collate_fn = staticmethod(list)

        def __getitem__(self, index):
            return index  # no tensor, which could not be had from the dead: what is prefetched still comes

    loader = UpdateLoader(Listed(), 4, num_workers=1)
    updates = loader.updates(0)
    next(updates)
    (worker,) = loader.source.workers
    time.sleep(0.5)  # what is prefetched is there
    worker.kill()
    worker.join()  # SIGCHLD is here by now, and raised nothing
    with pytest.raises(LoadingError, match="SIGKILL while it waited for work"):
        list(updates)
    with pytest.raises(LoadingError, match="SIGKILL"):  # nor does the next epoch wait for the dead
        next(loader.updates(1))


def test_torch_alone_would_report_a_death_anywhere(monkeypatch):
    """The fault planted: DataLoader's own handler, which raises in the midst of what the main process does."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.getsignal(signal.SIGCHLD)
    stream = loader_of(Numbers(kill, [19]), num_workers=1, batch_size=6).batches()
    next(stream)
    assert signal.getsignal(signal.SIGCHLD) == before
    with contextlib.suppress(LoadingError):
        list(stream)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    try:
        batches = iter(DataLoader(Numbers(kill_later, [19]), 6, num_workers=1, prefetch_factor=4))
        next(batches)
        with pytest.raises(RuntimeError, match="is killed by signal"):
            time.sleep(5)  # the update under way
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_processes_that_end_because_all_is_loaded_are_no_deaths():
    for _ in range(3):
        assert torch.cat(list(loader_of(Numbers()))).tolist() == list(range(NUM_SAMPLES))
    loader = loader_of(Numbers())
    for outer in loader:  # two passes at once
        assert len(list(loader)) == len(loader) == 6
        assert len(outer) == 4


def test_a_thread_other_than_the_main_one_can_load():
    found = []
    thread = threading.Thread(target=lambda: found.extend(torch.cat(list(loader_of(Numbers()))).tolist()))
    thread.start()
    thread.join(60)
    assert found == list(range(NUM_SAMPLES))


# ---- a process that hangs --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dataset", [Numbers, BatchedNumbers])
def test_a_process_that_hangs_is_killed_and_its_sample_named(dataset):
    loader = loader_of(dataset(hang), worker_timeout=2)
    told = r"No data came for 2 seconds \(--worker_timeout\): .*'number_7'.* has been loading for \d seconds"
    assert 2 <= seconds_until(LoadingError, loader, told) < 4
    assert not left_running()


def test_of_two_that_hang_the_one_that_began_first_is_named():
    class Hanging(Numbers):
        def __getitem__(self, index):
            time.sleep(1 if index == 1 else 60)
            return torch.tensor(index)

    loader = DataLoaderSource(Hanging(), [(0, [0]), (0, [1, 2])], num_workers=2, worker_timeout=3).batches()
    assert seconds_until(LoadingError, loader, "number_0'") < 3 + PROMPT


class Slow(RandomNumbers):
    """Takes the given number of seconds for each sample."""

    def __init__(self, seconds):
        super().__init__(num_samples=len(seconds))
        self.seconds = seconds

    def __getitem__(self, index):
        time.sleep(self.seconds[index])
        return super().__getitem__(index)


@pytest.mark.parametrize(("num_workers", "worker_timeout"), [(1, 3.4), (2, 0)])
def test_slow_samples_are_no_hang_and_stay_in_order(num_workers, worker_timeout):
    expected = list(loader_of(Slow([0] * 6), 0, batch_size=2))
    loader = loader_of(Slow([1.5, 0, 0, 0.1, 0, 1.5]), num_workers, batch_size=2, worker_timeout=worker_timeout)
    looks = []
    loader.interrupt = lambda: looks.append(time.monotonic())
    for batch, same in zip(loader, expected, strict=True):
        assert torch.equal(batch, same)
    assert len(looks) >= 2  # DataLoader was asked more than once for a batch


def test_data_that_is_waited_for_too_long_is_a_hang_though_each_look_is_short():
    loader = loader_of(Slow([0, 3, 0]), num_workers=1, batch_size=1, worker_timeout=1.2)
    assert 1 <= seconds_until(LoadingError, loader, "No data came for 1.2 seconds.*'number_1'") < 2.5


def test_what_a_sample_raises_for_want_of_time_is_no_slow_sample():
    def time_out():
        raise TimeoutError("DataLoader timed out after 1 seconds")

    assert seconds_until(TimeoutError, loader_of(Numbers(time_out)), "timed out") < PROMPT


@pytest.mark.parametrize("num_updates", [None, 2], ids=["after an epoch", "within an epoch"])
def test_closed_loaders_have_no_processes_and_load_again(num_updates):
    loader = UpdateLoader(Numbers(), 4, num_workers=2)
    first = [update.indices for update in itertools.islice(loader.updates(0), num_updates)]
    workers = loader.source.workers
    assert [worker.is_alive() for worker in workers] == [True, True]
    started = time.monotonic()
    loader.close()
    gc.collect()
    assert not any(worker.is_alive() for worker in workers) and time.monotonic() - started < PROMPT
    loader.close()
    assert [update.indices for update in loader.updates(0)][:num_updates] == first
    loader.close()


def test_an_epoch_may_begin_while_a_process_is_at_what_the_last_one_asked_for():
    order = epoch_order(12, 0, 0)
    seconds = [20 if index == order[-1] else 0 for index in range(12)]
    loader = UpdateLoader(Slow(seconds), 2, num_workers=2)
    stream = loader.updates(0)
    for _ in range(4):
        next(stream)  # with the fourth, all of the epoch is asked for
    del stream
    time.sleep(0.2)
    earlier, started = loader.source.workers, time.monotonic()
    (update,) = loader.updates(1, start=10)
    assert time.monotonic() - started < PROMPT
    (same,) = UpdateLoader(Slow([0] * 12), 2).updates(1, start=10)
    assert update.indices == same.indices and torch.equal(update.micro_batches[0], same.micro_batches[0])
    assert earlier[1] not in active_children() and all(worker.is_alive() for worker in loader.source.workers)


def test_data_that_cannot_be_sent_is_a_hang_of_nobody():
    class Unsendable(Numbers):
        collate_fn = staticmethod(list)

        def __getitem__(self, index):
            return lambda: None

    loader = DataLoaderSource(Unsendable(), [(0, [0, 1]), (0, [2, 3])], num_workers=1, worker_timeout=1).batches()
    assert seconds_until(LoadingError, loader, "no process is loading any: .*be sent between processes") < PROMPT


# ---- a stop while data is waited for ---------------------------------------------------------------------------------
class Stop(KeyboardInterrupt):
    pass


def stop_after(seconds):
    """Return what raises when it is called later than that."""
    stop_at = time.monotonic() + seconds

    def interrupt():
        if time.monotonic() > stop_at:
            raise Stop

    return interrupt


@pytest.mark.parametrize(("of_training", "worker_timeout"), [(True, 300), (False, 0)])
def test_a_stop_does_not_wait_for_a_slow_sample(of_training, worker_timeout):
    settings = {"num_workers": 2, "batch_size": 1, "worker_timeout": worker_timeout}
    dataset = Slow([20] * 12)
    loader = UpdateLoader(dataset, **settings) if of_training else loader_of(dataset, **settings)
    loader.interrupt, started = stop_after(0.7), time.monotonic()
    with pytest.raises(Stop):
        list(loader.updates(0) if of_training else loader)
    gc.collect()
    assert 0.7 < time.monotonic() - started < 2.5
    for worker in loader.source.workers:
        worker.join(1)
    assert not left_running()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stop_does_not_wait_for_an_update_of_many_micro_batches(num_workers):
    loader = UpdateLoader(Slow([0.2] * 60), 60, 1, num_workers=num_workers)  # no wait is as long as one look
    loader.interrupt, started = stop_after(0.7), time.monotonic()
    with pytest.raises(Stop):
        next(loader.updates(0))
    assert time.monotonic() - started < 2.5


# ---- a sample that raises --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("dataset", [Numbers, BatchedNumbers])
def test_an_error_for_people_stays_one_and_names_the_sample(dataset, num_workers):
    told = r"^The file cannot be read.\nThat is sample 'number_7' \(index 7 of the val part\)\.$"
    assert seconds_until(UserError, loader_of(dataset(refuse), num_workers), told) < PROMPT


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("dataset", [Numbers, BatchedNumbers])
def test_any_other_error_keeps_its_traceback_and_names_the_sample(dataset, num_workers):
    with pytest.raises(KeyError) as caught:
        list(loader_of(dataset(fail), num_workers))
    text = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "Raised while loading sample 'number_7' (index 7 of the val part)." in text
    assert num_workers == 0 or "in fail" in text  # from a process, the traceback is in the text


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("fault", [leave, stop_iteration])
def test_what_would_end_the_loop_in_silence_is_an_error(fault, num_workers):
    with pytest.raises(RuntimeError, match="was raised while loading sample 'number_7'"):
        list(loader_of(Numbers(fault), num_workers))


@pytest.mark.parametrize(
    ("odd", "other", "told"),
    [
        (torch.zeros(1, 27), torch.zeros(1, 28), "it is float32 (1, 27), and they are float32 (1, 28)."),
        (None, (torch.zeros(3), 1), "it is NoneType, and they are (float32 (3,), int)."),
        ({"a": 1}, {"a": 1, "b": "x"}, "it is {a: int}, and they are {a: int, b: str}."),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sample_that_is_unlike_the_others_is_one_line(odd, other, told, num_workers):
    class Unlike(Numbers):
        def __getitem__(self, index):
            return odd if index == FAULTY else other

    with pytest.raises(UserError) as caught:
        list(loader_of(Unlike(), num_workers))
    assert told in str(caught.value) and "give a collate_fn" in str(caught.value)
    assert str(caught.value).endswith("That is sample 'number_7' (index 7 of the val part).")


def test_samples_of_a_kind_that_makes_no_batch_are_one_line():
    class Objects(Numbers):
        def __getitem__(self, index):
            return object()

    with pytest.raises(UserError, match=r"of samples like this, object: .*give a collate_fn"):
        list(loader_of(Objects(), 0))


def test_a_sample_without_a_name_has_its_index():
    dataset = Numbers(refuse)
    dataset.names = dataset.names[:0]
    dataset.__class__ = type("Nameless", (Numbers,), {"__len__": lambda self: NUM_SAMPLES})
    with pytest.raises(UserError, match="That is sample 7 of the val part"):
        list(loader_of(dataset, 0))


def slow_or_refuse():
    if get_worker_info().id == 0:
        hang()
    time.sleep(0.5)
    refuse()


def test_an_error_does_not_wait_for_the_other_processes():
    order = [(0, [1, FAULTY]), (0, [0, 2]), (0, [3])]
    # Process 1 refuses sample 0 while process 0 is at sample 3, which hangs.
    loader = DataLoaderSource(Numbers(slow_or_refuse, [0, 3]), order, num_workers=2).batches()
    assert seconds_until(UserError, loader, "number_0'") < PROMPT


@pytest.fixture
def start_method():
    before = multiprocessing.get_start_method()
    yield lambda method: multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_a_data_set_that_cannot_be_sent_is_one_line(start_method):
    start_method("spawn")
    dataset = Numbers(lambda: None)
    with pytest.raises(UserError, match=r"cannot be sent to loading processes: .*lambda.*--num_workers 0"):
        list(loader_of(dataset, 1))


@pytest.mark.parametrize("words", ["Too many open files", "received 0 items of ancdata", "No space left on device"])
def test_a_scarce_system_is_one_line(words):
    def lack():
        raise RuntimeError(f"unable to open shared memory object </torch_1> in read-write mode: {words}")

    with pytest.raises(LoadingError, match=r"Batches cannot be sent .*(ulimit -n|df /dev/shm).*--num_workers"):
        list(loader_of(Numbers(lack), 1))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the system does not list open files")
def test_files_of_processes_that_cannot_all_be_started_are_closed(monkeypatch):
    start, calls = multiprocessing.process.BaseProcess.start, itertools.count()

    def start_one(process):
        if next(calls):
            raise OSError(24, "Too many open files")
        start(process)

    loader = loader_of(Numbers(), num_workers=2)
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", start_one)
    with pytest.raises(LoadingError, match=r"Too many open files\. Raise their number") as caught:
        list(loader)
    assert len(os.listdir("/proc/self/fd")) == len(before) and active_children() == []
    assert caught.value.status == 5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_may_be_started_in_another_way(start_method, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{method} is not for this system")
    fork_server.context()  # whose server has imported torch
    start_method(method)
    assert torch.cat(list(loader_of(Numbers(), num_workers=1))).tolist() == list(range(NUM_SAMPLES))
    loader = loader_of(Numbers(kill), num_workers=1)  # of the forkserver, a process is not this one's child
    assert seconds_until(LoadingError, loader, "SIGKILL while it loaded sample 'number_7'") < 2 * PROMPT


# ---- bad samples -----------------------------------------------------------------------------------------------------
BAD = [0, 1, 2, 3, 9, 23]  # a whole micro-batch of the evaluation's order, and single ones


def updates_of(dataset, num_workers=0, epoch=0, batch_size=6, micro_batch_size=2, **settings):
    """Return the loader, the updates of an epoch, and what was warned of."""
    loader = UpdateLoader(dataset, batch_size, micro_batch_size, num_workers=num_workers, **settings)
    warned = []
    loader.bad.warn = warned.append
    return loader, list(loader.updates(epoch)), warned


@pytest.mark.parametrize(
    ("dataset", "fault", "num_workers"),
    [(Numbers, fail, 0), (BatchedNumbers, refuse, 0), (RandomNumbers, fail, 0), (RandomNumbers, refuse, 2)],
)
def test_bad_samples_are_left_out_named_and_counted(dataset, fault, num_workers):
    loader, updates, warned = updates_of(dataset(fault, BAD), num_workers, max_bad_samples=6)
    whole = updates_of(dataset())[1]
    assert [update.indices for update in updates] == [update.indices for update in whole]  # they count as done
    for update, all_good in zip(updates, whole, strict=True):
        rows, expected = (torch.cat(each.micro_batches).reshape(-1, 1 + may_be_random(loader.dataset))
                          for each in (update, all_good))  # fmt: skip
        kept = [row for row in expected.tolist() if row[0] not in BAD]
        assert rows.tolist() == kept  # in order; what is random in the others is as it was
        assert 0 < len(rows) == len(update.indices) - len(set(update.indices) & set(BAD))
        assert update.sizes == [len(micro_batch) for micro_batch in update.micro_batches] and all(update.sizes)
        assert update.num_local == len(rows)
    assert sorted(loader.bad.reasons) == BAD and len(loader.bad) == 6
    reason = "The file cannot be read." if fault is refuse else "KeyError: 'label'"
    order = [index for index in epoch_order(NUM_SAMPLES, 0, 0) if index in BAD]
    assert warned == [
        f"Skipped bad sample {count} of 6 allowed: sample 'number_{index}' (index {index} of the train part): {reason}"
        for count, index in enumerate(order, start=1)
    ]
    list(loader.updates(1))
    assert len(warned) == 6  # each is reported once


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("dataset", [Numbers, BatchedNumbers])
def test_an_update_without_a_good_sample_is_empty_but_counts(dataset, num_workers):
    bad = epoch_order(NUM_SAMPLES, 0, 0)[6:12]
    _, updates, _ = updates_of(dataset(refuse, bad), num_workers, max_bad_samples=9)
    assert [len(update.micro_batches) for update in updates] == [3, 0, 3, 3]
    assert updates[1].indices == bad


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_bad_sample_too_many_ends_the_run_and_is_named(num_workers):
    bad = [index for index in epoch_order(NUM_SAMPLES, 0, 0) if index in BAD]
    told = rf"(?s)^6 samples cannot be loaded, but --skip_bad_samples allows 5.*number_{bad[-1]}.*cannot be read"
    with pytest.raises(UserError, match=told):
        updates_of(Numbers(refuse, BAD), num_workers, max_bad_samples=5)


def test_bad_samples_count_when_their_batch_is_given_and_not_when_it_is_prefetched():
    loader = UpdateLoader(Numbers(refuse, [epoch_order(NUM_SAMPLES, 0, 0)[-1]]), 4, num_workers=2, max_bad_samples=1)
    loader.bad.warn = print
    updates, counts = loader.updates(0), []
    for _ in updates:
        time.sleep(0.1)
        counts.append(len(loader.bad))
    assert counts == [0, 0, 0, 0, 0, 1]


def test_a_resumed_run_does_not_count_them_anew():
    loader, _, _ = updates_of(Numbers(refuse, BAD), max_bad_samples=6)
    resumed = UpdateLoader(Numbers(refuse, BAD), 6, max_bad_samples=6)
    resumed.bad.load_state_dict(loader.bad.state_dict())
    assert resumed.bad.reasons == loader.bad.reasons and set(loader.bad.state_dict()) == set(map(str, BAD))
    resumed.bad.warn = pytest.fail
    list(resumed.updates(1))


def test_a_lack_of_memory_is_not_the_samples_fault():
    for dataset in (Numbers, BatchedNumbers):
        with pytest.raises(MemoryError):
            updates_of(dataset(lack_memory), max_bad_samples=9)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_leaves_them_out_too(num_workers):
    loader = loader_of(Numbers(refuse, BAD), num_workers, max_bad_samples=6)
    loader.bad.warn = lambda message: None
    assert [batch.tolist() for batch in loader] == [
        [4, 5, 6, 7], [8, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19], [20, 21, 22]
    ]  # fmt: skip
    assert (loader.num_samples, len(loader.bad)) == (NUM_SAMPLES, 6)
    assert [list(batch.loaded) for batch in loader.batches()][:3] == [[], [4, 5, 6, 7], [8, 10, 11]]


# ---- whole programs --------------------------------------------------------------------------------------------------
PROGRAM = """
import os, signal, sys, time
import torch
from torch.utils.data import Dataset
from data.loader import UpdateLoader

class Slow(Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        time.sleep({seconds})
        return torch.zeros(20000)

arrived = []

def interrupt():
    if signal.SIGTERM in arrived:
        raise SystemExit(7)

signal.signal(signal.SIGINT, lambda *_: None)
signal.signal(signal.SIGTERM, lambda signum, _: arrived.append(signum))
updates = UpdateLoader(Slow(), 2, num_workers=2, worker_timeout={timeout})
updates.interrupt = interrupt
stream = updates.updates(0)
next(stream)
print(*(worker.pid for worker in updates.source.workers), flush=True)
for _ in stream:
    print("update", flush=True)
"""


def start_program(seconds, timeout=300) -> tuple[fork_server.Program, Iterator[str], list[int]]:
    """Start it; return it, the lines that it prints after the first, and the loading processes."""
    words = ["-c", PROGRAM.format(seconds=seconds, timeout=timeout)]
    program = fork_server.Program(words, environment=os.environ | {"OMP_NUM_THREADS": "1"})
    lines = lines_of(program)
    return program, lines, [int(number) for number in next(lines, "").split()]


def lines_of(program: fork_server.Program) -> Iterator[str]:
    """Yield the lines that a program prints, each when it is there."""
    text = ""
    while True:
        has_ended = program.poll() is not None
        told = program.read()[0]
        if "\n" in told[len(text) :]:
            line = told[len(text) :].split("\n")[0]
            text += f"{line}\n"
            yield line
        elif has_ended:
            return
        else:
            time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@linux_only
def test_a_main_process_that_is_killed_leaves_no_others():
    program, _, workers = start_program(seconds="60 if index % 5 == 0 and index != 35 else 0")
    assert len(workers) == 2 and all(map(is_running, workers))
    program.kill()
    program.wait(10)
    deadline = time.monotonic() + 2
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))  # even those in the midst of a sample of a minute


@linux_only
def test_a_program_that_is_told_to_stop_while_it_waits_ends_with_all_its_processes():
    program, _, workers = start_program(seconds="60 if index % 5 == 0 and index != 35 else 0")
    try:
        time.sleep(0.5)
        program.terminate()
        assert program.wait(10) == 7
        assert not any(map(is_running, workers))
        assert "Traceback" not in program.read()[1]
    finally:
        program.kill()
        program.wait(10)


@linux_only
def test_signals_that_the_main_process_handles_do_not_reach_the_loading():
    program, lines, workers = start_program(seconds=0.01)
    try:
        deadline = time.monotonic() + 10
        while any(os.getpgid(pid) != pid for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.05)  # one may still be starting
        for pid in workers:
            for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                os.kill(pid, signum)
            assert os.getpgid(pid) == pid
        os.kill(program.pid, signal.SIGINT)  # handled there
        for _ in range(50):
            assert next(lines) == "update"
        assert all(map(is_running, workers))
    finally:
        program.kill()
        program.wait(10)


@linux_only
def test_a_halt_of_the_whole_job_is_no_hang():
    program, lines, workers = start_program(seconds=0.2, timeout=3)
    try:
        time.sleep(0.15)  # it waits for data
        for pid in (program.pid, *workers):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3.5)
        os.kill(program.pid, signal.SIGCONT)
        time.sleep(0.3)  # it finds that nothing came in all the time
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        for _ in range(6):
            assert next(lines) == "update"
    finally:
        program.kill()
        program.wait(10)


# ---- several processes -----------------------------------------------------------------------------------------------
def shared_loaders(bad, most, size=2, batch_size=6):
    """The loaders of all processes, and what each is warned of."""
    loaders, warned = [], []
    for rank in range(size):
        loader = UpdateLoader(Numbers(refuse, bad), batch_size, 2, max_bad_samples=most, share=(rank, size))
        warned.append([])
        loader.bad.warn = warned[-1].append
        loaders.append(loader)
    return loaders, warned


def test_too_many_bad_samples_end_all_processes_and_none_alone():
    order = epoch_order(NUM_SAMPLES, 0, 0)
    loaders, warned = shared_loaders([order[0], order[1], order[3]], most=2)  # two in the first share, one in the other
    updates = [next(loader.updates(0)) for loader in loaders]
    assert [update.indices for update in updates] == [order[:3], order[3:6]]
    found = [dict(loader.bad.reasons) for loader in loaders]
    told = []
    for loader in loaders:
        with pytest.raises(UserError, match="3 samples cannot be loaded, but --skip_bad_samples allows 2") as caught:
            loader.bad.unite(lambda bad: found)
        told.append(str(caught.value))
    assert len(set(told)) == 1 and [len(lines) for lines in warned] == [2, 2]
    alone, _ = shared_loaders([*order[:3]], most=2, size=1)
    with pytest.raises(UserError, match="3 samples cannot be loaded"):
        next(alone[0].updates(0))


def test_bad_samples_of_other_processes_are_told_once():
    order = epoch_order(NUM_SAMPLES, 0, 0)
    loaders, warned = shared_loaders([order[0], order[3]], most=2)
    for loader in loaders:
        next(loader.updates(0))
    found = [dict(loader.bad.reasons) for loader in loaders]
    for _ in range(2):
        for loader in loaders:
            loader.bad.unite(lambda bad: found)
    assert [set(loader.bad.reasons) for loader in loaders] == [{order[0], order[3]}] * 2
    assert [len(lines) for lines in warned] == [2, 2]


def test_a_share_that_lost_a_micro_batch_keeps_in_step_with_a_good_sample():
    order = epoch_order(NUM_SAMPLES, 0, 0)
    loaders, _ = shared_loaders(order[3:5], most=9)  # the first micro-batch of the second share
    first, second = (next(loader.updates(0)) for loader in loaders)
    assert (first.sizes, second.sizes) == ([2, 1], [1, 0])
    assert [batch.tolist() for batch in second.micro_batches] == [[order[5]]] * 2


def test_a_share_without_a_good_sample_gets_one_from_elsewhere():
    order = epoch_order(NUM_SAMPLES, 0, 0)
    bad = {*order[3:6], 0, 1}  # the second share of the first update, and the first ones to be looked at instead
    loaders, _ = shared_loaders(sorted(bad), most=9)
    first, second = (next(loader.updates(0)) for loader in loaders)
    assert len(first.micro_batches) == len(second.micro_batches) == second.sizes.count(0) == 2
    assert all(len(batch) == 1 and int(batch[0]) not in bad for batch in second.micro_batches)


def test_where_no_sample_is_good_nothing_stands_in():
    loaders, _ = shared_loaders(range(NUM_SAMPLES), most=NUM_SAMPLES)
    for loader in loaders:
        num_updates = len(loader.sampler.update_sizes())
        assert [(update.micro_batches, update.sizes) for update in loader.updates(0)] == [([], [])] * num_updates
    loaders, _ = shared_loaders(range(NUM_SAMPLES), most=4)
    next(loaders[0].updates(0))
    assert len(loaders[0].bad) == 5  # it does not look at all of them


def test_what_an_evaluation_gave_is_counted_over_all_processes():
    def count(num_samples, num_bad, most, other=(0, 0)):
        loader = EvalLoader(Numbers(num_samples=num_samples), 2, share=(0, 1))
        loader.bad = BadSamples(most, is_alone=False)
        loader.bad.warn = lambda message: None
        loader.bad.add(dict.fromkeys(range(num_bad), ""))
        return loader.num_evaluated(lambda asked, bad: (asked + other[0], bad + other[1]))

    assert count(5, 0, 0) == 5
    assert count(5, 1, 2, other=(4, 1)) == 7
    with pytest.raises(UserError, match="2 samples cannot be loaded, but --skip_bad_samples allows 1"):
        count(5, 1, 1, other=(4, 1))
    with pytest.raises(UserError, match="None of the 5 samples to evaluate"):
        count(5, 5, 5)
