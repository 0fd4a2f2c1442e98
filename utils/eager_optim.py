"""The optimizers of `torch.optim`, the same to the bit, without what their methods do for `torch.compile`.

Each of torch's own imports the whole compiler when it is made, and again looks for it at every step: more than a second
before the first update, for nothing unless the optimizer's own step is compiled. (A compiled network is no such case.)
Here the methods are the ones that torch wraps.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import optim

METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")  # wrapped only for the compiler's sake


def eager(optimizer_class: type[optim.Optimizer]) -> type[optim.Optimizer]:
    """Return a subclass of an optimizer's class whose methods do not import the compiler."""
    plain_step = inspect.unwrap(optimizer_class.step)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):  # all else that torch's wrapper does
            return plain_step(self, closure)

    methods = {method: inspect.unwrap(getattr(optimizer_class, method)) for method in METHODS}
    name = optimizer_class.__name__
    about = {"__doc__": f"`torch.optim.{name}` without the compiler.", "__module__": __name__}  # so it can be pickled
    return type(name, (optimizer_class,), {**methods, **about, "step": step})


Adam = eager(optim.Adam)
AdamW = eager(optim.AdamW)
NAdam = eager(optim.NAdam)
RAdam = eager(optim.RAdam)
SGD = eager(optim.SGD)
RMSprop = eager(optim.RMSprop)
Adagrad = eager(optim.Adagrad)
