"""Samples are counted by their indices: the mean is right for batches of any form, in training and in validation."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from data.loader import EvalLoader, UpdateLoader
from data.sampler import epoch_order
from extras.functional import fit

NUM_SAMPLES = 6
OPTIONS = {"seed": 3, "num_epochs": 1, "gpu_devices": "cpu", "logger": "none"}


class Images(Dataset):
    """Images of unequal sizes, (3, H, W), with a target; a batch is a list of each."""

    is_random = False

    def __len__(self):
        return NUM_SAMPLES

    def __getitem__(self, index):
        image = torch.full((3, 4 + index, 5), float(index))
        return image, torch.tensor([float(index), 1.0])

    @staticmethod
    def collate_fn(samples):
        images, targets = zip(*samples, strict=True)
        return list(images), list(targets)


class Graphs(Images):
    """Graphs as one batch: the edges of all, (2, E), come first, then the features of all nodes, and who has which."""

    def __getitem__(self, index):
        return torch.zeros(2, 3 * index + 1, dtype=torch.long), torch.full((index + 2, 1), float(index))

    @staticmethod
    def collate_fn(samples):
        edges, nodes = zip(*samples, strict=True)
        owner = torch.cat([torch.full((len(of_graph),), number) for number, of_graph in enumerate(nodes)])
        return torch.cat(edges, dim=1), torch.cat(nodes), owner


class OfImages(nn.Module):
    """The loss of a sample is (its mean + bias - its number / 2)^2; that of a batch, the mean."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, images, targets):
        pairs = zip(images, targets, strict=True)
        return torch.stack([(image.mean() + self.bias - target[0] / 2) ** 2 for image, target in pairs]).mean()


class OfGraphs(OfImages):
    """The same of graphs."""

    def forward(self, edges, nodes, owner):
        sums = torch.zeros(int(owner.max()) + 1).index_add(0, owner, nodes[:, 0])
        means = sums / owner.bincount()
        return ((means + self.bias - means / 2) ** 2).mean()


def by_hand(batch_size, rate):
    """Plain torch: one sample at a time, the mean over all samples of each update; then the mean over the data."""
    bias, order = torch.zeros((), requires_grad=True), epoch_order(NUM_SAMPLES, OPTIONS["seed"], 0)
    for first in range(0, NUM_SAMPLES, batch_size):
        losses = [(index / 2 + bias) ** 2 for index in order[first : first + batch_size]]
        (gradient,) = torch.autograd.grad(sum(losses) / len(losses), bias)
        bias = (bias - rate * gradient).detach().requires_grad_()
    return bias.item(), sum((index / 2 + bias.item()) ** 2 for index in range(NUM_SAMPLES)) / NUM_SAMPLES


@pytest.mark.parametrize(("dataset", "model"), [(Images, OfImages), (Graphs, OfGraphs)])
def test_an_update_and_a_validation_are_means_over_samples(tmp_path, dataset, model):
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    # An update of 4 samples, and one of 2; the validation in batches of 4 and 2.
    run = fit(network, optimizer, None, dataset(), 4, val_dataset=dataset(), output_dir=tmp_path, eval_batch_size=4,
              **OPTIONS)  # fmt: skip
    bias, loss = by_hand(batch_size=4, rate=0.1)
    assert network.bias.item() == pytest.approx(bias, rel=1e-5)
    assert run.score.data["results"]["loss"] == pytest.approx(loss, rel=1e-5)
    assert run.score.data["num_samples"] == NUM_SAMPLES


@pytest.mark.parametrize("dataset", [Images, Graphs])
def test_accumulated_pieces_count_as_many_samples_as_they_have(tmp_path, dataset):
    network = {Images: OfImages, Graphs: OfGraphs}[dataset]()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    fit(network, optimizer, None, dataset(), 2, accumulate=2, output_dir=tmp_path, **OPTIONS)
    assert network.bias.item() == pytest.approx(by_hand(4, 0.1)[0], rel=1e-5)
    network = type(network)()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    fit(network, optimizer, None, dataset(), 5, output_dir=tmp_path, **OPTIONS)  # updates of 5 and of 1
    assert network.bias.item() == pytest.approx(by_hand(5, 0.1)[0], rel=1e-5)


@pytest.mark.parametrize("dataset", [Images, Graphs])
def test_the_loaders_count_without_looking_into_a_batch(dataset):
    updates = list(UpdateLoader(dataset(), 4, 3).updates(0))
    assert [update.sizes for update in updates] == [[2, 2], [2]]
    loader = EvalLoader(dataset(), 4)
    assert [loader.num_in_batch for _ in loader] == [4, 2]
