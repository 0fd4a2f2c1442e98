"""The judge's score of generated images."""

import math

import torch
from torch import Tensor

from utils.errors import UserError
from utils.meter import Meter


class ClassifierScore(Meter):
    """How real and how diverse a classifier finds images that have no target, such as generated ones.

    "score" is the inception score with another classifier, exp(mean KL(p(class | image) || p(class))), from 1 to the
    number of classes. It is high when the classifier is sure of each image, and predicts all classes equally often.
    Source: Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016. Its two halves are easier to read.
    "confident" is the share of images whose most probable class has at least `threshold`. "diversity" is the entropy of
    the predicted classes, as a share of the largest possible: 0 for one class, 1 for all equally often. None of them
    notices images that are all alike within their class.

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
        """Add the logits (N, C) of a batch of images."""
        assert logits.shape[1] == self.num_classes, f"{logits.shape[1]} logits, but num_classes is {self.num_classes}"
        self.logits.append(logits.detach().float())

    def compute(self) -> dict[str, float]:
        """Return "score", "confident" and "diversity"; NaN before the first update."""
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
