"""An optimizer that evaluates the loss several times in a step, L-BFGS (Liu and Nocedal 1989): python -m examples.lbfgs

Its line search compares losses, so each update is one large batch. Its history is part of the checkpoints.
"""

import torch

from data.loader import Update
from engine.options.parser import OptionParser, number
from trainer_vanilla import TrainerVanilla
from utils.errors import UserError


class TrainerLBFGS(TrainerVanilla):
    """Train a FashionMNIST classifier with L-BFGS."""

    defaults = {
        **TrainerVanilla.defaults, "proj_name": "LBFGS", "output_dir": "./Results/LBFGS/", "lr": 1.0,
        "lr_scheduler": "constant", "batch_size": 2000, "n_epoch": 5,
    }  # fmt: skip

    @classmethod
    def add_options(cls, parser: OptionParser) -> None:
        parser.add_argument_group("L-BFGS").add_argument(
            "--max_iter", type=number(int, low=1), default=5, metavar="N", help="iterations per update"
        )

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        if self.opt.amp == "fp16" or self.distributed.is_sharded:
            raise UserError("L-BFGS needs whole, unscaled gradients: no --amp fp16, and no --parallel fsdp.")
        optimizer = torch.optim.LBFGS(
            self.networks["model"].parameters(),
            lr=self.opt.lr,
            max_iter=self.opt.max_iter,
            history_size=10,
            line_search_fn="strong_wolfe",
        )
        return {"model": optimizer}

    def train_step(self, update: Update) -> dict[str, torch.Tensor]:
        evaluations: list[dict[str, torch.Tensor]] = []

        def closure() -> float:
            self.optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for batch, weight in self.weighted(update):
                with self.precision.autocast():
                    loss = self.compute_loss(batch)
                total += self.backward(loss, weight)["loss"]
            norm = self.clipper(self.networks["model"].parameters())
            self.guard.check("model", norm)  # raises before a non-finite gradient reaches the weights
            self.guard.stepped = ["model"]  # from here on the update cannot be undone
            evaluations.append({"loss": total, "grad_norm": norm})
            mean = self.distributed.mean({"loss": float(total)}, update.num_local)
            return mean["loss"]  # the same in all processes, else their line searches would differ

        self.optimizer.step(closure)
        return evaluations[0]  # at the weights before the update


if __name__ == "__main__":
    TrainerLBFGS.main()
