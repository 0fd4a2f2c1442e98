"""Train a segmentation network: python trainer_seg_on_carvana.py --data_dir ./Dataset/Carvana/"""

from options import answer_early

if __name__ == "__main__":
    answer_early(__file__)  # --help and a wrong option, before torch is imported

from typing import Any

import torch

from engine.options.parser import OptionParser, number
from eval_seg_on_carvana import EvaluatorSeg
from trainer import TrainerBase


class TrainerSeg(TrainerBase):
    """Train UNet or UNet++ to find the car in a picture."""

    evaluator_class = EvaluatorSeg
    defaults = {
        "proj_name": "SegOnCarvana",
        "output_dir": "./Results/Carvana/",
        "model_type": "UNet",
        "data_type": "Carvana",
        "data_dir": "./Dataset/Carvana/",
        "train_val_sample_rate": 0.08,
        "test_sample_rate": 0.02,
        "n_channels": 3,
        "n_classes": 2,
        "loss_type": "CEDice",
        "n_epoch": 50,
        "batch_size": 8,
        "lr": 1e-3,
        "warmup_epoch": 1.0,
        "clip": 1.0,
        "num_workers": 2,
        "log_every": 10,
        "monitor": "dice",
    }

    @classmethod
    def add_options(cls, parser: OptionParser) -> None:
        add = parser.add_argument_group("training images").add_argument
        add("--shuffle_shards", type=number(int, low=1, high=10**6), default=4, metavar="N",
            help="CarvanaShards: an epoch mixes the samples of N shards at a time")

    def compute_loss(self, batch: Any) -> torch.Tensor:
        images, masks = batch  # (N, 3, H, W), (N, H, W)
        logits = self.model(images)  # (N, n_classes, H, W), or a list of them with deep supervision
        return self.criterion(logits, masks)


if __name__ == "__main__":
    TrainerSeg.main()
