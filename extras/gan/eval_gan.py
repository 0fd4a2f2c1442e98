"""Evaluate a GAN on FashionMNIST: python eval_gan.py --model_path Results/GAN/.../GAN_best_ckpt.pth"""

from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from data.FashionMNIST import CLASSES
from engine.options.parser import BoolAction, OptionParser, number, one_of
from eval import EvaluatorBase
from extras.gan.classifier_score import ClassifierScore
from extras.gan.DCGAN import draw_noise
from model.model_entry import build_networks
from utils.draw import captioned_grid, save_picture
from utils.errors import UserError
from utils.meter import AvgMeter
from utils.metrics import Accuracy

NUM_DRAWN = 64
NOISE_SEED = 0  # of every evaluation, so that the same generator makes the same images


class EvaluatorGAN(EvaluatorBase):
    """Evaluate a GAN on FashionMNIST. Options that are not given are those of the checkpoint.

    A classifier, the judge, scores as many generated images as there are real ones, and the real ones for comparison.
    It is a frozen network of the checkpoint.
    """

    task = "generation"

    @classmethod
    def add_options(cls, parser: OptionParser) -> None:
        add = parser.add_argument_group("generation").add_argument
        add("--latent", type=number(int, low=1, high=4096), default=64, metavar="N", help="numbers in a noise vector")
        add("--width", type=number(int, low=1, high=4096), default=32, metavar="N",
            help="channels of the level with half the size of an image")
        add("--batch_norm", action=BoolAction, default=True, help="batch normalization in both networks")
        add("--judge_type", type=one_of(("LeNet", "Vanilla")), default="LeNet", metavar="NAME",
            help="the classifier that judges the images: LeNet or Vanilla")

    @classmethod
    def build_networks(cls, opt: Namespace) -> dict[str, nn.Module]:
        networks = super().build_networks(opt)
        if not {"generator", "discriminator"} <= networks.keys():
            raise UserError(
                f"--model_type {opt.model_type} makes a single network, and a GAN has a generator and a discriminator: "
                f"take DCGAN, or an evaluator of your own that overrides build_networks."
            )
        classifier = Namespace(model_type=opt.judge_type, n_channels=opt.n_channels, n_classes=opt.n_classes)
        judge = build_networks(classifier)["model"]
        return {**networks, "judge": judge.requires_grad_(False)}

    def build_meters(self) -> dict[str, Any]:
        num_classes = self.opt.n_classes
        return {
            "samples": ClassifierScore(num_classes),
            "real": ClassifierScore(num_classes),
            "judge_accuracy": Accuracy(),
            "loss_discriminator": AvgMeter(),
            "loss_generator": AvgMeter(),
        }

    def evaluate(self, loader: Iterable, before_batch: Callable[[], None] = lambda: None) -> dict[str, float]:
        # The noise of an image depends on its place alone, and not on batches or processes.
        counts = self.distributed.gather(loader.num_samples)
        self.place = sum(counts[: self.distributed.rank])
        self.noise = draw_noise(sum(counts), self.networks["generator"].latent, NOISE_SEED)
        return super().evaluate(loader, before_batch)

    def eval_step(self, batch: Any) -> None:
        images, labels = batch  # (N, 1, 28, 28), (N,)
        places = torch.arange(self.place, self.place + len(labels)) % len(self.noise)  # padding may go beyond the end
        noise = self.noise[places].to(self.device)  # (N, latent)
        self.place += len(labels)
        generated = self.networks["generator"](noise)  # (N, 1, 28, 28)

        # The judge's scores.
        logits = self.networks["judge"](images)  # (N, 10)
        self.meters["real"].update(logits)
        self.meters["judge_accuracy"].update(logits, labels)
        self.meters["samples"].update(self.networks["judge"](generated))

        # The two losses of the training.
        logits_real = self.networks["discriminator"](images)  # (N,)
        logits_generated = self.networks["discriminator"](generated)  # (N,)
        loss_discriminator = discriminator_loss(self.criterion, logits_real, logits_generated)
        loss_generator = self.criterion(logits_generated, torch.ones_like(logits_generated))
        self.meters["loss_discriminator"].update(loss_discriminator, n=len(labels))
        self.meters["loss_generator"].update(loss_generator, n=len(labels))

    def draw(self, batch: Any = None) -> Tensor:
        """Draw images of the same noise each time, captioned with the class that the judge predicts; red if unsure."""
        generator = self.networks["generator"]
        images = generator(draw_noise(NUM_DRAWN, generator.latent, NOISE_SEED).to(self.device))
        probabilities = self.networks["judge"](images).float().softmax(dim=1)  # (NUM_DRAWN, 10)
        highest, classes = probabilities.max(dim=1)  # (NUM_DRAWN,) each
        captions = [CLASSES[k] if k < len(CLASSES) else str(k) for k in classes.tolist()]
        unsure = (highest < self.meters["samples"].threshold).tolist()
        return captioned_grid(images, captions, marked=unsure, max_images=NUM_DRAWN)

    def report(self, loader: Iterable) -> None:
        """Save a picture of generated images."""
        if self.opt.viz:
            save_picture(self.picture(loader).float() / 255, self.output_dir / "samples.png")
            self.logger.info(f"Picture: {self.output_dir / 'samples.png'}")


def discriminator_loss(criterion: nn.Module, logits_real: Tensor, logits_generated: Tensor) -> Tensor:
    """Return the loss of the discriminator: its targets are 1 for real images and 0 for generated ones.

    Args:
        criterion: takes logits and targets, and returns a scalar.
        logits_real, logits_generated: (N,).
    """
    loss_real = criterion(logits_real, torch.ones_like(logits_real))
    loss_generated = criterion(logits_generated, torch.zeros_like(logits_generated))
    return loss_real + loss_generated


if __name__ == "__main__":
    EvaluatorGAN.main()
