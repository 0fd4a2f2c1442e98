"""U-Net: an encoder that sees the context, a decoder that finds the place, and skips between them.

Source: Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import UserError, nearest

UP_MODES = ("bilinear", "transposed")


class DoubleConv(nn.Sequential):
    """Twice: 3×3 convolution, batch normalization, ReLU. (N, in_channels, H, W) to (N, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int):
        # No bias in the convolutions: batch normalization subtracts the mean and adds a shift of its own.
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class UpSample(nn.Module):
    """Double the height and width and halve the channels, then pad to the size of the skip.

    Args:
        channels: channels of the input; the output has half as many.
        up: "transposed" is a 2×2 transposed convolution with stride 2, the up-convolution of the paper.
            "bilinear" halves the channels with a 1×1 convolution and then interpolates. The order does not change
            the result, since both are linear and one acts within a pixel and the other within a channel, and
            convolving before there are four times as many pixels is cheaper.

    Raises:
        UserError: when `up` is neither.
    """

    def __init__(self, channels: int, up: str = "bilinear"):
        super().__init__()
        if up == "transposed":
            self.up = nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2)
        elif up == "bilinear":
            self.up = nn.Sequential(
                nn.Conv2d(channels, channels // 2, kernel_size=1),
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            )
        else:
            raise UserError(f"up={up!r} is not a way of up-sampling{nearest(up, UP_MODES)}: use one of {UP_MODES}.")

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Return features (N, C, H // 2, W // 2) as (N, C / 2, H, W), for a skip of (N, any, H, W)."""
        features = self.up(features)  # (N, C / 2, H or H - 1, W or W - 1)
        rows = skip.shape[-2] - features.shape[-2]  # 0 or 1: pooling drops the last row of an odd height,
        columns = skip.shape[-1] - features.shape[-1]  # so the missing row and column are the last ones
        if rows or columns:
            features = F.pad(features, (0, columns, 0, rows))
        return features


class UNet(nn.Module):
    """U-Net with padded convolutions and batch normalization.

    The paper convolves without padding, so that its output is smaller than its input, and has no normalization. Both
    are usual now: here the output has the input's size. The channel plan is the paper's, 64-128-256-512-1024, and
    `width` scales it. With 3 channels and 2 classes it has 31,037,698 parameters ("transposed") or 28,948,738
    ("bilinear").

    Args:
        n_channels: channels of an image.
        n_classes: number of logits per pixel; 1 for a binary mask with a sigmoid.
        width: channels of the first level; level k has width * 2**k. Take 8 or 16 on a small machine.
        up: how the decoder doubles the size and halves the channels, "bilinear" or "transposed", see `UpSample`.

    Attributes:
        divisor: images whose height and width are multiples of it need no padding inside the network.

    Raises:
        UserError: when `up` is neither, or an image is smaller than 16 pixels.
    """

    divisor = 16  # four times halved

    def __init__(self, n_channels: int = 3, n_classes: int = 2, width: int = 64, up: str = "bilinear"):
        super().__init__()
        widths = [width * 2**level for level in range(5)]  # 64, 128, 256, 512, 1024
        self.pool = nn.MaxPool2d(kernel_size=2)
        self.encoder = nn.ModuleList()
        for in_channels, out_channels in zip([n_channels, *widths[:-1]], widths, strict=True):
            self.encoder.append(DoubleConv(in_channels, out_channels))
        self.ups = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for channels in reversed(widths[:-1]):  # from the bottom to the top
            self.ups.append(UpSample(2 * channels, up))
            self.decoder.append(DoubleConv(2 * channels, channels))  # the skip and what comes from below
        self.head = nn.Conv2d(width, n_classes, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, n_classes, H, W) of images (N, n_channels, H, W), with H and W of at least 16."""
        check_size(images, self.divisor)
        features = self.encoder[0](images)  # (N, width, H, W)
        skips = []
        for block in self.encoder[1:]:
            skips.append(features)
            features = block(self.pool(features))  # (N, 2C, H / 2, W / 2), at last (N, 16 * width, H / 16, W / 16)
        for up, block in zip(self.ups, self.decoder, strict=True):
            skip = skips.pop()
            features = torch.cat([skip, up(features, skip)], dim=1)  # (N, C / 2 + C / 2, 2H, 2W)
            features = block(features)  # (N, C / 2, 2H, 2W), at last (N, width, H, W)
        return self.head(features)  # (N, n_classes, H, W)


def check_size(images: Tensor, smallest: int) -> None:
    """Raise `UserError` when the height or width of images (N, C, H, W) is below `smallest`, in pixels."""
    height, width = images.shape[-2:]
    if height < smallest or width < smallest:
        raise UserError(
            f"Images of {height}x{width} pixels are too small for this network: it halves them four times. "
            f"Give images of at least {smallest}x{smallest}."
        )
