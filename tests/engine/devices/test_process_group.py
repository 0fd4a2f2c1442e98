"""The shares of the processes cover everything once; one process alone has nothing to exchange."""

import inspect
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchmetrics.classification import BinaryAUROC

from data.loader import Update
from engine.devices.process_group import Distributed, share_of
from engine.runs.scores import check_monitor
from extras.several_processes import SeveralProcesses, end_group, gather_tensors
from extras.sharding import ShardedProcesses
from tests.processes import FailedInProcess, in_processes
from utils.meter import AvgMeter


@given(st.integers(0, 500), st.integers(1, 20))
def test_shares_cover_all_in_order_and_differ_by_one_at_most(count, size):
    shares = [share_of(count, rank, size) for rank in range(size)]
    assert [i for begin, end in shares for i in range(begin, end)] == list(range(count))
    lengths = [end - begin for begin, end in shares]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] - lengths[-1] <= 1


# ---- one process -----------------------------------------------------------------------------------------------------
def test_one_process_does_nothing():
    alone, meter, tensor = Distributed(), AvgMeter(), torch.tensor(2.0)
    assert (alone.share, alone.is_main, alone.is_sharded) == ((0, 1), True, False)
    assert alone.broadcast("a") == "a" and alone.gather("a") == ["a"]
    assert alone.sum(tensor) is tensor and alone.totals(3, 4) == (3, 4) and alone.largest(5) == 5
    assert alone.agree(7) == alone.agree(7, at_once=False) == 7
    assert alone.mean({"loss": 1.5}, 0) == {"loss": 1.5}
    alone.merge({"loss": meter})
    alone.share_buffers([nn.BatchNorm1d(2)])
    alone.barrier(), alone.leave(), alone.save_for_restart(run_dir="a")
    with alone.main_first(), alone.gradients(synchronize=False):
        pass
    assert alone.begin_update(Update([], indices=[], num_samples=9, sizes=[2, 3]), may_lose_samples=False) == 5
    assert alone.to_share(tensor, 1.0) is tensor and alone.to_share(tensor, 0.25) == 0.5
    error = RuntimeError("Connection closed by peer")
    assert alone.cause_of(error) is error and alone.is_common(error)


def test_one_process_in_step_gives_its_batches_and_is_asked_before_each():
    asked = []
    steps = [(batch, counts, len(asked)) for batch, counts in Distributed().in_step("abc", lambda: asked.append(1))]
    assert steps == [("a", True, 1), ("b", True, 2), ("c", True, 3)] and list(Distributed().in_step([])) == []


def test_a_network_of_one_process_is_not_wrapped():
    network = nn.Linear(2, 2)
    assert Distributed().wrap(network, torch.device("cpu")) is network


def test_several_processes_take_the_same_calls_as_one():
    names = [name for name, method in vars(Distributed).items() if inspect.isfunction(method)]
    for several in (SeveralProcesses, ShardedProcesses):
        for name in names:
            taken, wanted = (list(inspect.signature(getattr(kind, name)).parameters) for kind in (several, Distributed))
            assert taken == wanted, name


