"""Muon steps the matrices of a network and AdamW the rest, as two optimizers of torch do by hand."""

import copy

import pytest
import torch
from torch import nn

from engine.checkpoints.file import load_checkpoint
from engine.registry import find
from extras.muon import Several, muon
from tests.extras.test_unfreeze import Stop
from utils.errors import UserError
from utils.scheduler import learning_rates

FLAGS = ["--data_type", "FashionMNISTSample", "--train_val_sample_rate", 60, "--batch_size", 16, "--n_epoch", 2,
         "--gpu_devices", "cpu", "--seed", 0, "--patience", 0, "--model_type", "LeNet", "--optim", "Muon",
         "--lr", 0.003]  # fmt: skip


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, words):
        return self.head(self.body(self.embedding(words)).mean(dim=1))


def steps(optimizer, network, count=3, scheduler=None):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        optimizer.zero_grad()
        words = torch.randint(7, (5, 6), generator=generator)
        network(words).square().sum().backward()
        optimizer.step()
    return network.state_dict()


class Two:
    """Two optimizers by hand."""

    def __init__(self, network):
        matrices = [network.body[0].weight, network.body[2].weight]
        others = [p for p in network.parameters() if all(p is not matrix for matrix in matrices)]
        self.parts = [
            torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=0.02, weight_decay=0.1),
        ]

    def zero_grad(self):
        for part in self.parts:
            part.zero_grad()

    def step(self):
        for part in self.parts:
            part.step()


def test_the_parts_step_as_by_hand_and_go_on_from_a_state():
    by_hand = Text()
    expected = steps(Two(by_hand), by_hand)
    network = Text()
    settings = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9, "adamw": ["head.weight"], "adamw_lr": 0.02}
    optimizer = muon(network.parameters(), network, **settings)
    assert all(torch.equal(value, expected[name]) for name, value in steps(optimizer, network).items())
    assert learning_rates({"model": optimizer}) == {"lr": 0.01, "lr/AdamW": 0.02}
    other = Text()
    other.load_state_dict(network.state_dict())
    resumed = muon(other.parameters(), other, **settings)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(optimizer, network)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in steps(resumed, other).items())


def test_a_network_of_matrices_alone_is_torchs_own():
    weights = [nn.Linear(3, 3, bias=False) for _ in range(2)]
    weights[1].load_state_dict(weights[0].state_dict())
    ours = find("optimizer", "Muon")(weights[0].parameters(), network=weights[0], lr=0.1)
    theirs = torch.optim.Muon(weights[1].parameters(), lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for optimizer, layer in ((ours, weights[0]), (theirs, weights[1])):
        layer(torch.eye(3)).square().sum().backward()
        optimizer.step()
    assert torch.equal(weights[0].weight, weights[1].weight)


@pytest.mark.parametrize("more", [[], ["--param_lr", "*.0.*=0.5x", "--no_decay", "bias"]])
def test_a_run_resumes_exactly_with_one_schedule_for_both(build, train, differences, more):
    whole = train(*FLAGS, *more)
    broken = build(*FLAGS, *more, callbacks=[Stop(5)])
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = train("--resume", broken.run_dir.path)
    states = [load_checkpoint(trainer.checkpointer.path("last")) for trainer in (whole, resumed)]
    assert differences(*states, ("options", "callbacks", "seconds")) == []
    assert isinstance(whole.optimizer, Several) and all(group["lr"] == 0 for group in whole.optimizer.param_groups)
    if more:
        names = [group["name"] for group in whole.optimizer.param_groups]
        assert {"", "AdamW"} < set(names) and any("*.0.*" in name for name in names)


def test_what_it_cannot_do_is_one_line(build):
    with pytest.raises(UserError, match="has no matrix for it"):
        muon(nn.BatchNorm1d(3).parameters(), nn.BatchNorm1d(3))
    with pytest.raises(UserError, match=r"--optim_args adamw: 'headd\.\*' matches no parameter"):
        muon(Text().parameters(), Text(), adamw=["headd.*"])
    with pytest.raises(UserError, match=r"cannot be made|takes no argument"):
        build(*FLAGS, "--optim_args", '{"nesterof": true}')
    with pytest.raises(ValueError, match="more than one parameter group"):
        layer = nn.Linear(2, 2)
        Several([torch.optim.SGD(layer.parameters(), lr=0.1), torch.optim.AdamW([layer.bias])])
