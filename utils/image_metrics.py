"""Metrics of image quality: how near a restored or generated image is to its target.

Every metric is a meter (utils/meter.py): `update` with each batch, `compute` at the end. Before anything was seen the
answer is NaN. Predictions are images, not logits, and must be on the device of the meter.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from utils.errors import UserError
from utils.meter import Meter


class PSNR(Meter):
    """The peak signal-to-noise ratio in decibels, 10 log10(data_range² / MSE), as a mean over images.

    An image that equals its target has no noise: its ratio is infinite, and so is then the mean.

    Args:
        data_range: the largest possible value minus the smallest: 1 for images in [0, 1], 2 for [-1, 1].

    >>> meter = PSNR()
    >>> meter.update(torch.full((1, 1, 4, 4), 0.6), torch.full((1, 1, 4, 4), 0.5))
    >>> round(meter.compute(), 3)
    20.0
    """

    def __init__(self, data_range: float = 1.0) -> None:
        super().__init__()
        self.data_range = data_range
        self.declare_rows("decibels", (), torch.float32)

    @torch.no_grad()
    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add images (N, C, H, W) and their targets of the same shape."""
        assert preds.shape == target.shape, f"preds {tuple(preds.shape)}, target {tuple(target.shape)}"
        squared_error = (preds.float() - target.float()).square().flatten(1).mean(dim=1)  # (N,)
        self.decibels.append(20 * math.log10(self.data_range) - 10 * squared_error.log10())

    def compute(self) -> float:
        return torch.cat(self.decibels).cpu().double().mean().item()


class SSIM(Meter):
    """The structural similarity of images and targets, at most 1, as a mean over images.

    Means, variances and the covariance are taken around every pixel, in each channel by itself, under a Gaussian
    window of 11 × 11 pixels (standard deviation 1.5). At the border the image is reflected, as torchmetrics does;
    implementations that leave out the border differ in the third decimal.

    Source: Wang, Bovik, Sheikh and Simoncelli, Image Quality Assessment: From Error Visibility to Structural
    Similarity, IEEE Transactions on Image Processing, 2004, with the constants given there.

    Args:
        data_range: the largest possible value minus the smallest: 1 for images in [0, 1], 2 for [-1, 1].
    """

    window_size, sigma, k1, k2 = 11, 1.5, 0.01, 0.03

    def __init__(self, data_range: float = 1.0) -> None:
        super().__init__()
        self.data_range = data_range
        offsets = torch.arange(self.window_size, dtype=torch.float64) - self.window_size // 2
        weights = torch.exp(-offsets.square() / (2 * self.sigma**2))
        self.window = (weights / weights.sum()).tolist()  # plain numbers: they need not move between devices
        self.declare_rows("similarities", (), torch.float32)

    def blur(self, images: Tensor) -> Tensor:
        """Average (N, C, H, W) under the window around each pixel, along the rows, then along the columns.

        A sum of shifted images, and not a convolution: GPUs (in TF32) and mixed precision round the inputs of a
        convolution, and the variance, a small difference of large numbers, would be lost.
        """
        height, width = images.shape[-2:]
        images = functional.pad(images, [self.window_size // 2] * 4, mode="reflect")  # (N, C, H + 10, W + 10)
        images = sum(weight * images[..., i : i + width] for i, weight in enumerate(self.window))  # (N, C, H + 10, W)
        return sum(weight * images[..., i : i + height, :] for i, weight in enumerate(self.window))  # (N, C, H, W)

    @torch.no_grad()
    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add images (N, C, H, W), H and W at least 6, and their targets of the same shape."""
        assert preds.shape == target.shape, f"preds {tuple(preds.shape)}, target {tuple(target.shape)}"
        height, width = preds.shape[-2:]
        if min(height, width) <= self.window_size // 2:
            raise UserError(f"SSIM needs images of at least 6 by 6 pixels to reflect, not {height} by {width}.")
        x, y = preds.float(), target.float()
        mean_x, mean_y = self.blur(x), self.blur(y)  # (N, C, H, W)
        variance_x = self.blur(x * x) - mean_x.square()
        variance_y = self.blur(y * y) - mean_y.square()
        covariance = self.blur(x * y) - mean_x * mean_y
        c1, c2 = (self.k1 * self.data_range) ** 2, (self.k2 * self.data_range) ** 2
        luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
        contrast_and_structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
        self.similarities.append((luminance * contrast_and_structure).flatten(1).mean(dim=1))  # (N,)

    def compute(self) -> float:
        return torch.cat(self.similarities).cpu().double().mean().item()


class ClassifierScore(Meter):
    """How real, and how different from each other, a classifier finds images that have no target: generated ones.

    "score" is the inception score with a classifier of one's own, exp(mean KL(p(class | image) || p(class))), from 1 to
    the number of classes: it is high when the classifier is sure of each image, and finds all classes equally often.
    Source: Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016. Its two halves are easier to read:
    "confident" is the share of images whose most probable class has at least `threshold`; "diversity" is the entropy of
    the distribution of the predicted classes, as a share of the largest possible, 0 (one class) to 1 (all equally
    often). None of them notices images that are all alike within their class.

    Args:
        num_classes: C, at least 2.
        threshold: probability, 0 to 1.

    >>> meter = ClassifierScore(num_classes=2)
    >>> meter.update(torch.tensor([[50.0, 0.0], [0.0, 50.0]]))
    >>> {name: round(value, 3) for name, value in meter.compute().items()}
    {'score': 2.0, 'confident': 1.0, 'diversity': 1.0}
    """

    def __init__(self, num_classes: int, threshold: float = 0.9) -> None:
        super().__init__()
        if num_classes < 2 or not 0 <= threshold <= 1:
            raise UserError(f"num_classes {num_classes}, threshold {threshold}: give 2 or more classes, and 0 to 1.")
        self.num_classes, self.threshold = num_classes, threshold
        self.declare_rows("logits", (num_classes,), torch.float32)

    def update(self, logits: Tensor) -> None:
        """Add what the classifier says of a batch of images, (N, C)."""
        assert logits.shape[1] == self.num_classes, f"{logits.shape[1]} logits, but num_classes is {self.num_classes}"
        self.logits.append(logits.detach().float())

    def compute(self) -> dict[str, float]:
        """Return "score", "confident" and "diversity"; NaN before anything was seen."""
        logs = torch.cat(self.logits).cpu().double().log_softmax(dim=1)  # (N, C)
        probabilities = logs.exp()
        marginal = probabilities.mean(dim=0)  # (C,)
        divergence = (probabilities * (logs - marginal.log())).nansum(dim=1)  # (N,); 0 log 0 is 0
        counts = torch.bincount(probabilities.argmax(dim=1), minlength=self.num_classes).double()  # (C,)
        shares = counts / counts.sum()
        return {
            "score": divergence.mean().exp().item(),
            "confident": (probabilities.amax(dim=1) >= self.threshold).double().mean().item(),
            "diversity": (0.0 - torch.xlogy(shares, shares).sum().item()) / math.log(self.num_classes),
        }