# ---- several ---------------------------------------------------------------------------------------------------------
class Noting:
    """Notes how often it is called."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1


def in_three() -> dict:
    """The values that three processes exchange."""
    joined = SeveralProcesses.join()
    rank, found = joined.rank, {}
    found["share"], found["is_main"] = joined.share, joined.is_main
    found["broadcast"] = [joined.broadcast(f"of {rank}"), joined.broadcast(f"of {rank}", source=2)]
    found["gather"] = joined.gather({"rank": rank})
    found["sum"] = joined.sum(torch.tensor([1.0, rank])).tolist()
    found["totals"], found["largest"] = joined.totals(rank, 1), joined.largest(rank == 1)
    found["mean"] = joined.mean({"loss": float(rank)}, rank)  # (1 * 1 + 2 * 2) / 3; of no samples in process 0
    found["mean of none"] = joined.mean({}, 0)
    found["late votes"] = [joined.agree(wish * (rank == 1), at_once=False) for wish in (3, 0, 0)]
    joined.agree(5 * (rank == 2), at_once=False)
    found["a late vote is not lost"] = [joined.agree(0), joined.agree(0)]
    for processes in (joined, ShardedProcesses.join()):
        before = Noting()
        batches = [f"{rank}{number}" for number in range([0, 3, 1][rank])]
        found["in step", processes.is_sharded] = list(processes.in_step(batches, before)), before.count
        found["nothing", processes.is_sharded] = list(processes.in_step([], before))
    joined.begin_update(Update([], indices=[], num_samples=6, sizes=[rank + 1]), may_lose_samples=False)
    found["weight"] = float(joined.to_share(torch.tensor(1.0, dtype=torch.float64), 0.1))
    found["nan"] = float(joined.to_share(torch.tensor(float("inf")), 0.1))
    found["unsure"] = joined.begin_update(Update([], indices=[], num_samples=99, sizes=[rank]), may_lose_samples=True)
    found["rows"] = [t.tolist() for t in gather_tensors(torch.arange(rank))]
    found["shapes"] = [t.shape for t in gather_tensors(torch.ones(2, 3) if rank else torch.tensor([]))]
    buffers = nn.BatchNorm1d(1)
    buffers.running_mean.fill_(rank)
    joined.share_buffers([buffers])
    found["buffer"] = float(buffers.running_mean)
    found.update(shared_buffers(joined, rank))
    auroc = BinaryAUROC()
    check_monitor("auroc", {"auroc": auroc})  # before any process has a sample
    auroc.reset()
    scores, labels = torch.tensor([0.1, 0.4, 0.35, 0.8, 0.6]), torch.tensor([0, 0, 1, 1, 0])
    if rank > 0:
        part = [slice(0, 3), slice(3, 5)][rank - 1]
        auroc.update(scores[part], labels[part])
    joined.merge({"auroc": auroc})
    found["auroc"] = float(auroc.compute())
    return found


def shared_buffers(joined: SeveralProcesses, rank: int) -> dict:
    """Return buffers that no memory can simply be copied to, after they were shared and their network was wrapped."""
    network = nn.Linear(1, 1)
    network.register_buffer("expanded", torch.full((1, 1), float(rank)).expand(4000, 784))
    network.register_buffer("grown", torch.full((rank + 1, 2), float(rank)))
    network.register_buffer("columns", torch.full((3, 4), float(rank))[:, ::2])
    network.register_buffer("sparse", (torch.eye(2) * (rank + 1)).to_sparse())
    network.own = nn.Module()
    network.own.register_buffer("grown", network.grown)
    joined.share_buffers([network])
    is_tied = network.own.grown is network.grown
    wide = nn.Linear(1, 1)
    wide.register_buffer("bank", torch.full((1, rank + 1), float(rank)).expand(5, rank + 1))
    wrapped = joined.wrap(wide, torch.device("cpu"))
    rows = [network.expanded.unique(), network.grown, network.columns, network.sparse.to_dense(), wrapped.module.bank]
    return {"buffers": [each.tolist() for each in rows], "is tied": is_tied}


def test_three_processes():
    found = in_processes(3, in_three)
    assert [(each["share"], each["is_main"]) for each in found] == [((0, 3), True), ((1, 3), False), ((2, 3), False)]
    of_first = [[0.0], [[0.0] * 2], [[0.0] * 2] * 3, torch.eye(2).tolist(), [[0.0]] * 5]
    assert all(each["buffers"] == of_first and each["is tied"] for each in found)
    for rank, each in enumerate(found):
        assert each["broadcast"] == ["of 0", "of 2"] and each["gather"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert each["sum"] == [3.0, 3.0] and each["totals"] == (3, 3) and each["largest"] == 1
        assert each["mean"] == {"loss": pytest.approx(5 / 3)} and each["mean of none"] == {}
        assert each["late votes"] == [0, 3, 0] and each["a late vote is not lost"] == [5, 0]
        assert each["weight"] == pytest.approx(0.1 * (rank + 1) * 3 / 6, rel=1e-15) and each["nan"] != each["nan"]
        assert each["unsure"] == 3 and each["rows"] == [[0], [0, 1]] and each["shapes"] == [(2, 3), (2, 3)]
        assert each["buffer"] == 0
        assert each["auroc"] == pytest.approx(4 / 6)  # of the pairs of a positive and a negative, those in order
        assert each["nothing", False] == each["nothing", True] == []
        assert each["in step", False][1] == each["in step", True][1] == 3
    whole = [[], [("10", True), ("11", True), ("12", True)], [("20", True)]]
    assert [each["in step", False][0] for each in found] == whole
    first = [("10", False)] * 3, whole[1], [("20", True), ("20", False), ("20", False)]
    for each, expected in zip(found, first, strict=True):
        steps = each["in step", True][0]
        assert [counts for _, counts in steps] == [counts for _, counts in expected] and all(b for b, _ in steps)


def after_a_run() -> tuple[list[int], bool]:
    joined = SeveralProcesses.join()
    joined.leave()
    found = joined.gather(joined.rank)
    end_group()
    return found, torch.distributed.is_initialized()


def test_a_task_may_exchange_values_after_its_run():
    assert in_processes(2, after_a_run) == [([0, 1], False)] * 2


def fail_in_one(directory: Path) -> None:
    if SeveralProcesses.join().rank == 1:
        raise ValueError("one of them fails")


def test_a_failure_in_a_process_of_a_test_is_seen(tmp_path):
    with pytest.raises(FailedInProcess, match=r"In process 1:(?s:.*)one of them fails"):
        in_processes(2, fail_in_one, tmp_path)
