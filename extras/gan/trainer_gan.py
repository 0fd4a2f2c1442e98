"""Train a GAN on FashionMNIST, two networks that learn from each other: python trainer_gan.py"""

import contextlib
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from callbacks.callback import Callback
from data.loader import Update
from engine.checkpoints.file import load_file
from engine.checkpoints.pretrained import find_weights
from engine.checkpoints.state import set_state
from engine.devices.process_group import share_of
from engine.optimizers import make_optimizers
from engine.options.parser import OptionParser, file_path, number
from extras.callbacks.pictures import Pictures
from extras.gan.DCGAN import draw_noise
from extras.gan.eval_gan import EvaluatorGAN, discriminator_loss
from trainer import TrainerBase
from utils.batch import count_samples
from utils.seed import mix

LEARN = ("discriminator", "generator")
LESSONS, LESSON_SIZE = 600, 64  # updates of the judge, and samples in each


class TrainerGAN(TrainerBase):
    """Train a DCGAN (Radford et al. 2016) on FashionMNIST."""

    evaluator_class = EvaluatorGAN
    defaults = {
        "proj_name": "GAN",
        "output_dir": "./Results/GAN/",
        "model_type": "DCGAN",
        "data_type": "FashionMNISTSample",
        "n_channels": 1,
        "n_classes": 10,
        "n_epoch": 20,
        "batch_size": 64,
        "eval_batch_size": 1000,
        "optim": "adam",
        "lr": 2e-4,
        "weight_decay": 0.0,
        "lr_scheduler": "constant",
        "monitor": "samples/score",
        "patience": 0,
    }

    @classmethod
    def add_options(cls, parser: OptionParser) -> None:
        add = parser.add_argument_group("generation, training").add_argument
        add("--beta1", type=number(float, low=0, high=0.9999), default=0.5, metavar="X",
            help="of the optimizers of Adam's family: how long the mean of the gradients is")
        add("--judge", type=file_path, default=None, metavar="FILE",
            help="a checkpoint of trainer_vanilla.py whose --model_type is --judge_type; without it, the judge learns "
            f"the training images for {LESSONS} updates when the run begins")

    def build_networks(self) -> dict[str, nn.Module]:
        networks = super().build_networks()
        if not (self.opt.resume):  # else it is in the checkpoint
            train_judge(networks["judge"], self.datasets["train"], self.opt)
        return networks

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers = make_optimizers(self.opt, {name: self.networks[name] for name in LEARN})
        for group in (group for optimizer in optimizers.values() for group in optimizer.param_groups):
            if "betas" in group and "betas" not in self.opt.optim_args:
                group["betas"] = (self.opt.beta1, group["betas"][1])
        return optimizers

    def build_callbacks(self) -> list[Callback]:
        return [*super().build_callbacks(), Pictures(self.run_dir.path / "samples")]

    def train_step(self, update: Update) -> dict[str, Tensor]:
        """Step the discriminator, then the generator, which meets the discriminator as it is after its step."""
        values = {}
        noise = self.noise([count_samples(batch) for batch in update.micro_batches])
        for name, loss_of in zip(LEARN, (self.loss_of_discriminator, self.loss_of_generator), strict=True):
            self.optimizers[name].zero_grad(set_to_none=True)
            losses = []
            for (batch, weight), vectors in zip(self.weighted(update), noise, strict=True):
                with self.precision.autocast():
                    loss = loss_of(batch, vectors)
                losses.append(self.backward(loss, weight)["loss"])
            values |= {f"loss_{name}": sum(losses), f"grad_norm_{name}": self.optimizer_step(name)}
        return values

    def loss_of_discriminator(self, batch: Any, noise: Tensor) -> Tensor:
        images, _ = batch  # (N, 1, 28, 28)
        with torch.no_grad():
            made = self.wrapped["generator"](noise)  # (N, 1, 28, 28)
        discriminator = self.wrapped["discriminator"]
        return discriminator_loss(self.criterion, discriminator(images), discriminator(made))  # of (N,) and (N,)

    def loss_of_generator(self, batch: Any, noise: Tensor) -> Tensor:
        # Not the wrapped discriminator: nothing of it is to be added up between processes in this step.
        with frozen(self.networks["discriminator"]) as discriminator:
            says_made = discriminator(self.wrapped["generator"](noise))  # (N,)
        return self.criterion(says_made, torch.ones_like(says_made))

    def noise(self, sizes: list[int]) -> list[Tensor]:
        """The noise of this update's micro-batches, which have these sizes: (size, latent) each.

        A function of the seed, the update and the place of a sample in it, so that neither an interruption nor the
        number of processes or micro-batches makes a difference.
        """
        num_samples = min(self.opt.batch_size, self.train_loader.num_samples - self.progress.sample)
        vectors = draw_noise(num_samples, self.networks["generator"].latent, mix(self.opt.seed, self.progress.update))
        begin, _ = share_of(num_samples, *self.distributed.share)
        places = (begin + torch.arange(sum(sizes))) % num_samples  # what only keeps in step begins again
        return list(vectors[places].to(self.device).split(sizes))


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Compute no gradients of the module's parameters in this block, only of its input."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield module
    finally:
        for parameter in trained:
            parameter.requires_grad_()


def train_judge(judge: nn.Module, dataset: Any, opt: Namespace) -> None:
    """Give the judge its weights: those of the file `opt.judge`, or what it learns of the data set, always the same.

    Raises:
        UserError: when the file cannot be read, or its weights do not fit.
    """
    if opt.judge:
        weights = find_weights(load_file(opt.judge))
        return set_state(judge, weights, f"--judge {opt.judge} with --judge_type {opt.judge_type}")
    generator = torch.Generator().manual_seed(mix(opt.seed))
    optimizer = torch.optim.Adam(judge.requires_grad_().parameters(), lr=1e-3)
    for _ in range(LESSONS):
        chosen = torch.randint(len(dataset), (LESSON_SIZE,), generator=generator)
        images, labels = dataset.__getitems__(chosen)  # (N, 1, 28, 28), (N,)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(judge(images), labels).backward()
        optimizer.step()
    judge.requires_grad_(False)


if __name__ == "__main__":
    TrainerGAN.main()
