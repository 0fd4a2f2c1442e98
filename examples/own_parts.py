"""User-defined components: a network, a loss, a data set, an optimizer and a callback.

    python trainer_vanilla.py --model_type examples.own_parts:SmallNet --set model_args.width=32
    python trainer_vanilla.py --import examples.own_parts --model_type small --loss_type margin --callbacks largest
    python trainer_vanilla.py --loss_type examples.own_parts:TemperatureLoss --loss_args '{"loss": {"name": "Focal"}}'
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from callbacks.callback import Callback
from engine.registry import make, register_callback, register_data, register_loss, register_model, register_optimizer


@register_model("small")
class SmallNet(nn.Module):
    """A convolution and a linear layer. Its arguments n_channels and n_classes get the values of these options."""

    def __init__(self, n_channels: int, n_classes: int, width: int = 16):
        super().__init__()
        self.features = nn.Conv2d(n_channels, width, kernel_size=5, stride=3)
        self.head = nn.Linear(width, n_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images).relu().amax(dim=(2, 3))  # (N, C, H, W) -> (N, width)
        return self.head(features)  # (N, n_classes)


@register_loss("margin")
class MarginLoss(nn.Module):
    """The multi-class hinge loss (Crammer and Singer 2001)."""

    def __init__(self, margin: float = 1.0):
        super().__init__()
        self.loss = nn.MultiMarginLoss(margin=margin)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.loss(logits, labels)


@register_loss("temperature")
class TemperatureLoss(nn.Module):
    """Another loss, of the logits divided by a temperature. It is made of its name and arguments."""

    def __init__(self, n_classes: int, loss: dict, temperature: float = 2.0):
        super().__init__()
        self.loss = make("loss", loss, {"n_classes": n_classes})
        self.temperature = temperature

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.loss(logits / self.temperature, labels)


@register_data("squares")
def bright_squares(n_classes: int, split_seed: int, num_samples: int = 500) -> dict[str, Dataset]:
    """Return three parts of `num_samples` images each: noise with a bright square, whose place is the class."""
    generator = torch.Generator().manual_seed(split_seed)
    parts = {}
    for part in ("train", "val", "test"):
        images = torch.rand(num_samples, 1, 28, 28, generator=generator)
        labels = torch.randint(n_classes, (num_samples,), generator=generator)
        for image, label in zip(images, labels.tolist(), strict=True):
            row, column = divmod(label % 49, 7)
            image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
        parts[part] = TensorDataset(images, labels)
    return parts


@register_optimizer("sign")
class SignSGD(torch.optim.Optimizer):
    """Steps by the learning rate along the sign of the gradient (Bernstein et al. 2018)."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(parameter.grad.sign(), alpha=-group["lr"])


@register_callback("largest")
class LargestNorm(Callback):
    """Reports the largest gradient norm that was logged. A callback with an argument `logger` gets the run's."""

    def __init__(self, logger):
        self.logger = logger
        self.largest = 0.0

    def on_log(self, trainer, values) -> None:
        self.largest = max(self.largest, values["grad_norm"])

    def on_train_end(self, trainer) -> None:
        self.logger.info(f"The largest gradient norm that was logged: {self.largest:.4f}")

    def state_dict(self) -> dict[str, float]:
        return {"largest": self.largest}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.largest = state["largest"]
