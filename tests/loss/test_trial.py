"""A loss is tried with the arguments that a person gives it, and only what these are to blame for is refused."""

import pytest
import torch
from torch import nn

from loss.trial import examples, fault, fault_of_arguments


class Own(nn.Module):
    """A loss that takes what only its own network makes."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, outputs, targets):
        return self.scale * outputs["depth"].mean()


class Draws(nn.CrossEntropyLoss):
    def forward(self, logits, labels):
        torch.rand(3)
        return super().forward(logits, labels)


def of(criterion: nn.Module) -> str:
    return fault(criterion, *next(examples(10)))


class Constant(nn.Module):
    def forward(self, outputs, targets):
        return 0 * outputs.sum()


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (nn.CrossEntropyLoss(), ""), (nn.CrossEntropyLoss(reduction="none"), "a tensor of shape (7,)"),
        (nn.CrossEntropyLoss(reduction="sum"), "not the mean over the samples"),
        (nn.CrossEntropyLoss(weight=torch.arange(1.0, 11)), "not the mean over the samples"),
        (nn.CrossEntropyLoss(weight=torch.ones(2)), "RuntimeError: weight tensor"),
        (nn.CrossEntropyLoss(reduction="banana"), "ValueError: banana"), (Constant(), "its gradient is 0"),
        (nn.BCELoss(), "ValueError"), (nn.CrossEntropyLoss(weight=torch.full((10,), float("inf"))), "it is nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_wrong_with_a_loss_is_said(criterion, words):
    found = of(criterion)
    assert words in found and bool(found) == bool(words) and "\n" not in found


def test_a_list_of_weights_for_the_samples_fits_by_no_chance():
    for size in (3, 4, 7):
        weighted = nn.BCEWithLogitsLoss(weight=torch.ones(size))
        assert fault_of_arguments(weighted, nn.BCEWithLogitsLoss, 10)
    assert not fault_of_arguments(nn.BCEWithLogitsLoss(weight=torch.tensor([2.0])), nn.BCEWithLogitsLoss, 10)


def test_a_loss_that_no_example_suits_is_let_through():
    assert fault_of_arguments(Own(scale=2.0), Own, 10) == ""


def test_a_loss_that_cannot_be_made_without_its_arguments_is_let_through():
    assert fault_of_arguments(nn.MSELoss(reduction="none"), lambda: Own(scale=1.0, other=2), 10) == ""


def test_the_trial_leaves_no_trace():
    torch.manual_seed(0)
    criterion, before = Draws(label_smoothing=0.1), torch.get_rng_state()
    assert fault_of_arguments(criterion, Draws, 10) == "" and criterion.training
    assert torch.equal(torch.get_rng_state(), before)
