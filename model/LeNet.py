"""LeNet-5: a convolutional network for handwritten digits, with today's activation and pooling.

LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 1998.
"""

from torch import Tensor, nn

from utils.errors import UserError


class LeNet(nn.Module):
    """Two convolutions and three linear layers, with ReLU and maximum pooling where the paper has tanh and averages.

    With the defaults it has 61,706 parameters.

    Args:
        n_channels: channels of an image.
        n_classes: number of classes, the length of the output.
        size: height and width of an image, in pixels; at least 12. Every image must have this size.
    """

    def __init__(self, n_channels: int = 1, n_classes: int = 10, size: int = 28):
        super().__init__()
        self.size = size
        side = (size // 2 - 4) // 2  # pixels, after the second pooling
        self.features = nn.Sequential(
            nn.Conv2d(n_channels, 6, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * side * side, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, n_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, n_classes) of images (N, n_channels, size, size)."""
        if images.shape[-2:] != (self.size, self.size):
            height, width = images.shape[-2:]
            raise UserError(f"LeNet was built for images of {self.size} x {self.size} pixels, not {height} x {width}.")
        return self.classifier(self.features(images))  # (N, 16, side, side), (N, n_classes)
