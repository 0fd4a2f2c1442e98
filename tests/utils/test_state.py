"""A state comes back as it was, and one that does not fit is refused."""

import pytest
import torch
from torch import nn

from utils.errors import UserError
from utils.state import get_state, set_state


def test_state_of_a_dictionary_of_objects_comes_back():
    networks, others = ({"generator": nn.Linear(2, 2), "critic": nn.Linear(2, 1)} for _ in range(2))
    set_state(others, get_state(networks), "The networks")
    assert torch.equal(networks["critic"].weight, others["critic"].weight)


@pytest.mark.parametrize(
    ("part", "state", "message"),
    [
        ({"model": nn.Linear(2, 2)}, {"generator": {}}, "The networks: it has generator, but this run has model"),
        ({"model": nn.Linear(2, 2)}, {}, "it has none, but this run has model"),
        ({"model": nn.Linear(2, 2)}, {"model": nn.Linear(3, 2).state_dict()}, "does not fit .*size mismatch"),
        (nn.Linear(2, 2), nn.Linear(2, 2, bias=False).state_dict(), "does not fit .*Missing key"),
        (torch.optim.SGD(nn.Linear(2, 2).parameters()), {"param_groups": [], "state": {}}, "does not fit"),
    ],
)
def test_state_that_does_not_fit_is_refused_in_one_line(part, state, message):
    with pytest.raises(UserError, match=f"The networks.*{message.removeprefix('The networks')}") as caught:
        set_state(part, state, "The networks")
    assert "\n" not in str(caught.value)
