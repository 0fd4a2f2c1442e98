"""Random numbers repeat, and draws within `preserved_random_state` leave no trace."""

import io
import random

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.seed import (
    RandomBookmark,
    draw_seed,
    mix,
    preserved_random_state,
    random_state,
    seed_apart,
    seed_cpu,
    seed_everything,
    set_random_state,
)


def draw() -> list:
    """Numbers from every global generator; an odd number of normal ones, since NumPy and Python keep the second."""
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), *torch.rand(2).tolist()]


@pytest.fixture(autouse=True)
def settings_of_torch():
    """Restore the process-wide settings that `seed_everything` changes."""
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    cudnn.deterministic, cudnn.benchmark = before[1:]


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_same_seed_gives_the_same_numbers(seed):
    seed_everything(seed)
    first = draw()
    seed_everything(seed)
    assert draw() == first
    seed_everything(seed - 1 if seed else 7)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_zero_is_a_seed():
    seed_everything(0)
    zero = draw()
    seed_everything(12345)
    assert draw() != zero


def test_deterministic_algorithms_are_a_choice(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # what the user has set stays
    seed_everything(0, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    seed_everything(0)
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark


def test_drawn_seeds_differ_and_are_in_range():
    seeds = {draw_seed() for _ in range(100)}
    assert len(seeds) > 95 and min(seeds) >= 0 and max(seeds) < 2**31


def test_drawn_seed_does_not_depend_on_the_generators():
    seed_everything(0)
    first = draw_seed()
    seed_everything(0)
    assert draw_seed() != first


def test_mix_gives_every_place_its_own_seed():
    seeds = {mix(seed, epoch, index) for seed in range(12) for epoch in range(12) for index in range(12)}
    assert len(seeds) == 12**3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix(1, 2) != mix(2, 1) and mix(2**63 - 1, 0) == mix(2**63 - 1, 0)


def test_state_of_all_generators_comes_back_through_a_weights_only_load():
    seed_everything(3)
    draw()
    buffer = io.BytesIO()
    torch.save(random_state(), buffer)
    expected = draw()
    seed_everything(4)
    buffer.seek(0)
    set_random_state(torch.load(buffer, weights_only=True))
    assert draw() == expected


def test_state_of_gpus_that_are_not_here_is_left_out():
    state = random_state() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 99}
    expected = draw()
    set_random_state(state)
    assert draw() == expected


PYTHON, NUMPY = random_state()["python"], random_state()["numpy"]


@pytest.mark.parametrize(
    "change",
    [
        None, 3, [], {"python": None}, {"python": (3, (1, 2), None)}, {"python": (9, *PYTHON[1:])},
        {"python": (*PYTHON[:2], "x")}, {"python": (3, (2**70, *PYTHON[1][1:]), None)}, {"python": PYTHON[:2]},
        {"numpy": {}}, {"numpy": NUMPY | {"key": torch.zeros(3)}}, {"numpy": NUMPY | {"key": [1]}},
        {"numpy": NUMPY | {"pos": 10**6}}, {"numpy": NUMPY | {"pos": -1}}, {"numpy": NUMPY | {"pos": "x"}},
        {"numpy": NUMPY | {"gauss": "x"}}, {"numpy": NUMPY | {"has_gauss": "x"}}, {"numpy": NUMPY | {"pos": 2**70}},
        {"torch": None}, {"torch": torch.zeros(3)}, {"torch": torch.zeros(3, dtype=torch.uint8)}, {"cuda": 3},
    ],
)  # fmt: skip
def test_state_that_is_none_is_refused_in_one_line(change):
    state = random_state()
    with pytest.raises(UserError, match="The states of the random generators cannot be restored") as caught:
        set_random_state(state | change if isinstance(change, dict) else change)
    assert "\n" not in str(caught.value)
    set_random_state(state)
    with pytest.raises(UserError):
        set_random_state({name: value for name, value in state.items() if name != "torch"})
    set_random_state(state)


def test_draws_inside_leave_no_trace_not_even_after_an_error():
    seed_everything(3)
    expected = draw()
    seed_everything(3)
    with preserved_random_state():
        draw()
    with pytest.raises(ZeroDivisionError), preserved_random_state():
        seed_cpu(5)
        raise ZeroDivisionError
    assert draw() == expected


def test_numbers_of_a_sample_depend_on_its_seed_alone():
    seed_cpu(5)
    first = draw()
    draw()
    seed_cpu(5)
    assert draw() == first
    seed_cpu(2**63 - 1)
    assert draw() != first


def test_other_processes_draw_other_numbers():
    draws = []
    for rank, position in ((0, 1), (1, 1), (2, 1), (2, 2)):
        seed_everything(3)
        seed_apart(3, rank, position)
        draws.append(tuple(draw()))
    seed_everything(3)
    assert draws[0] == tuple(draw()) and len(set(draws)) == 4


# ---- bookmarks -------------------------------------------------------------------------------------------------------
DRAWS = {
    "nothing": lambda: None, "python": random.random, "python, normal": lambda: random.gauss(0, 1),
    "numpy": np.random.rand, "numpy, normal": np.random.randn, "torch": lambda: torch.rand(1),
    "numpy, seed": lambda: np.random.seed(5),
}  # fmt: skip


@pytest.mark.parametrize("step", DRAWS)
def test_bookmark_of_each_update_restores_what_it_saw(step):
    """Of normal deviates two are drawn at a time, and one is stored."""
    seed_everything(1)
    bookmark = None
    for _ in range(4):
        bookmark = RandomBookmark(bookmark)
        before = repr(random_state())
        DRAWS[step]()
        bookmark.put_back()
        assert repr(random_state()) == before
        DRAWS[step]()


def test_slow_generators_are_read_until_they_rest(monkeypatch):
    seed_everything(1)
    calls = []
    plain = random.getstate
    monkeypatch.setattr(random, "getstate", lambda: calls.append(1) or plain())
    bookmark = None
    for number in range(6):
        bookmark = RandomBookmark(bookmark)
        if number < 2:
            random.random()
    assert len(calls) == 4
    monkeypatch.undo()
    expected = draw()
    bookmark.put_back()
    assert draw()[4:] == expected[4:]  # torch's
