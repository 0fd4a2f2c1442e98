"""Select the loss by --loss_type.

To add a loss: write it in a file of its own, and name it here with the task that it is for. A loss is a mean over the
samples of a batch; otherwise the result would depend on the size of the micro-batches.
"""

from argparse import Namespace

from torch import nn

LOSS_TYPES = {
    "CE": "classification",
    "CEDice": "segmentation",
    "PixelCE": "segmentation",
    "Dice": "segmentation",
    "BCE": "generation",  # Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014
    "LeastSquares": "generation",  # Mao et al., "Least Squares Generative Adversarial Networks", ICCV 2017
}


def loss_types(task: str | None) -> list[str]:
    """The names for --loss_type that fit a task; all of them for None."""
    return [name for name, of_task in LOSS_TYPES.items() if task in (None, of_task)]


def build_criterion(opt: Namespace) -> nn.Module:
    """Return the loss: a module that takes (outputs, targets) and returns a scalar."""
    if opt.loss_type == "CE":
        return nn.CrossEntropyLoss(label_smoothing=getattr(opt, "label_smoothing", 0.0))
    if opt.loss_type in ("BCE", "LeastSquares"):
        return nn.BCEWithLogitsLoss() if opt.loss_type == "BCE" else nn.MSELoss()
    weights = {"CEDice": (1.0, 1.0), "PixelCE": (1.0, 0.0), "Dice": (0.0, 1.0)}
    if opt.loss_type in weights:
        from loss.dice_loss import CEDiceLoss

        ce_weight, dice_weight = weights[opt.loss_type]
        return CEDiceLoss(opt.n_classes, ce_weight=ce_weight, dice_weight=dice_weight)
    raise NotImplementedError(f"{opt.loss_type} is named in LOSS_TYPES, but build_criterion has no branch for it.")
