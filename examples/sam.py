"""Two passes per update: sharpness-aware minimization (Foret et al., ICLR 2021): python -m examples.sam --n_epoch 2

The gradient of a step is computed at weights a little way uphill, where the loss of a sharp minimum is high. So the
optimizer prefers flat minima.
"""

import torch

from data.loader import Update
from engine.options.parser import OptionParser, number
from trainer_vanilla import TrainerVanilla
from utils.clipper import measure


class TrainerSAM(TrainerVanilla):
    """Train a FashionMNIST classifier with sharpness-aware minimization."""

    defaults = {**TrainerVanilla.defaults, "proj_name": "SAM", "output_dir": "./Results/SAM/"}

    @classmethod
    def add_options(cls, parser: OptionParser) -> None:
        parser.add_argument_group("sharpness").add_argument(
            "--rho",
            type=number(float, low=0),
            default=0.05,
            metavar="X",
            help="distance uphill at which the gradient is computed",
        )

    def train_step(self, update: Update) -> dict[str, torch.Tensor]:
        # First pass: the gradient at the weights.
        loss = self.compute_gradient(update)
        parameters = [p for p in self.networks["model"].parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters]

        # Second pass: the gradient a little way uphill.
        with torch.no_grad():
            weights = [p.clone() for p in parameters]
            uphill = self.opt.rho / (measure(gradients) + 1e-12)
            torch._foreach_add_(parameters, [gradient * uphill for gradient in gradients])
        self.compute_gradient(update)

        # Step from the weights, with the second gradient.
        with torch.no_grad():
            for parameter, value in zip(parameters, weights, strict=True):
                parameter.copy_(value)  # exact, while a subtraction would round
        return {"loss": loss, "grad_norm": self.optimizer_step("model")}

    def compute_gradient(self, update: Update) -> torch.Tensor:
        """Compute the gradient of an update's loss, and return the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch, weight in self.weighted(update):
            with self.precision.autocast():
                loss = self.compute_loss(batch)
            total += self.backward(loss, weight)["loss"]
        return total


if __name__ == "__main__":
    TrainerSAM.main()
