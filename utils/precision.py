"""Automatic mixed precision behind one small object."""

import contextlib

import torch

from utils.errors import UserError

DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Casts the forward pass, and scales the loss where float16 needs it.

    Float16 has 5 exponent bits, so small gradients vanish; the loss is scaled up before `backward` and the gradients
    down before the step (Micikevicius et al., "Mixed Precision Training", 2018). Bfloat16 needs no scaling.

    Args:
        amp: "no", "bf16" or "fp16".
        device: where the model runs.
    """

    def __init__(self, amp: str = "no", device: torch.device | str = "cpu"):
        self.dtype = DTYPES[amp]
        self.device_type = torch.device(device).type
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=amp == "fp16")
        self._stepped: set[int] = set()  # the optimizers that have stepped in the update under way
        self.overflowed = False  # whether the last update made no step, because scaled gradients were infinite

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    @property
    def may_overflow(self) -> bool:
        """Whether an infinite gradient may come from the scale, which then shrinks; below 1 it cannot."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients back to their true size, for clipping and logging.

        Raises:
            UserError: at the second step of one optimizer in an update, since all of them share one scale, which is
                settled once per update.
        """
        if self.scaler.is_enabled():
            if id(optimizer) in self._stepped:
                raise UserError(
                    f"--amp fp16 scales for one step of an optimizer in an update, and this train_step steps "
                    f"{type(optimizer).__name__} twice. Give --amp bf16, or no."
                )
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step, unless scaled gradients overflowed: then the scale shrinks and the weights stay."""
        self.scaler.step(optimizer)
        self._stepped.add(id(optimizer))

    def finish_update(self) -> None:
        """Let the scale adapt, once per update, after the last optimizer stepped."""
        self._stepped.clear()
        if self.scaler.is_enabled():
            before = self.scaler.get_scale()
            self.scaler.update()
            self.overflowed = self.scaler.get_scale() < before  # the scale shrinks after an overflow

    def state_dict(self) -> dict:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
