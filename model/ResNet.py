"""A residual network for small images: the stem keeps their size.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016: the blocks and widths of its
ResNet-18 for ImageNet, with the 3 x 3 stem without pooling of its networks for CIFAR-10 (section 4.2).
"""

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS, BLOCKS = (64, 128, 256, 512), 2  # channels of the four stages, and blocks in each


class Block(nn.Module):
    """Two 3 x 3 convolutions, whose output is added to the input.

    Args:
        n_in, n_out: channels. Where they differ, or with a stride, a 1 x 1 convolution fits the input (option B).
        stride: of the first convolution.
    """

    def __init__(self, n_in: int, n_out: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            shortcut = nn.Conv2d(n_in, n_out, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(n_out))

    def forward(self, features: Tensor) -> Tensor:
        """(N, n_in, H, W) to (N, n_out, H / stride, W / stride)."""
        hidden = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(features))


class ResNet18(nn.Module):
    """Seventeen convolutions and a linear layer, for images from 8 x 8 pixels on, of any size.

    With the defaults it has 11,172,810 parameters.

    Args:
        n_channels: channels of an image.
        n_classes: number of classes, the length of the output.
    """

    def __init__(self, n_channels: int = 1, n_classes: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(n_channels, WIDTHS[0], kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        blocks, n_in = [], WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for place in range(BLOCKS):
                blocks.append(Block(n_in, width, stride=2 if stage > 0 and place == 0 else 1))
                n_in = width
        self.layers = nn.Sequential(*blocks)
        self.classifier = nn.Linear(n_in, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # He et al., ICCV 2015

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, n_classes) of images (N, n_channels, H, W)."""
        features = self.layers(F.relu(self.norm(self.stem(images))))  # (N, 512, H / 8, W / 8)
        return self.classifier(features.mean(dim=(2, 3)))
