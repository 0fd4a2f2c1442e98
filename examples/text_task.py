"""Tell classes of texts apart: python -m examples.text_task, and with `evaluate RUN` the evaluation.

python -m examples.text_task --data_type Text --data_dir messages.csv --text message --target kind
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.options.parser import OptionParser, plain_text
from engine.registry import register_model
from eval_vanilla import EvaluatorVanilla
from examples.text_data import NUM_NUMBERS, numbers_of
from extras.own_data.cells import text_lines
from trainer_vanilla import TrainerVanilla


@register_model("TextCNN")
class TextCNN(nn.Module):
    """Convolutions over the words, of which the largest responses in a text count (Kim 2014)."""

    def __init__(self, n_classes: int, width: int = 64, dropout: float = 0.5):
        super().__init__()
        self.embedding = nn.Embedding(NUM_NUMBERS, width, padding_idx=0)  # padding is zeros, as behind the longest text
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, size, padding=size // 2) for size in (1, 3))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * width, n_classes))

    def forward(self, words: Tensor) -> Tensor:
        """Return the logits (N, n_classes) of words (N, L), 0 where a text has ended."""
        vectors = self.embedding(words).transpose(1, 2)  # (N, width, L)
        has_ended = (words == 0)[:, None]  # (N, 1, L)
        responses = [convolution(vectors).relu() for convolution in self.convolutions]  # (N, width, L) each
        largest = [response.masked_fill(has_ended, 0).amax(dim=2) for response in responses]  # (N, width) each
        return self.head(torch.cat(largest, dim=1))


class EvaluatorText(EvaluatorVanilla):
    """Evaluate a classifier of texts."""

    @classmethod
    def add_options(cls, parser: OptionParser) -> None:
        super().add_options(parser)
        add = parser.add_argument_group("texts in a CSV file").add_argument
        add("--text", type=plain_text, default=None, metavar="COLUMN", help="the column with the texts")
        add("--target", type=plain_text, default=None, metavar="COLUMN", help="the column with their classes")
        add("--group", type=plain_text, default=None, metavar="COLUMN", help="texts of a value go to one part")

    def read_samples(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        for number, row in enumerate(self.texts_of(path), start=1):
            yield f"text {number}", numbers_of(row[self.opt.text or "text"])

    def texts_of(self, path: Path) -> list[dict[str, str]]:
        return text_lines(path, self.opt.text or "text")  # what stands in predictions.csv beside the prediction


class TrainerText(TrainerVanilla):
    """Train a classifier of texts."""

    evaluator_class = EvaluatorText
    defaults = {
        "proj_name": "Text",
        "output_dir": "./Results/Text/",
        "data_type": "Verses",
        "model_type": "TextCNN",
        "class_weights": ["balanced"],
        "label_smoothing": 0.0,
        "n_epoch": 12,
        "batch_size": 32,
        "lr": 2e-3,
        "metrics": ["accuracy", "f1"],
        "monitor": "f1",
    }


if __name__ == "__main__":
    is_evaluation = sys.argv[1:2] == ["evaluate"]
    EvaluatorText.main(sys.argv[2:]) if is_evaluation else TrainerText.main()
