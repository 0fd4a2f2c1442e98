"""TensorBoard reads what was written: every curve under its name, every value at its update, nothing twice."""

import time
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from callbacks.tensorboard import TensorBoard
from engine.checkpoints.restore import set_state
from engine.checkpoints.state import plain
from extras.callbacks.gradient_norms import GradientNorms
from utils.errors import UserError

OPTIONS = {"lr": 0.1, "model_type": "Vanilla", "debug": False, "seed": 0, "lr_decay_epochs": [3.0], "model_path": None}


def train(trainer, log_dir, updates, finish: bool = True) -> None:
    """Log at every one of `updates`, validate at those that end an epoch (of 4), and end."""
    board = TensorBoard(log_dir, OPTIONS, "accuracy")
    board.on_train_start(trainer)
    for update in updates:
        trainer.progress.update = update
        board.on_log(trainer, {"loss": 1 / update, "grad_norm": 2.0, "lr": 0.1, "lr/critic": 0.2, "lrelu": 3.0})
        if update % 4 == 0:
            trainer.stopper.update(update / 100)
            board.on_validation_end(trainer, {"accuracy": update / 100})
    if finish:
        board.on_train_end(trainer)
    else:
        board.on_exception(trainer, KeyboardInterrupt())


def read(log_dir) -> EventAccumulator:
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def steps(events: EventAccumulator, tag: str) -> list[int]:
    return [event.step for event in events.Scalars(tag)]


def test_curves_stand_under_their_names_at_the_updates(trainer, tmp_path):
    train(trainer, tmp_path, [2, 4, 6, 8])
    events = read(tmp_path)
    assert set(events.Tags()["scalars"]) == {
        "train/loss", "train/grad_norm", "train/lrelu", "lr", "lr/critic", "val/accuracy", "best/accuracy",
    }  # fmt: skip
    assert steps(events, "train/loss") == [2, 4, 6, 8] and steps(events, "val/accuracy") == [4, 8]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([1 / 2, 1 / 4, 1 / 6, 1 / 8])
    (best,) = events.Scalars("best/accuracy")
    assert (best.step, best.value) == (9, pytest.approx(0.08))
    assert events.Tags()["images"] == []


def test_picture_of_a_validation(trainer, tmp_path):
    trainer.evaluator.picture = lambda loader: torch.full((3, 5, 7), 200, dtype=torch.uint8)
    train(trainer, tmp_path, [4, 8])
    first, second = read(tmp_path).Images("val/predictions")
    assert (first.step, second.step) == (4, 8) and (first.width, first.height) == (7, 5)


def test_resumed_run_leaves_no_update_twice(trainer, tmp_path):
    train(trainer, tmp_path, [2, 4, 6, 8, 10], finish=False)
    trainer.progress.update = 6  # the checkpoint that is resumed
    train(trainer, tmp_path, [8, 10, 12])
    events = read(tmp_path)
    assert steps(events, "train/loss") == [2, 4, 6, 8, 10, 12]
    assert steps(events, "val/accuracy") == [4, 8, 12]


def test_finished_run_that_is_resumed_has_one_best_value(trainer, tmp_path):
    train(trainer, tmp_path, [2, 4])
    train(trainer, tmp_path, [])  # killed after its end was written, and resumed: nothing is left to do
    assert steps(read(tmp_path), "best/accuracy") == [5]


def test_what_a_checkpoint_is_ahead_of_is_on_the_disk(trainer, tmp_path):
    board = TensorBoard(tmp_path, OPTIONS, "accuracy")
    board.on_train_start(trainer)
    trainer.progress.update = 2
    board.on_log(trainer, {"loss": 0.5})
    board.on_save(trainer)
    assert steps(read(tmp_path), "train/loss") == [2]  # though the writer is still open
    board.on_exception(trainer, KeyboardInterrupt())


def test_options_are_in_the_table_of_hyper_parameters(trainer, tmp_path):
    train(trainer, tmp_path, [4])
    content = read(tmp_path).PluginTagToContent("hparams")["_hparams_/session_start_info"]
    table = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert set(table) == {"lr", "model_type", "debug", "seed"}  # numbers, texts and booleans
    assert table["lr"].number_value == 0.1 and table["debug"].bool_value is False


def test_run_that_fails_before_it_began_is_no_second_failure(trainer, tmp_path):
    TensorBoard(tmp_path / "summary", OPTIONS, "accuracy").on_exception(trainer, ValueError())
    assert not (tmp_path / "summary").exists()


def test_validation_that_is_made_again_stands_there_once(trainer, tmp_path):
    """A signal comes at the last update of an epoch; it is resumed, validates, is killed before it saves, resumed."""
    train(trainer, tmp_path, [2, 3], finish=False)
    trainer.progress.update, trainer.progress.sample = 4, 100
    board = TensorBoard(tmp_path, OPTIONS, "accuracy")
    board.on_train_start(trainer)
    board.on_log(trainer, {"loss": 0.25, "lr": 0.1})
    board.on_exception(trainer, KeyboardInterrupt())
    state = board.state_dict()
    for _ in range(2):
        board = TensorBoard(tmp_path, OPTIONS, "accuracy")
        board.load_state_dict(state)
        board.on_train_start(trainer)
        board.on_validation_end(trainer, {"accuracy": 0.5})  # flushes; then comes the kill
    board.on_train_end(trainer)
    events = read(tmp_path)
    assert steps(events, "train/loss") == [2, 3, 4] and steps(events, "lr") == [2, 3, 4]
    assert events.Scalars("train/loss")[-1].value == 0.25
    assert steps(events, "val/accuracy") == [4] and steps(events, "best/accuracy") == [5]


