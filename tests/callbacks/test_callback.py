"""Callbacks are called in order, watch only, and keep their state; a misspelt hook is noticed at once."""

import random
import re

import numpy as np
import pytest
import torch

from callbacks.callback import HOOKS, Callback, CallbackList, call_one
from tools.digest import digest
from trainer_vanilla import TrainerVanilla
from utils.files import StorageError

ARGUMENTS = {"on_update_start": (None,), "on_update_end": ({},), "on_log": ({},), "on_validation_end": ({},),
             "on_epoch_end": ({},), "on_exception": (ValueError(),)}  # fmt: skip


def call_all(callbacks: CallbackList, trainer) -> None:
    for hook in HOOKS:
        callbacks.call(hook, trainer, *ARGUMENTS.get(hook, ()))


def watching(hook: str, action) -> Callback:
    """A callback whose only hook does `action(trainer)`."""
    return type("Meddler", (Callback,), {hook: lambda self, trainer, *arguments: action(trainer)})()


# ---- hooks -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "nearest"),
    [("on_epoch_ends", "on_epoch_end"), ("on_updateend", "on_update_end"), ("on_train_stop", "on_train_start")],
)
def test_misspelt_hook_fails_when_the_class_is_defined(name, nearest):
    with pytest.raises(TypeError, match=rf"Mine\.{name} is no hook \(did you mean '{nearest}'\?\)"):
        type("Mine", (Callback,), {name: lambda self, trainer: None})


def test_misspelt_hook_is_found_in_a_second_base_class_too():
    class Helper:
        def on_epoch_ends(self, trainer, row): ...

    with pytest.raises(TypeError, match=r"Mine\.on_epoch_ends is no hook"):
        type("Mine", (Helper, Callback), {})


def test_other_methods_and_subclasses_are_free():
    class Mine(Callback):
        only_once = True

        def on_epoch_end(self, trainer, row): ...

    class More(Mine):
        def close(self): ...

    assert More().state_dict() == {}


def test_every_hook_is_documented_in_the_order_of_the_calls():
    listed = re.findall(r"^ +(on_\w+)", Callback.__doc__.partition("::")[2].partition("A misspelt")[0], re.MULTILINE)
    assert listed == list(HOOKS)
    assert all(getattr(Callback, hook).__doc__ for hook in HOOKS)


def test_callbacks_are_called_in_the_order_of_the_list_with_what_the_trainer_gives(trainer):
    calls = []

    class Recorder(Callback):
        def __init__(self, name):
            self.name = name

        def on_train_start(self, trainer):
            calls.append((self.name, trainer))

        def on_log(self, trainer, values):
            calls.append((self.name, values))

    callbacks = CallbackList([Recorder("first"), Callback(), Recorder("second")])
    callbacks.call("on_train_start", trainer)
    callbacks.call("on_log", trainer, {"loss": 1.0})
    assert calls == [("first", trainer), ("second", trainer), ("first", {"loss": 1.0}), ("second", {"loss": 1.0})]


def test_base_class_does_nothing_at_any_hook(trainer):
    for hook in HOOKS:
        getattr(Callback(), hook)(trainer, *ARGUMENTS.get(hook, ()))


def test_the_state_is_compared_only_when_asked(trainer, monkeypatch):
    def fail(trainer):
        raise AssertionError("compared")

    monkeypatch.setattr("extras.callbacks.checked.fingerprint", fail)
    monkeypatch.setattr(CallbackList, "call_one", staticmethod(call_one))
    CallbackList([Callback()], is_checked=True).call("on_update_end", trainer, {})  # no hook, no cost
    listening = [watching("on_update_end", lambda trainer: None)]
    CallbackList(listening, is_checked=False).call("on_update_end", trainer, {})
    with pytest.raises(AssertionError, match="compared"):
        CallbackList(listening, is_checked=True).call("on_update_end", trainer, {})


# ---- the contract ----------------------------------------------------------------------------------------------------
def write_weight(trainer):
    with torch.no_grad():
        trainer.networks["model"][0].weight[0, 0] += 1e-3


def write_weight_behind_autograd(trainer):
    trainer.networks["model"][0].weight.data = torch.zeros(4, 3)


def replace_weight(trainer):
    trainer.networks["model"][0].weight = torch.nn.Parameter(torch.zeros(4, 3))


def write_buffer(trainer):
    trainer.networks["model"][1].running_mean.zero_()


def predict_in_training_mode(trainer):
    trainer.networks["model"](torch.rand(5, 3))  # moves the running mean of batch normalization


def write_gradient(trainer):
    trainer.networks["model"][0].weight.grad.mul_(0.5)


def add_gradient(trainer):
    trainer.networks["model"](torch.rand(5, 3)).sum().backward()


