"""Train a GAN on FashionMNIST, with two networks and two optimizers: python trainer_gan.py"""

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
from engine.checkpoints.restore import set_state
from engine.devices.process_group import share_of
from engine.optimizers import make_optimizers
from engine.options.parser import OptionParser, file_path, number
from extras.by_network import arguments_of
from extras.callbacks.pictures import Pictures
from extras.gan.DCGAN import draw_noise
from extras.gan.eval_gan import EvaluatorGAN, discriminator_loss
from extras.pretrained import find_weights
from trainer import TrainerBase
from utils.seed import mix

LEARN = ("discriminator", "generator")
LESSONS = 600  # updates of the judge
LESSON_SIZE = 64  # samples of each


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
            help="decay of the mean of the gradients, for optimizers of Adam's family")
        add("--judge", type=file_path, default=None, metavar="FILE",
            help="a checkpoint of trainer_vanilla.py whose --model_type is --judge_type; without it, the judge is "
            f"trained on the training images for {LESSONS} updates when the run begins")

    def build_networks(self) -> dict[str, nn.Module]:
        networks = super().build_networks()
        if not self.opt.resume:  # else the checkpoint has the judge
            train_judge(networks["judge"], self.datasets["train"], self.opt)
        return networks

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers = make_optimizers(self.opt, {name: self.networks[name] for name in LEARN})
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                if "betas" in group and "betas" not in arguments_of(self.opt.optim_args, name, LEARN):
                    group["betas"] = (self.opt.beta1, group["betas"][1])
        return optimizers

    def build_callbacks(self) -> list[Callback]:
        return [*super().build_callbacks(), Pictures(self.run_dir.path / "samples")]

    def train_step(self, update: Update) -> dict[str, Tensor]:
        """Step the discriminator, then the generator, which learns from the discriminator as it is after its step."""
        noise = self.noise(update)  # of each micro-batch: (N, latent)

        # Step 1: the discriminator learns to tell real images from generated ones.
        self.optimizers["discriminator"].zero_grad(set_to_none=True)
        loss_discriminator = 0.0
        for (batch, weight), vectors in zip(self.weighted(update), noise, strict=True):
            with self.precision.autocast():
                loss = self.loss_of_discriminator(batch, vectors)
            loss_discriminator += self.backward(loss, weight)["loss"]
        norm_discriminator = self.optimizer_step("discriminator")

        # Step 2: the generator learns to make images that the discriminator takes for real ones.
        self.optimizers["generator"].zero_grad(set_to_none=True)
        loss_generator = 0.0
        for (_, weight), vectors in zip(self.weighted(update), noise, strict=True):
            with self.precision.autocast():
                loss = self.loss_of_generator(vectors)
            loss_generator += self.backward(loss, weight)["loss"]
        norm_generator = self.optimizer_step("generator")

        return {
            "loss_discriminator": loss_discriminator,
            "grad_norm_discriminator": norm_discriminator,
            "loss_generator": loss_generator,
            "grad_norm_generator": norm_generator,
        }

    def loss_of_discriminator(self, batch: Any, noise: Tensor) -> Tensor:
        images, _ = batch  # (N, 1, 28, 28)
        with torch.no_grad():
            generated = self.wrapped["generator"](noise)  # (N, 1, 28, 28)
        logits_real = self.wrapped["discriminator"](images)  # (N,)
        logits_generated = self.wrapped["discriminator"](generated)  # (N,)
        return discriminator_loss(self.criterion, logits_real, logits_generated)

    def loss_of_generator(self, noise: Tensor) -> Tensor:
        # Not the wrapped discriminator: processes would add up gradients of it, which this step does not need.
        with frozen(self.networks["discriminator"]) as discriminator:
            logits = discriminator(self.wrapped["generator"](noise))  # (N,)
        return self.criterion(logits, torch.ones_like(logits))

    def noise(self, update: Update) -> list[Tensor]:
        """Return the noise of an update's micro-batches, (N, latent) each.

        It is a function of the seed, the update and the place of a sample in it. So neither a resume nor the number of
        processes or micro-batches makes a difference.
        """
        count = update.num_samples
        vectors = draw_noise(count, self.networks["generator"].latent, mix(self.opt.seed, self.progress.update))
        sizes = [len(labels) for _, labels in update.micro_batches]
        begin, _ = share_of(count, *self.distributed.share)
        places = (begin + torch.arange(sum(sizes))) % count  # a padding micro-batch starts over
        return list(vectors[places].to(self.device).split(sizes))


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Compute gradients for the input of a module in this block, and none for its parameters."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield module
    finally:
        for parameter in trained:
            parameter.requires_grad_()


def train_judge(judge: nn.Module, dataset: Any, opt: Namespace) -> None:
    """Load the weights of the judge from the file `opt.judge`, or train it on the data set, with a seed of its own.

    Raises:
        UserError: the file cannot be read, or its weights do not fit.
    """
    if opt.judge:
        weights = find_weights(load_file(opt.judge), judge.state_dict())
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
