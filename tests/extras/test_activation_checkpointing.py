"""The blocks of a network, and the same training with less memory."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from extras.activation_checkpointing import checkpoint_activations
from extras.blocks import blocks_of
from model.UNet import DoubleConv, UNet
from utils.model_summary import layer_table


# ---- blocks and recomputing ------------------------------------------------------------------------------------------
class Attention(nn.Module):
    """Shares a table of words with its output, has a list of its own called blocks, and a parameter in a list."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        self.scales = nn.ParameterList([torch.ones(4)])
        self.bias = nn.Parameter(torch.zeros(7))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight

    def forward(self, numbers):
        features = self.words(numbers)
        for block in self.blocks:
            features = block(features)
        return self.head(features * self.scales[0]) + self.bias


def test_blocks_are_what_has_parameters_in_lists_of_lists_and_outside_of_them():
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.Sequential(nn.Linear(2, 2), nn.ReLU())]), "end": nn.GELU(),
                             "own": DoubleConv(1, 2)})  # fmt: skip
    assert blocks_of(network) == [network["blocks"][0][0], network["own"]]  # DoubleConv is a sequence, and one block
    unet = UNet(width=2)
    assert blocks_of(unet) == [*unet.encoder, *unet.ups, *unet.decoder, unet.head]


def test_a_network_can_tell_its_blocks_and_a_list_of_that_name_is_none_of_these():
    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.ends, self.layers = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

        def blocks(self):
            return [self.layers]

    network = Told()
    assert blocks_of(network) == [network.layers]
    network = Attention()
    assert blocks_of(network) == [block[0] for block in network.blocks]


def test_what_shares_a_parameter_is_no_block_and_neither_is_what_is_never_called():
    network = Attention()
    assert not {network.words, network.head, network.scales} & set(blocks_of(network))
    network.head.weight = nn.Parameter(torch.ones(7, 4))
    assert {network.words, network.head} < set(blocks_of(network))
    network.outside = network.head.weight
    assert network.head not in blocks_of(network)


def test_a_module_that_is_used_twice_is_one_block():
    twice = nn.Linear(2, 2)
    network = nn.Sequential(twice, nn.Sequential(twice), nn.ReLU())
    assert blocks_of(network) == [twice]


class Restless(nn.Module):
    """Draws random numbers, and changes buffers that its own output depends on."""

    def __init__(self):
        super().__init__()
        self.layer = parametrizations.spectral_norm(nn.Conv2d(3, 3, 3, padding=1))
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        return self.drop(self.norm(self.layer(images)).relu())


def trained(network: nn.Module, recompute: bool, twice: bool = False, steps: int = 2) -> dict[str, torch.Tensor]:
    """The state after some steps; `twice` goes forward two times before it goes back, as a GAN does."""
    network = checkpoint_activations(copy.deepcopy(network)) if recompute else copy.deepcopy(network)
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = [network(images * scale).square().mean() for scale in ((1, 2) if twice else (1,))]
        sum(losses).backward()
        optimizer.step()
    return network.state_dict() | {"drawn": torch.rand(3)}


@pytest.mark.parametrize(
    "build",
    [
        lambda: UNet(width=4), lambda: UNet(width=4, up="transposed"),
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.ModuleList([Restless()])[0], Restless()),
    ],
    ids=["unet", "unet transposed", "restless"],
)  # fmt: skip
@pytest.mark.parametrize("twice", [False, True])
def test_recomputing_changes_no_bit(build, twice, differences):
    torch.manual_seed(1)
    network = build()
    plain, recomputed = trained(network, False, twice), trained(network, True, twice)
    assert list(plain) == list(recomputed) and differences(plain, recomputed) == []


def test_running_statistics_count_a_batch_once():
    network = checkpoint_activations(UNet(width=2))
    network(torch.rand(2, 3, 16, 16)).mean().backward()
    counts = [module.num_batches_tracked for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(counts) == 18 and set(map(int, counts)) == {1}


def test_a_forward_pass_that_began_with_other_buffers_would_be_seen(monkeypatch):
    buffers_of_now = lambda values: torch.no_grad()  # noqa: E731
    monkeypatch.setattr("extras.activation_checkpointing.buffers_set", buffers_of_now)
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), Restless(), Restless())
    with pytest.raises((AssertionError, RuntimeError)):
        torch.testing.assert_close(trained(network, False), trained(network, True))


def num_kept(network: nn.Module) -> int:
    """Numbers that a forward pass keeps for the backward pass, apart from parameters."""
    own, kept = {p.data_ptr() for p in network.parameters()}, {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() if tensor.data_ptr() not in own else 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.rand(1, 3, 32, 32)).mean()
    return sum(kept.values())


def test_less_is_kept_for_the_backward_pass():
    network = UNet(width=4)
    before = num_kept(network)
    assert num_kept(checkpoint_activations(network)) < before / 2


def test_names_and_validation_stay_as_they_are():
    network = UNet(width=2)
    names, table = [name for name, _ in network.named_parameters()], layer_table(network, max_rows=1000).split()
    checkpoint_activations(network)
    assert [name for name, _ in network.named_parameters()] == names
    assert [word.removeprefix("Recomputed") for word in layer_table(network, max_rows=1000).split()] == table
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(network.eval()(images), copy.deepcopy(network)(images))
# ---- end of blocks and recomputing -----------------------------------------------------------------------------------


def test_network_can_be_pickled_and_copied():
    network = checkpoint_activations(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    inputs = torch.rand(4, 2)
    for other in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert type(other[0]) is type(network[0]) and other[0].weight is not network[0].weight
        assert torch.equal(other(inputs), copy.deepcopy(network)(inputs))
