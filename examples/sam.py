"""Two passes per update: sharpness-aware minimization (Foret et al., ICLR 2021): python -m examples.sam --n_epoch 2

A step goes down along the gradient that is found a little way uphill, where a narrow valley shows how narrow it is.
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
            "--rho", type=number(float, low=0), default=0.05, metavar="X", help="how far uphill the gradient is taken"
        )

    def train_step(self, update: Update) -> dict[str, torch.Tensor]:
        loss = self.compute_gradient(update)
        parameters = [p for p in self.networks["model"].parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters]
        with torch.no_grad():
            here = [p.clone() for p in parameters]
            uphill = self.opt.rho / (measure(gradients) + 1e-12)
            torch._foreach_add_(parameters, [gradient * uphill for gradient in gradients])
        self.compute_gradient(update)
        with torch.no_grad():
            for parameter, value in zip(parameters, here, strict=True):
                parameter.copy_(value)  # to the bit, where a subtraction would round
        return {"loss": loss, "grad_norm": self.optimizer_step("model")}

    def compute_gradient(self, update: Update) -> torch.Tensor:
        """Give the weights the gradient of an update's loss, and return the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for batch, weight in self.weighted(update):
            with self.precision.autocast():
                loss = self.compute_loss(batch)
            losses.append(self.backward(loss, weight)["loss"])
        return sum(losses)


if __name__ == "__main__":
    TrainerSAM.main()
