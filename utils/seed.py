"""Random numbers that can be repeated: seeding, saving and restoring every generator that a training run draws from."""

import contextlib
import ctypes
import os
import random
import secrets
import struct
import sys
from collections.abc import Iterator

import numpy as np
import torch

from utils.errors import UserError

NUM_WORDS = 624  # 32-bit numbers of which a state of NumPy's generator consists


def draw_seed() -> int:
    """A fresh seed from the operating system, 0 to 2**31 - 1."""
    return secrets.randbelow(2**31)


def mix(*numbers: int) -> int:
    """Mix whole numbers >= 0 into one 63-bit seed, so that (seed, epoch, index) gives unrelated streams.

    A sum would not do: seed 1 in epoch 2 would repeat seed 2 in epoch 1.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch (every device).

    Args:
        seed: 0 or larger; 0 is a seed like any other.
        deterministic: let torch use only algorithms that repeat bit for bit. Needed on GPUs only; slower there.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the call imports the compiler: seconds
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with a fixed workspace


def seed_apart(seed: int, rank: int, *position: int) -> None:
    """Give process `rank` random numbers of its own from here on; those of process 0 stay what they are.

    Args:
        seed: of the run.
        rank: of the process.
        position: where the run stands, so that the same numbers do not come twice.
    """
    if rank > 0:
        own = mix(seed, rank, *position)
        random.seed(own)
        np.random.seed(own % 2**32)
        torch.manual_seed(own)


def random_state() -> dict:
    """The state of every global generator, in types that ``torch.load(weights_only=True)`` accepts."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict) -> None:
    """Put back what `random_state` returned. States of devices that are not here are left out.

    Raises:
        UserError: when it is anything else. Some generators may have been set by then.
    """
    try:
        random.setstate(state["python"])
        if not isinstance(state["python"][2], float | None):
            raise TypeError("the number that Python's generator has in store is none")
        saved = state["numpy"]
        key = saved["key"].numpy().astype(np.uint32)
        if not 0 <= saved["pos"] <= NUM_WORDS:  # NumPy would read beyond the end
            raise ValueError(f"the position of NumPy's generator is {saved['pos']}")
        set_numpy_state(("MT19937", key, saved["pos"], saved["has_gauss"], saved["gauss"]))
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"The states of the random generators cannot be put back: {reason}") from None


class RandomBookmark:
    """Remembers the global generators of now, in memory: as exact as `random_state`, for a fraction of the time."""

    def __init__(self):
        self._gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
        self._cuda = [generator.get_state() for generator in self._gpus]
        self._python, self._torch = python_state(), torch.get_rng_state()
        self._numpy = numpy_state()

    def put_back(self) -> None:
        """Set the generators to what was remembered."""
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        for generator, state in zip(self._gpus, self._cuda, strict=True):
            generator.set_state(state)
        if numpy_state() is not self._numpy:
            set_numpy_state(self._numpy)


_python_seen: tuple[bytes, tuple | None] = (b"", None)  # the generator's memory, and its state, when last taken


def python_memory() -> bytes:
    """The memory of Python's global generator: a position and 624 words, behind the head of a Python object."""
    return ctypes.string_at(id(random.random.__self__) + object.__basicsize__, 4 + 4 * NUM_WORDS)


def is_python_memory_known() -> bool:
    """Whether this Python keeps its generator as CPython has done for ages: seen by comparing it with the state."""
    if sys.implementation.name != "cpython":
        return False
    *words, position = random.getstate()[1]
    return python_memory() == struct.pack(f"i{NUM_WORDS}I", position, *words)


KNOWS_PYTHON = is_python_memory_known()


def python_state() -> tuple:
    """The state of Python's global generator; the same object as the last time if it has not moved since.

    To tell it makes 624 numbers, which takes up to 60 us in the middle of a training, where they are in no cache.
    """
    global _python_seen
    if not KNOWS_PYTHON:
        return random.getstate()
    memory, state = python_memory(), _python_seen[1]
    # The second of a pair of normal deviates is kept outside of this memory.
    deviate = random.random.__self__.gauss_next
    if memory != _python_seen[0] or state is None or state[2] != deviate:
        state = random.getstate()
        _python_seen = (memory, state)
    return state


_numpy_seen: tuple[bytes, tuple | None] = (b"", None)  # the generator's memory, and its state, when last taken


def numpy_state() -> tuple:
    """The state of NumPy's global generator; the same object as the last time if it has not moved since.

    NumPy takes 30 us to tell its state. Whether it has moved is seen in less than 2 from the memory that it consists
    of, 624 words and a position.
    """
    global _numpy_seen
    generator = np.random.get_bit_generator()
    if type(generator) is not np.random.MT19937:
        return np.random.get_state()
    memory = ctypes.string_at(generator.ctypes.state_address, 4 * NUM_WORDS + 4)
    state = _numpy_seen[1]
    # Of a pair of normal deviates, the second one is kept outside of this memory until it is asked for: state[3].
    if memory != _numpy_seen[0] or state is None or state[3]:
        state = np.random.get_state()
        _numpy_seen = (memory, state)
    return state


def set_numpy_state(state: tuple) -> None:
    """Set NumPy's global generator. What was seen of it says no longer whether the second normal deviate is there."""
    global _numpy_seen
    np.random.set_state(state)
    _numpy_seen = (b"", None)


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Whatever is drawn inside leaves the generators as they were."""
    bookmark = RandomBookmark()
    try:
        yield
    finally:
        bookmark.put_back()


_are_kept = False  # an outer block puts the CPU generators back


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, Python, NumPy and torch's CPU generator start from `seed`; afterwards they are as they were.

    The CPU generators only, since this is for what data sets draw: `torch.manual_seed` would reset the GPU's too.
    """
    global _are_kept
    was_kept, _are_kept = _are_kept, False  # what is seeded inside of this block must put back what it finds
    try:
        with contextlib.nullcontext() if was_kept else kept_generators():
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        _are_kept = was_kept


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """After the block the CPU generators are as they were before it."""
    python, numpy, cpu = random.getstate(), numpy_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        set_numpy_state(numpy)
        torch.set_rng_state(cpu)


@contextlib.contextmanager
def seeded_often() -> Iterator[None]:
    """For a block that does nothing but go through `seeded` again and again: the generators are put back once.

    To put them back takes far longer than to seed them, 0.3 ms, which is more than some samples take to be loaded.
    """
    global _are_kept
    with kept_generators():
        was_kept, _are_kept = _are_kept, True
        try:
            yield
        finally:
            _are_kept = was_kept
