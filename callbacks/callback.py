"""The hooks through which a run is watched."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from engine.checkpoints.state import check_plain
from utils.errors import nearest
from utils.files import told_when_full
from utils.seed import preserved_random_state


class Callback:
    """Base class: override the hooks you need.

    A callback may read, log, draw, save, or ask to stop (``trainer.should_stop = True``). It does not touch gradients,
    weights, the learning rate or random numbers: with every callback removed a run ends with the same weights. To
    change the computation, override the trainer. (`CallbackList` notices a change, unless it is written through
    ``tensor.data``, which leaves no trace.)

    The order of the calls::

        on_train_start
        for each epoch:
            on_epoch_start
            for each update:
                on_update_start         with the data that goes in
                on_update_end           every update: keep it cheap, and do not call .item() on a GPU's tensors
                on_log                  every --log_every updates, with plain numbers
            on_validation_end           when the epoch was validated
            on_epoch_end                before the checkpoint is written, so that what it records is in it
        on_save                         before each checkpoint
        on_train_end
        on_exception                    instead of on_train_end, when anything was raised; it is raised again

    `seconds_between`, if it is not 0, is the least time between two calls of `on_update_start`, and of `on_update_end`:
    what shows something to a person need not be called a thousand times a second.

    A misspelt hook fails when the class is defined, not silently never:

    >>> class Mine(Callback):
    ...     def on_epoch_ends(self, trainer, row): ...
    Traceback (most recent call last):
    TypeError: Mine.on_epoch_ends is no hook (did you mean 'on_epoch_end'?)
    """

    HOOKS = (
        "on_train_start", "on_epoch_start", "on_update_start", "on_update_end", "on_log", "on_validation_end",
        "on_epoch_end", "on_save", "on_train_end", "on_exception",
    )  # fmt: skip

    OF_UPDATES = ("on_update_start", "on_update_end")

    seconds_between = 0.0

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in dir(cls):
            if name.startswith("on_") and name not in cls.HOOKS:
                raise TypeError(f"{cls.__name__}.{name} is no hook{nearest(name, cls.HOOKS)}")

    def on_train_start(self, trainer) -> None:
        """Before the first epoch, after a checkpoint was resumed."""

    def on_epoch_start(self, trainer) -> None:
        """Before the first update of an epoch, or of what is left of it after a resume."""

    def on_update_start(self, trainer, update) -> None:
        """Before an update; `update.micro_batches` is what goes in, and `update.indices` says which samples these are.
        Every update too: keep it cheap."""

    def on_update_end(self, trainer, values: Mapping[str, Any]) -> None:
        """After an update; `values` is what `train_step` returned: detached scalars, still on the device."""

    def on_log(self, trainer, values: Mapping[str, float]) -> None:
        """After every --log_every-th update; `values` as in `on_update_end` and `lr`, as plain numbers."""

    def on_validation_end(self, trainer, results: Mapping[str, float]) -> None:
        """After a validation; `results` are the evaluator's, by the names of its meters."""

    def on_epoch_end(self, trainer, row: Mapping[str, float]) -> None:
        """After an epoch; `row` is its line of metrics.csv."""

    def on_save(self, trainer) -> None:
        """Before a checkpoint is written: what is in it must not be ahead of what you have written."""

    def on_train_end(self, trainer) -> None:
        """After the last epoch, when nothing was raised."""

    def on_exception(self, trainer, error: BaseException) -> None:
        """When training is left by an exception, Ctrl-C included; the checkpoint is already written."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of this callback."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


class CallbackList:
    """Calls hooks in order, and holds every callback to the contract of `Callback`."""

    def __init__(self, callbacks: Iterable[Callback]):
        self.callbacks = list(callbacks)
        self._listeners = {
            hook: [c for c in self.callbacks if getattr(type(c), hook) is not getattr(Callback, hook)]
            for hook in Callback.HOOKS
        }
        self._next_call: dict[tuple[str, int], float] = {}  # of hooks of updates that are not to be called each time

    def call(self, hook: str, trainer, *arguments) -> None:
        """Call `hook` of every callback that overrides it.

        Raises:
            RuntimeError: when a callback changed weights, a learning rate or the train/eval mode.
            StorageError: when a callback wrote to a full disk.
        """
        listeners = self._listeners[hook]
        if listeners and hook in Callback.OF_UPDATES:
            listeners = [callback for callback in listeners if self._is_due(callback, hook)]
        if not listeners:  # the rule for the hooks of updates: then they cost nothing
            return
        before = self._watched(trainer)
        for callback in listeners:
            name = f"{type(callback).__name__}.{hook}"
            # For each of them, so that what one draws, the next does not see.
            with told_when_full(name, trainer.run_dir.path), preserved_random_state():
                getattr(callback, hook)(trainer, *arguments)
            if self._watched(trainer) != before:
                trainer.progress.is_exact = False  # so what is saved now is not taken for a position of the run
                raise RuntimeError(
                    f"{name} changed weights, gradients, a learning rate or the "
                    "train/eval mode. A callback only watches; to change the computation, override the trainer."
                )

    def _is_due(self, callback: Callback, hook: str) -> bool:
        if not callback.seconds_between:
            return True
        now = time.monotonic()
        if now < self._next_call.get((hook, id(callback)), now):
            return False
        self._next_call[hook, id(callback)] = now + callback.seconds_between
        return True

    @staticmethod
    def _watched(trainer) -> list:
        """Cheap witnesses of a change: the version counters that torch keeps for in-place writes, and plain numbers."""
        seen: list = []
        for network in trainer.networks.values():
            seen += [module.training for module in network.modules()]
            for tensor in (*network.parameters(), *network.buffers()):
                grad, place = tensor.grad, tensor.data_ptr()
                seen.append((id(tensor), place, tensor._version, tensor.requires_grad))
                seen.append((id(grad), None if grad is None else grad._version))
        for optimizer in trainer.optimizers.values():
            seen += [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return seen

    def state_dict(self) -> dict[str, Any]:
        """States by class name and place among its class: two callbacks of one class have a state each."""
        states = {name: callback.state_dict() for name, callback in self._named()}
        check_plain(states, "the state of callbacks, ")
        return states

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Give each callback its state back; one that is new to the run keeps its fresh state."""
        for name, callback in self._named():
            if state := states.get(name):
                callback.load_state_dict(state)

    def _named(self) -> Iterator[tuple[str, Callback]]:
        """A name that stays when callbacks of other classes come or go: a progress bar is there on terminals only."""
        count: Counter[str] = Counter()
        for callback in self.callbacks:
            kind = type(callback).__name__
            yield f"{kind}.{count[kind]}", callback
            count[kind] += 1
