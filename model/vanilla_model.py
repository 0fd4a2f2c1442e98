"""A multilayer perceptron: the smallest network that learns FashionMNIST."""

from torch import Tensor, nn


class VanillaModel(nn.Module):
    """Three linear layers with ReLU between them, on the flattened image.

    With the defaults it has 669,706 parameters.

    Args:
        n_channels: channels of an image.
        n_classes: number of classes, the length of the output.
        size: height and width of an image, in pixels. Every image must have this size.
    """

    def __init__(self, n_channels: int = 1, n_classes: int = 10, size: int = 28):
        super().__init__()
        self.flatten = nn.Flatten()
        self.layers = nn.Sequential(
            nn.Linear(n_channels * size * size, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, n_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, n_classes) of images (N, n_channels, size, size)."""
        flat = self.flatten(images)  # (N, n_channels * size * size)
        return self.layers(flat)  # (N, n_classes)
