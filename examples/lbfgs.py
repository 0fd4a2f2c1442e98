"""An optimizer that calls for the loss as often as it likes: L-BFGS (Liu and Nocedal 1989): python -m examples.lbfgs

It wants the same loss each time, so each update is a large batch. Its history is a part of the checkpoint.
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
            raise UserError("L-BFGS wants true gradients, all of them: no --amp fp16, and no --parallel fsdp.")
        parameters, how = self.networks["model"].parameters(), {"max_iter": self.opt.max_iter, "history_size": 10}
        return {"model": torch.optim.LBFGS(parameters, lr=self.opt.lr, line_search_fn="strong_wolfe", **how)}

    def train_step(self, update: Update) -> dict[str, torch.Tensor]:
        seen: list[dict[str, torch.Tensor]] = []

        def closure() -> float:
            self.optimizer.zero_grad(set_to_none=True)
            losses = []
            for batch, weight in self.weighted(update):
                with self.precision.autocast():
                    loss = self.compute_loss(batch)
                losses.append(self.backward(loss, weight)["loss"])
            norm = self.clipper(self.networks["model"].parameters())
            self.guard.check("model", norm)  # raises before a step is made of what is not finite
            self.guard.stepped = ["model"]  # from now on the weights move
            seen.append({"loss": sum(losses), "grad_norm": norm})
            mean = self.distributed.mean({"loss": float(sum(losses))}, update.num_local)
            return mean["loss"]  # the same in all processes

        self.optimizer.step(closure)
        return seen[0]  # at the weights that the update began with


if __name__ == "__main__":
    TrainerLBFGS.main()
