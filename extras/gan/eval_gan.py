"""Evaluate a GAN on FashionMNIST: python eval_gan.py --model_path Results/GAN/.../DCGAN_best_ckpt.pth"""

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
NOISE_SEED = 0  # of every evaluation, so that the same generator always makes the same images


class EvaluatorGAN(EvaluatorBase):
    """Evaluate a GAN on FashionMNIST. Options that are not given are those of the checkpoint.

    A classifier, the judge, looks at as many made images as there are real ones, and at the real ones, so that there is
    something to compare with. It is a frozen network of the checkpoint.
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
        # Which noise goes with which real image depends on its place alone: not on batches, and not on processes.
        counts = self.distributed.gather(loader.num_samples)
        self.place = sum(counts[: self.distributed.rank])
        self.noise = draw_noise(sum(counts), self.networks["generator"].latent, NOISE_SEED)
        return super().evaluate(loader, before_batch)

    def eval_step(self, batch: Any) -> None:
        images, labels = batch  # (N, 1, 28, 28), (N,)
        places = torch.arange(self.place, self.place + len(labels)) % len(self.noise)  # one may only keep in step
        noise = self.noise[places].to(self.device)  # (N, latent)
        self.place += len(labels)
        made = self.networks["generator"](noise)  # (N, 1, 28, 28)
        says_real, says_made = self.networks["discriminator"](images), self.networks["discriminator"](made)  # (N,)
        judged = self.networks["judge"](images)  # (N, 10)
        self.meters["real"].update(judged)
        self.meters["judge_accuracy"].update(judged, labels)
        self.meters["samples"].update(self.networks["judge"](made))
        loss = discriminator_loss(self.criterion, says_real, says_made)
        self.meters["loss_discriminator"].update(loss, n=len(labels))
        self.meters["loss_generator"].update(self.criterion(says_made, torch.ones_like(says_made)), n=len(labels))

    def draw(self, batch: Any = None) -> Tensor:
        """Draw images of the same noise each time, with what the judge takes them for; red where it is not sure."""
        generator = self.networks["generator"]
        images = generator(draw_noise(NUM_DRAWN, generator.latent, NOISE_SEED).to(self.device))
        sure, classes = self.networks["judge"](images).float().softmax(dim=1).max(dim=1)  # (NUM_DRAWN,) each
        captions = [CLASSES[k] if k < len(CLASSES) else str(k) for k in classes.tolist()]
        unsure = (sure < self.meters["samples"].threshold).tolist()
        return captioned_grid(images, captions, marked=unsure, max_images=NUM_DRAWN)

    def report(self, loader: Iterable) -> None:
        """Save a picture of what the generator makes."""
        if self.opt.viz:
            save_picture(self.picture(loader).float() / 255, self.output_dir / "samples.png")
            self.logger.info(f"Picture: {self.output_dir / 'samples.png'}")


def discriminator_loss(criterion: nn.Module, says_real: Tensor, says_made: Tensor) -> Tensor:
    """What the discriminator learns: 1 for real images, 0 for made ones; of logits (N,), a scalar."""
    of_real = criterion(says_real, torch.ones_like(says_real))
    return of_real + criterion(says_made, torch.zeros_like(says_made))


if __name__ == "__main__":
    EvaluatorGAN.main()