def clear_gradients(trainer):
    trainer.optimizers["model"].zero_grad()


def freeze(trainer):
    trainer.networks["model"][0].weight.requires_grad_(False)


def step(trainer):
    trainer.optimizers["model"].step()


def set_lr(trainer):
    trainer.optimizers["model"].param_groups[0]["lr"] *= 0.5


def set_weight_decay(trainer):
    trainer.optimizers["model"].param_groups[0]["weight_decay"] = 0


def eval_mode(trainer):
    trainer.networks["model"].eval()


def eval_mode_of_one_layer(trainer):
    trainer.networks["model"][1].eval()


MEDDLING = [
    write_weight, write_weight_behind_autograd, replace_weight, write_buffer, predict_in_training_mode, write_gradient,
    add_gradient, clear_gradients, freeze, step, set_lr, set_weight_decay, eval_mode, eval_mode_of_one_layer,
]  # fmt: skip


@pytest.mark.parametrize("meddle", MEDDLING)
def test_callback_that_changes_the_computation_is_caught_by_name(trainer, meddle):
    innocent = watching("on_epoch_end", lambda trainer: None)
    with pytest.raises(RuntimeError, match=r"Meddler\.on_epoch_end changed .*override the trainer"):
        CallbackList([innocent, watching("on_epoch_end", meddle)]).call("on_epoch_end", trainer, {})


@pytest.mark.parametrize("hook", HOOKS)
def test_callback_is_watched_at_every_hook(trainer, hook):
    callbacks = CallbackList([watching(hook, write_weight)])
    with pytest.raises(RuntimeError, match=rf"Meddler\.{hook} changed"):
        call_all(callbacks, trainer)


def test_reading_evaluating_and_asking_to_stop_are_allowed(trainer):
    def read(trainer):
        network = trainer.networks["model"]
        sum((parameter.norm() + parameter.grad.norm()).item() for parameter in network.parameters())
        network.eval()
        with torch.no_grad():
            network(torch.rand(5, 3))
        network.train()
        network.state_dict()
        trainer.should_stop = True

    for hook in HOOKS:
        CallbackList([watching(hook, read)]).call(hook, trainer, *ARGUMENTS.get(hook, ()))
    assert trainer.should_stop


def test_callback_that_draws_random_numbers_changes_nothing_for_the_run_and_the_next_callback(trainer):
    drawn = []

    def draw(trainer):
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))

    callbacks = CallbackList([watching("on_log", draw), watching("on_log", draw)])
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    callbacks.call("on_log", trainer, {})
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected
    assert drawn == [expected, expected]


# ---- state -----------------------------------------------------------------------------------------------------------
class Counting(Callback):
    def __init__(self):
        self.count = 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Other(Counting):
    pass


def counts(callbacks: list[Counting], states: dict) -> list[int]:
    CallbackList(callbacks).load_state_dict(states)
    return [callback.count for callback in callbacks if isinstance(callback, Counting)]


def test_every_callback_gets_its_own_state_back():
    first, second, other = Counting(), Counting(), Other()
    first.count, second.count, other.count = 1, 2, 3
    states = CallbackList([first, other, second, Callback()]).state_dict()
    assert counts([Counting(), Other(), Counting(), Callback()], states) == [1, 3, 2]
    assert counts([Callback(), Other(), Counting(), Counting()], states) == [3, 1, 2]  # one of another class came first
    assert counts([Counting(), Counting(), Counting()], states) == [1, 2, 0]  # the third is new
    assert counts([Other()], states) == [3]


def test_full_disk_in_a_callback_is_an_error_for_people_that_names_it(trainer):
    class Writes(Callback):
        def on_log(self, trainer, values):
            with open("/dev/full", "w") as file:
                file.write("x" * 100_000)

    with pytest.raises(StorageError, match=r"^Writes\.on_log cannot write: No space left on device"):
        CallbackList([Writes()]).call("on_log", trainer, {})


def test_a_run_without_callbacks_ends_with_the_same_weights(build, tmp_path):
    class Bare(TrainerVanilla):
        def build_callbacks(self):
            return []

    flags = ("--n_epoch", 2, "--log_every", 2)
    watched = build(*flags, "--stop_below", -1, "--profile", 2, "--logger", "csv", "tensorboard", callbacks=None)
    bare = build(*flags, task=Bare, callbacks=None)
    for trainer in (watched, bare):
        trainer.train()
    parts = ("networks", "optimizers", "random")
    (one, other) = ({part: digest(trainer.state_dict()[part]) for part in parts} for trainer in (watched, bare))
    assert one == other and len(watched.callbacks.callbacks) >= 5 and not bare.callbacks.callbacks
