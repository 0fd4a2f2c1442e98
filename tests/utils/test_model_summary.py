"""The table of layers, and the number of parameters."""

import torch
from torch import nn

from utils.model_summary import count_parameters, layer_table


def test_count_parameters_separates_frozen_ones_and_counts_shared_ones_once():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    first.bias.requires_grad_(False)
    assert count_parameters(nn.Sequential(first, second)) == (9 + 3 + 3, 9 + 3)


class Token(nn.Module):
    """Has a child and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(()))
        self.child = nn.Linear(2, 1000)


def test_layer_table_lists_every_owner_of_parameters_in_aligned_columns():
    lines = layer_table(nn.Sequential(Token(), nn.ReLU())).splitlines()
    assert [line.split() for line in lines] == [
        ["layer", "type", "shapes", "parameters"],
        ["0", "Token", "1", "1"],
        ["0.child", "Linear", "1000x2,", "1000", "3,000"],
        ["1", "ReLU", "0"],
        ["total", "3,001", "parameters,", "3,001", "trainable"],
    ]
    assert len({len(line) for line in lines[:4]}) == 1


def test_layer_table_stops_at_max_rows_and_says_so():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(7)))
    lines = layer_table(model, max_rows=5).splitlines()
    assert len(lines) == 1 + 5 + 2
    assert lines[-2:] == ["... and 2 more layers", "total 42 parameters, 42 trainable"]
    assert "more layers" not in layer_table(model, max_rows=7)