def test_what_was_logged_before_the_last_update_is_not_written_again(trainer, tmp_path):
    train(trainer, tmp_path, [2], finish=False)
    board = TensorBoard(tmp_path, OPTIONS, "accuracy")
    board.load_state_dict({"last_log": {"update": 2, "values": {"loss": 9.0}}})
    trainer.progress.update, trainer.progress.sample = 3, 75
    board.on_train_start(trainer)
    board.on_train_end(trainer)
    assert [event.value for event in read(tmp_path).Scalars("train/loss")] == [0.5]


def test_run_that_was_interrupted_before_its_first_update_leaves_none_twice(trainer, tmp_path):
    for _ in range(2):
        trainer.progress.update = 0
        train(trainer, tmp_path, [2, 3], finish=False)
    assert steps(read(tmp_path), "train/loss") == [2, 3]


@pytest.mark.parametrize("state", [{}, {"last_log": 3}, {"last_log": {"update": 2, "values": {"loss": "x"}}}])
def test_state_that_is_none_is_refused(trainer, tmp_path, state):
    with pytest.raises(UserError, match="does not fit"):
        set_state(TensorBoard(tmp_path, OPTIONS, "accuracy"), state, "The callbacks")


def test_state_goes_into_a_checkpoint_and_is_not_changed_by_what_comes_later(trainer, tmp_path):
    board = TensorBoard(tmp_path, OPTIONS, "accuracy")
    board.on_train_start(trainer)
    values = {"loss": 0.5}
    board.on_log(trainer, values)
    state = board.state_dict()
    assert plain(state, "the state") == state
    values["loss"] = 1.0
    board.on_log(trainer, values)
    assert state == {"last_log": {"update": 0, "values": {"loss": 0.5}}}
    board.on_exception(trainer, KeyboardInterrupt())


def test_new_run_makes_no_file_before_its_first_event(trainer, tmp_path):
    board = TensorBoard(tmp_path / "summary", OPTIONS, "accuracy")
    board.on_train_start(trainer)
    assert not (tmp_path / "summary").exists()
    board.on_log(trainer, {"loss": 0.5})
    board.on_exception(trainer, KeyboardInterrupt())
    assert steps(read(tmp_path / "summary"), "train/loss") == [0]


def test_resumed_run_that_is_killed_before_its_first_event_has_struck_out_what_was_ahead(trainer, tmp_path):
    train(trainer, tmp_path, [2, 4, 6, 8], finish=False)
    trainer.progress.update = 4
    TensorBoard(tmp_path, OPTIONS, "accuracy").on_train_start(trainer)
    assert steps(read(tmp_path), "train/loss") == [2, 4]


def test_all_tags_and_steps_are_there_once_whole_and_after_two_kills(trainer, tmp_path, monkeypatch):
    """With a second callback that writes events, a clock that goes back, and resumes within one second."""
    trainer.distributed = SimpleNamespace(is_sharded=False)
    clock = iter([2_000_000_000, 1_999_999_000, 1_999_999_000])
    real = time.time

    def live(update: int, last: int, log_dir, states: list) -> None:
        """Go on from an update to another, save after every fourth, and end as a killed process does."""
        now = next(clock, 2_000_000_000)
        monkeypatch.setattr(time, "time", lambda: now)
        trainer.progress.update = update
        board = TensorBoard(log_dir / "summary", OPTIONS, "accuracy")
        callbacks = [board, GradientNorms(log_dir)]
        if states:
            board.load_state_dict(states[-1])
        for callback in callbacks:
            callback.on_train_start(trainer)
        for trainer.progress.update in range(update + 1, last + 1):
            for callback in callbacks:
                callback.on_log(trainer, {"loss": 1.0})
            if trainer.progress.update % 4 == 0:
                board.on_validation_end(trainer, {"accuracy": 0.5})
                for callback in callbacks:
                    callback.on_save(trainer)
                states.append(board.state_dict())
        for callback in callbacks:
            callback.on_save(trainer)  # what comes after the checkpoint may have reached the disk, too
        monkeypatch.setattr(time, "time", real)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    states: list = []
    killed.mkdir()
    whole.mkdir()
    for update, last in ((0, 6), (4, 10), (8, 12)):
        live(update, last, killed, states)
    live(0, 12, whole, [])
    for log_dir in (whole, killed):
        events = read(log_dir / "summary")
        assert {tag: steps(events, tag) for tag in events.Tags()["scalars"]} == {
            "train/loss": [*range(1, 13)], "val/accuracy": [4, 8, 12],
        }  # fmt: skip
        events = read(log_dir / "summary" / "gradients")
        tags = events.Tags()["scalars"]
        assert len(tags) > 1 and all(steps(events, tag) == [*range(1, 13)] for tag in tags)


@pytest.mark.parametrize("is_there", [True, False])
def test_no_event_goes_through_a_link(trainer, tmp_path, is_there):
    if is_there:
        (tmp_path / "elsewhere").mkdir()
    (tmp_path / "summary").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="summary is a link, and events would go into files elsewhere"):
        train(trainer, tmp_path / "summary", range(1, 3))
    assert not is_there or not list((tmp_path / "elsewhere").iterdir())
