"""The position counts completed things only."""

import pytest

from engine.progress import Progress


def test_counts_follow_updates_and_epochs():
    progress = Progress()
    for size in (64, 64, 22):
        progress.finish_update(size)
    assert progress == Progress(epoch=0, update=3, sample=150)
    progress.finish_epoch()
    assert progress == Progress(epoch=1, update=3, sample=0)


def test_state_comes_back():
    progress = Progress()
    progress.load_state_dict(Progress(epoch=2, update=31, sample=7).state_dict())
    assert progress == Progress(epoch=2, update=31, sample=7)


@pytest.mark.parametrize("forged", [{"epoch": None}, {"update": -1}, {"sample": 1.5}, {"sample": True}])
def test_position_that_cannot_be_is_refused(forged):
    progress = Progress(1, 2, 3)
    with pytest.raises(ValueError, match="the position"):
        progress.load_state_dict(progress.state_dict() | forged)
    assert progress == Progress(1, 2, 3)


def test_the_updates_that_are_left_are_counted():
    progress = Progress(update=5)
    assert [progress.updates_left(limit) for limit in (None, 8, 5, 2)] == [None, 3, 0, 0]
