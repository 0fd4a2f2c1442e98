"""Evaluate what was trained on a table: python -m examples.eval_table Results/Table/TIMESTAMP"""

from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from engine.options.parser import OptionParser, changed, mapping, plain_text
from engine.registry import load
from eval import EvaluatorBase
from extras.own_data.cells import SUFFIXES, texts_of
from extras.own_data.table import read_rows
from extras.own_data.table_network import ScaledLoss, predict_in_unit
from extras.precision_recall import F1
from extras.regression import MAE, R2, RMSE
from utils.meter import AvgMeter
from utils.metrics import Accuracy, ConfusionMatrix


class EvaluatorTable(EvaluatorBase):
    """Evaluate a network that predicts a column of a table: a class or a number."""

    task = "table"

    @classmethod
    def add_options(cls, parser: OptionParser) -> None:
        add = parser.add_argument_group("table").add_argument
        several = {"type": plain_text, "nargs": "+", "metavar": "COLUMN", "default": None}
        add("--target", type=plain_text, default=None, metavar="COLUMN", help="the column to predict")
        add("--features", **several, help="predict it from these, also as 'x*' (default: from all others)")
        add("--leave_out", **several, help="do not predict it from these")
        add("--group", type=plain_text, default=None, metavar="COLUMN", help="rows of a value go to one part")
        add("--categories", **several, help="their numbers are codes; of --target, those of classes")
        add("--columns", type=mapping, default=None, metavar="JSON", help="how cells become inputs; found in training")

    @classmethod
    def build_networks(cls, opt: Namespace) -> dict[str, nn.Module]:
        networks = super().build_networks(opt)
        if opt.columns["target"] is not None:  # a number: its mean and standard deviation
            predict_in_unit(networks, opt.columns["target"])
        return networks

    @classmethod
    def build_criterion(cls, opt: Namespace) -> nn.Module:
        usual = "torch.nn:MSELoss" if (target := opt.columns["target"]) else "CE"
        loss = super().build_criterion(changed(opt, loss_type=opt.loss_type or usual))
        return ScaledLoss(loss, target["std"]) if target else loss

    def build_meters(self) -> dict[str, Any]:
        if target := self.opt.columns["target"]:
            return {"loss": AvgMeter(), "rmse": RMSE(), "mae": MAE(), "r2": R2(target["mean"])}
        of_classes = {"f1": F1(self.opt.n_classes), "confusion": ConfusionMatrix(self.opt.n_classes)}
        return {"loss": AvgMeter(), "accuracy": Accuracy(), **of_classes}

    def eval_step(self, batch: Any) -> None:
        inputs, targets = batch  # (N, F); (N,) classes, or (N, 1) numbers
        outputs = self.model(inputs)  # (N, C) logits, or (N, 1) numbers
        self.record(outputs, targets)
        self.meters["loss"].update(self.criterion(outputs, targets), n=len(inputs))
        for name in self.meters.keys() - {"loss"}:
            self.meters[name].update(outputs, targets)

    def predict_step(self, inputs: Tensor) -> dict[str, Tensor]:
        outputs = self.model(inputs)
        return {"values": outputs} if self.opt.columns["target"] else {"probabilities": outputs.softmax(dim=1)}

    def read_samples(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        yield from read_rows(path, self.opt)

    suffixes = set(SUFFIXES)  # of the files that a prediction takes from a directory
    texts_of = staticmethod(texts_of)  # the cells of each row of a file, for predictions.csv

    def report(self, loader: Iterable) -> None:
        if not self.opt.columns["target"]:
            load("extras.evaluation.classes:report_classes", "viz")(self, loader)


if __name__ == "__main__":
    EvaluatorTable.main()
