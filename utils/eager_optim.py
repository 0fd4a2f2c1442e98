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
        with torch.set_grad_enabled(self.defaults["differentiable"]):  # all else that torch's wrapper does
            return plain_step(self, closure)

    methods = {name: inspect.unwrap(getattr(optimizer_class, name)) for name in METHODS}
    about = {"__doc__": optimizer_class.__doc__, "__module__": __name__}  # so that it can be pickled
    return type(optimizer_class.__name__, (optimizer_class,), {**methods, **about, "step": step})


Adam = eager(optim.Adam)
AdamW = eager(optim.AdamW)
NAdam = eager(optim.NAdam)
RAdam = eager(optim.RAdam)
SGD = eager(optim.SGD)
RMSprop = eager(optim.RMSprop)
Adagrad = eager(optim.Adagrad)
