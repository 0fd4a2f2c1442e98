"""UNet++: U-Net whose skips are themselves small decoders.

Sources: Zhou et al., "UNet++: A Nested U-Net Architecture for Medical Image Segmentation", DLMIA 2018, and "UNet++:
Redesigning Skip Connections to Exploit Multiscale Features in Image Segmentation", IEEE TMI 2020.
"""

import torch
from torch import Tensor, nn

from model.UNet import DoubleConv, UpSample, check_size


class UNetpp(nn.Module):
    """UNet++ with batch normalization and the paper's channel plan, 32-64-128-256-512, scaled by `width`.

    The nodes form a triangle. Node (i, j) is the j-th at level i, where a level has half the height and width of the
    one above. Column 0 is the encoder. Every other node sees all earlier nodes of its level, and the node below:

        (0,0)  (0,1)  (0,2)  (0,3)  (0,4)       node (i, j) = DoubleConv of the channels of
        (1,0)  (1,1)  (1,2)  (1,3)                  (i, 0), ..., (i, j - 1) and up(i + 1, j - 1)
        (2,0)  (2,1)  (2,2)
        (3,0)  (3,1)
        (4,0)

    Each of the nodes (0, 1) to (0, 4) ends a complete U-Net of 1 to 4 levels. Without deep supervision the logits come
    from (0, 4). With it all four give logits: in training they are returned as a list, and each gets the loss (see
    `CEDiceLoss`); in evaluation the mean of the four logits is returned, the "accurate mode" of the paper.

    With 3 channels and 2 classes it has 9,045,858 parameters ("transposed") or 8,357,730 ("bilinear").

    Args:
        n_channels: channels of an image.
        n_classes: number of logits per pixel; 1 for a binary mask with a sigmoid.
        width: channels of the first level; level i has width * 2**i. Take 8 on a small machine.
        up: how a node's features get twice the size and half the channels, "bilinear" or "transposed", see `UpSample`.
        deep_supervision: whether all four nodes of the first level give logits.

    Attributes:
        divisor: images whose height and width are multiples of it need no padding inside the network.

    Raises:
        UserError: when `up` is neither, or an image is smaller than 16 pixels.
    """

    divisor = 16  # four times halved

    def __init__(
        self,
        n_channels: int = 3,
        n_classes: int = 2,
        width: int = 32,
        up: str = "bilinear",
        deep_supervision: bool = False,
    ):
        super().__init__()
        self.deep_supervision = deep_supervision
        widths = [width * 2**level for level in range(5)]  # 32, 64, 128, 256, 512
        self.pool = nn.MaxPool2d(kernel_size=2)
        self.encoder = nn.ModuleList()
        for in_channels, out_channels in zip([n_channels, *widths[:-1]], widths, strict=True):
            self.encoder.append(DoubleConv(in_channels, out_channels))
        self.ups = nn.ModuleDict()
        self.nodes = nn.ModuleDict()
        for j in range(1, 5):
            for i in range(5 - j):
                self.ups[f"{i}_{j}"] = UpSample(widths[i + 1], up)
                self.nodes[f"{i}_{j}"] = DoubleConv((j + 1) * widths[i], widths[i])  # j earlier nodes, one from below
        self.heads = nn.ModuleList(nn.Conv2d(width, n_classes, 1) for _ in range(4 if deep_supervision else 1))

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Return the logits (N, n_classes, H, W) of images (N, n_channels, H, W), with H and W of at least 16.

        In training with deep supervision: a list of four such logits, from the shallowest U-Net to the deepest.
        """
        check_size(images, self.divisor)
        levels = [[self.encoder[0](images)]]  # levels[i][j] is node (i, j): (N, width * 2**i, H / 2**i, W / 2**i)
        for block in self.encoder[1:]:
            levels.append([block(self.pool(levels[-1][0]))])
        for j in range(1, 5):
            for i in range(5 - j):
                earlier = levels[i]
                below = self.ups[f"{i}_{j}"](levels[i + 1][j - 1], skip=earlier[0])
                features = torch.cat([*earlier, below], dim=1)  # (N, (j + 1) * width * 2**i, H / 2**i, W / 2**i)
                levels[i].append(self.nodes[f"{i}_{j}"](features))
        if not self.deep_supervision:
            return self.heads[0](levels[0][4])  # (N, n_classes, H, W)
        logits = [head(node) for head, node in zip(self.heads, levels[0][1:], strict=True)]
        return logits if self.training else torch.stack(logits).mean(dim=0)  # 4 × or 1 × (N, n_classes, H, W)
