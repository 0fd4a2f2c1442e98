import torch
from torch import nn

from utils import parallel
from utils.distributed import Distributed
from utils.parallel import wrap_network

CPU = torch.device("cpu")


def test_only_what_is_asked_for_shares_a_batch_and_only_among_the_chosen_gpus(monkeypatch):
    network, given = nn.Linear(2, 2), []
    monkeypatch.setattr(parallel.nn, "DataParallel", lambda module, device_ids: given.append((module, device_ids)))
    gpus = [torch.device("cuda", 2), torch.device("cuda", 0)]
    assert wrap_network(network, gpus, "none", Distributed()) is network and given == []
    wrap_network(network, gpus, "dp", Distributed())
    assert given == [(network, [2, 0])]


def test_on_the_cpu_there_is_nothing_to_share_among():
    network = nn.Linear(2, 2)
    assert wrap_network(network, [CPU], "dp", Distributed()) is network
