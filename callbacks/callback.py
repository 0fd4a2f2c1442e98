"""Watch a run: the hooks that a callback overrides, and the list that calls them."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from engine.registry import load
from utils.errors import nearest
from utils.files import full_disk_explained
from utils.seed import preserved_random_state


class Callback:
    """Base class: override the hooks you need.

    A callback may read, log, draw, save, or ask to stop (``trainer.should_stop = True``). It must not change gradients,
    weights, learning rates or random numbers: with every callback removed, a run ends with the same weights. To change
    the computation, override the trainer. With --debug a change is an error.

    The order of the calls::

        on_train_start
        for each epoch:
            on_epoch_start
            for each update:
                on_update_start         with the data of the update
                on_update_end           every update: keep it cheap; .item() makes a GPU wait
                on_log                  every --log_every updates, with plain numbers
            on_validation_end           when the epoch was validated
            on_epoch_end                before the checkpoint, which contains the state of the callback
        on_save                         before each checkpoint
        on_train_end
        on_exception                    instead of on_train_end; the exception is raised again

    `seconds_between` is the least time between two calls of `on_update_start`, and of `on_update_end`; a person does
    not read a thousand lines a second.

    A misspelt hook fails when the class is defined:

    >>> class Mine(Callback):
    ...     def on_epoch_ends(self, trainer, row): ...
    Traceback (most recent call last):
    TypeError: Mine.on_epoch_ends is no hook (did you mean 'on_epoch_end'?)
    """

    seconds_between = 0.0

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in dir(cls):
            if name.startswith("on_") and name not in HOOKS:
                raise TypeError(f"{cls.__name__}.{name} is no hook{nearest(name, HOOKS)}")

    def on_train_start(self, trainer) -> None:
        """Called before the first epoch, after a checkpoint was resumed."""

    def on_epoch_start(self, trainer) -> None:
        """Called before the first update of an epoch, or of the rest of an epoch after a resume."""

    def on_update_start(self, trainer, update) -> None:
        """Called before each update; `update.micro_batches` is its data, `update.indices` are its samples."""

    def on_update_end(self, trainer, values: Mapping[str, Any]) -> None:
        """Called after each update; `values` are those of `train_step`: detached scalars, still on the device."""

    def on_log(self, trainer, values: Mapping[str, float]) -> None:
        """Called every --log_every updates; `values` as in `on_update_end` and `lr`, as plain numbers."""

    def on_validation_end(self, trainer, results: Mapping[str, float]) -> None:
        """Called after a validation; `results` are the evaluator's, by the names of its meters."""

    def on_epoch_end(self, trainer, row: Mapping[str, float]) -> None:
        """Called after an epoch; `row` is its line of metrics.csv."""

    def on_save(self, trainer) -> None:
        """Called before a checkpoint is written. Flush your files: they must not be behind the checkpoint."""

    def on_train_end(self, trainer) -> None:
        """Called after the last epoch, when nothing was raised."""

    def on_exception(self, trainer, error: BaseException) -> None:
        """Called when an exception ends training, Ctrl-C included; the checkpoint is already written."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))
OF_UPDATES = ("on_update_start", "on_update_end")


def call_one(callback: Callback, hook: str, trainer, *arguments) -> None:
    """Call a hook of one callback; StorageError when it wrote to a full disk."""
    # Random numbers of one callback must change neither the run nor the next callback.
    with full_disk_explained(f"{type(callback).__name__}.{hook}", trainer.run_dir.path), preserved_random_state():
        getattr(callback, hook)(trainer, *arguments)


class CallbackList:
    """Calls the hooks of several callbacks in order.

    Args:
        callbacks: in the order of the calls.
        is_checked: raise an error when a callback changes the training. Comparing all tensors takes time.
    """

    call_one = staticmethod(call_one)

    def __init__(self, callbacks: Iterable[Callback], is_checked: bool = False):
        self.callbacks = list(callbacks)
        if is_checked:
            self.call_one = load("extras.callbacks.checked:call_checked", "debug")
        self._listeners = {
            hook: [c for c in self.callbacks if getattr(type(c), hook) is not getattr(Callback, hook)]
            for hook in HOOKS
        }
        self._next_call: dict[tuple[str, int], float] = {}  # by hook and id of the callback

    def call(self, hook: str, trainer, *arguments) -> None:
        """Call `hook` of every callback that overrides it."""
        for callback in self._listeners[hook]:
            if hook not in OF_UPDATES or self._is_due(callback, hook):
                self.call_one(callback, hook, trainer, *arguments)

    def _is_due(self, callback: Callback, hook: str) -> bool:
        if not callback.seconds_between:
            return True
        now = time.monotonic()
        if now < self._next_call.get((hook, id(callback)), now):
            return False
        self._next_call[hook, id(callback)] = now + callback.seconds_between
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the states by class name and number within the class: each of two equal callbacks has its own."""
        return {name: callback.state_dict() for name, callback in self._named()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Restore the state of each callback; a callback that is new to the run keeps its fresh state."""
        for name, callback in self._named():
            if state := states.get(name):
                callback.load_state_dict(state)

    def _named(self) -> Iterator[tuple[str, Callback]]:
        """Yield names that do not depend on callbacks of other classes: a progress bar is there on terminals only."""
        count: Counter[str] = Counter()
        for callback in self.callbacks:
            kind = type(callback).__name__
            yield f"{kind}.{count[kind]}", callback
            count[kind] += 1
