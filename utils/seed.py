"""Seed, save and restore every global random generator that a training run draws from: Python's, NumPy's, torch's."""

import contextlib
import os
import random
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from utils.errors import UserError

NUM_WORDS = 624  # 32-bit words in the state of NumPy's generator


def draw_seed() -> int:
    """Draw a fresh seed from the operating system, 0 to 2**31 - 1."""
    return secrets.randbelow(2**31)


def mix(*numbers: int) -> int:
    """Mix whole numbers >= 0 into one 63-bit seed, so that (seed, epoch, index) gives unrelated streams.

    A sum would not do: seed 1 in epoch 2 would repeat seed 2 in epoch 1.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_cpu(seed: int) -> None:
    """Seed Python, NumPy and torch's CPU generator. The generators of GPUs stay as they are."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch (every device).

    Args:
        seed: 0 or larger; 0 is a seed like any other.
        deterministic: let torch use only algorithms that repeat bit for bit. Needed on GPUs only; slower there.
    """
    seed_cpu(seed)
    torch.manual_seed(seed)
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the call imports the compiler: seconds
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with a fixed workspace


def seed_apart(seed: int, rank: int, *position: int) -> None:
    """Give each process but the first random numbers of its own.

    Args:
        seed: the run's.
        rank: the process's; 0 keeps its generators as they are.
        position: of the run, so that the same numbers do not come twice.
    """
    if rank > 0:
        own = mix(seed, rank, *position)
        seed_cpu(own)
        torch.manual_seed(own)


def random_state() -> dict[str, Any]:
    """Return the state of every generator, in types that ``torch.load(weights_only=True)`` accepts."""
    _, key, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(key.astype(np.int64)),
            "pos": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned. States of GPUs that this machine does not have are ignored.

    Raises:
        UserError: it is anything else. Some generators may have been set by then.
    """
    try:
        random.setstate(state["python"])
        if not isinstance(state["python"][2], float | None):
            raise TypeError("the stored normal deviate of Python's generator is not a number")
        saved = state["numpy"]
        key = saved["key"].numpy().astype(np.uint32)
        if not 0 <= saved["pos"] <= NUM_WORDS:  # NumPy would read beyond the end
            raise ValueError(f"the position of NumPy's generator is {saved['pos']}")
        np.random.set_state(("MT19937", key, saved["pos"], saved["has_gauss"], saved["gauss"]))
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"The states of the random generators cannot be restored: {reason}") from None


class GlobalGenerators:
    """The global generators, as an object with a state."""

    def state_dict(self) -> dict:
        return random_state()

    def load_state_dict(self, state: dict) -> None:
        set_random_state(state)


class RandomBookmark:
    """Remember the state of every generator in memory, and put it back.

    Reading Python's and NumPy's generators takes 50 microseconds, a fifth of the smallest updates. So in a series of
    bookmarks they are read until they did not move between two of them, and left alone from then on: a training step
    that draws from them does so from its first update on.

    Args:
        previous: the bookmark before this one in a series; None to read everything.
    """

    def __init__(self, previous: "RandomBookmark | None" = None):
        self._torch = torch.get_rng_state()
        self._gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
        self._cuda = [generator.get_state() for generator in self._gpus]
        self._others: tuple | None = None  # of Python and NumPy
        if previous is None or previous._others is not None:
            _, key, *rest = np.random.get_state()
            self._others = (random.getstate(), key.tobytes(), rest)
            if previous is not None and previous._others == self._others:
                self._others = None

    def put_back(self) -> None:
        """Restore the generators."""
        torch.set_rng_state(self._torch)
        for generator, state in zip(self._gpus, self._cuda, strict=True):
            generator.set_state(state)
        if self._others is not None:
            python, key, rest = self._others
            random.setstate(python)
            np.random.set_state(("MT19937", np.frombuffer(key, np.uint32), *rest))


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the generators after the block, whatever it draws."""
    bookmark = RandomBookmark()
    try:
        yield
    finally:
        bookmark.put_back()
