"""Data in memory comes in the same batches as from a DataLoader, from any position on, and stands where it is asked."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from data.data_entry import build_loaders
from data.dataloader import DataLoaderSource
from data.loader import SAMPLES_AT_ONCE, EvalLoader, MemorySource, UpdateLoader, is_in_memory
from engine.devices.process_group import share_of
from extras.gpu_data import place_data
from utils.errors import UserError

NUM_SAMPLES = 53


class OneByOne(Dataset):
    """Pairs of (three numbers, index), loaded by a DataLoader."""

    is_random = False

    def __init__(self, num_samples=53):
        self.values = torch.arange(3 * num_samples, dtype=torch.float32).reshape(num_samples, 3)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return {"values": self.values[index], "indices": index}


class InMemory(Dataset):
    """Pairs of (three numbers, index)."""

    in_memory, is_random = True, False
    collate_fn = staticmethod(lambda batch: batch)
    device = torch.device("cpu")
    num_bytes = 1000

    def __init__(self, num_samples=NUM_SAMPLES):
        self.values = torch.arange(3 * num_samples, dtype=torch.float32).reshape(num_samples, 3)
        self.calls = 0

    def __len__(self):
        return len(self.values)

    def __getitems__(self, indices):
        self.calls += 1
        indices = torch.as_tensor(indices)
        return {"values": self.values[indices], "indices": indices}

    def __getitem__(self, index):
        return self.__getitems__([index])

    def to(self, device):
        return SimpleNamespace(device=device)


def contents(updates) -> list:
    """Of each update the indices, and the batches as lists."""
    return [
        (update.indices, [(batch["values"].tolist(), batch["indices"].tolist()) for batch in update.micro_batches])
        for update in updates
    ]


@pytest.mark.parametrize("num_samples", [NUM_SAMPLES, 2 * SAMPLES_AT_ONCE + 37])
@pytest.mark.parametrize("micro_batch_size", [None, 1, 7, 16, 99])
@pytest.mark.parametrize("max_updates", [None, 2, 99])
def test_updates_are_those_of_a_dataloader(num_samples, micro_batch_size, max_updates):
    order = (16, micro_batch_size, 5, max_updates)
    memory, loader = UpdateLoader(InMemory(num_samples), *order), UpdateLoader(OneByOne(num_samples), *order)
    assert contents(memory.updates(1)) == contents(loader.updates(1))
    assert (memory.num_samples, memory.updates_per_epoch) == (loader.num_samples, loader.updates_per_epoch)


@pytest.mark.parametrize("start", [0, 16, 1024, 1040, 2048])
def test_a_resumed_epoch_gets_its_batches_at_the_same_places_in_memory(start):
    """A matrix product may round differently when its operands are aligned differently."""
    loader = UpdateLoader(InMemory(2100), 16, 3)

    def offsets(updates):
        return [[batch["values"].storage_offset() for batch in update.micro_batches] for update in updates]

    whole, rest = list(loader.updates(3)), list(loader.updates(3, start))
    assert contents(rest) == contents(whole[start // 16 :])
    assert offsets(rest) == offsets(whole[start // 16 :])


def test_samples_of_several_updates_are_gathered_at_once():
    dataset = InMemory(4096)
    assert len(list(UpdateLoader(dataset, 4).updates(0))) == 1024
    assert dataset.calls == 4096 // SAMPLES_AT_ONCE
    dataset.calls = 0
    assert len(list(UpdateLoader(dataset, 3000).updates(0))) == 2
    assert dataset.calls == 2


@pytest.mark.parametrize("max_batches", [None, 2])
def test_evaluation_gets_every_sample_once_in_order(max_batches):
    memory = EvalLoader(InMemory(), 10, max_batches)
    loader = EvalLoader(OneByOne(), 10, max_batches)
    assert [batch["indices"].tolist() for batch in memory] == [batch["indices"].tolist() for batch in loader]
    assert [batch.loaded for batch in memory.batches()] == [batch.loaded for batch in loader.batches()]
    assert (len(memory), memory.num_samples) == (len(loader), loader.num_samples)


# ---- where it stands -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data_device", "device", "free", "expected"),
    [("auto", "cpu", 0, "cpu"), ("cpu", "cuda", 10**9, "cpu"), ("auto", "cuda", 4000, "cuda"),
     ("auto", "cuda", 3999, "cpu"), ("cuda", "cuda", 4000, "cuda")],
)  # fmt: skip
def test_auto_takes_the_gpu_when_there_is_room(monkeypatch, data_device, device, free, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**10))
    assert place_data(InMemory(), data_device, torch.device(device)).device.type == expected


def test_a_gpu_that_is_asked_for_and_cannot_be_had_is_told(monkeypatch):
    with pytest.raises(UserError, match="--data_device cuda: the run computes on cpu"):
        place_data(InMemory(), "cuda", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3999, 10**10))
    with pytest.raises(UserError, match="1,000 bytes of data are more than a quarter of the 3,999 that are free"):
        place_data(InMemory(), "cuda", torch.device("cuda"))


class Random(InMemory):
    is_random = True


@pytest.mark.parametrize(
    ("dataset", "num_workers", "kind"),
    [(InMemory, 0, MemorySource), (InMemory, 1, DataLoaderSource), (Random, 0, DataLoaderSource)],
)
def test_who_loads(dataset, num_workers, kind):
    opt = SimpleNamespace(
        batch_size=8, micro_batch_size=None, seed=0, limit_batches=None, num_workers=num_workers, data_device="auto",
        worker_timeout=9, skip_bad_samples=0, debug=False,
    )  # fmt: skip
    assert is_in_memory(dataset()) == (dataset is InMemory)
    datasets = {"train": dataset(), "val": dataset()}
    loaders = build_loaders(opt, datasets, 8, 8, torch.device("cpu"))
    assert type(loaders[0].source) is kind and type(loaders[1].source) is kind
    opt.data_device = "cuda"
    with pytest.raises(UserError, match="--data_device cuda"):
        build_loaders(opt, datasets, 8, 8, torch.device("cpu"))


# ---- several processes -----------------------------------------------------------------------------------------------
def batches_that_count(update) -> list[list[int]]:
    batches = zip(update.micro_batches, update.sizes, strict=True)
    return [batch["indices"].tolist() for batch, size in batches if size > 0]


@settings(max_examples=150, deadline=None)
@given(
    num_samples=st.integers(1, 2500), batch_size=st.integers(1, 300), micro=st.none() | st.integers(1, 70),
    size=st.integers(1, 5), max_updates=st.none() | st.integers(1, 9), part=st.floats(0, 1), seed=st.integers(0, 99),
)  # fmt: skip
def test_shares_are_slices_of_the_updates_of_one_process(num_samples, batch_size, micro, size, max_updates, part, seed):
    order = (batch_size, micro, seed, max_updates)
    alone = UpdateLoader(InMemory(num_samples), *order)
    loaders = [UpdateLoader(InMemory(num_samples), *order, share=(rank, size)) for rank in range(size)]
    start = int(part * alone.updates_per_epoch) * batch_size
    together = list(zip(*(loader.updates(2, start) for loader in loaders), strict=True))
    whole = list(alone.updates(2, start))
    assert len(together) == len(whole)
    for update, shares in zip(whole, together, strict=True):
        assert [index for share in shares for index in share.indices] == update.indices
        assert {share.num_samples for share in shares} == {update.num_samples}
        assert len({len(share.micro_batches) for share in shares}) == 1 and shares[0].sizes.count(0) == 0
        for rank, share in enumerate(shares):
            begin, end = share_of(len(update.indices), rank, size)
            assert share.indices == update.indices[begin:end]
            step = micro or batch_size
            firsts = list(range(0, len(share.indices), step))
            if step > 2 and len(firsts) > 1 and len(share.indices) % step == 1:
                firsts[-1] -= 1  # no sample is left alone
            expected = [share.indices[b:e] for b, e in pairwise([*firsts, len(share.indices)])]
            assert batches_that_count(share) == expected
            assert share.sizes == [len(batch) for batch in expected] + [0] * share.sizes.count(0)
            assert share.num_local == len(share.indices)
            for batch in share.micro_batches:
                assert torch.equal(batch["values"], alone.dataset.values[batch["indices"]])
            idle = share.micro_batches[len(share.micro_batches) - share.sizes.count(0) :]
            assert all(batch["indices"].tolist() == (expected or [update.indices[:1]])[-1] for batch in idle)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("micro_batch_size", [None, 1, 4])
def test_shares_are_those_of_a_dataloader(size, micro_batch_size):
    for rank in range(size):
        order = {"batch_size": 16, "micro_batch_size": micro_batch_size, "seed": 5, "share": (rank, size)}
        memory, loader = UpdateLoader(InMemory(49), **order), UpdateLoader(OneByOne(49), **order)
        for a, b in zip(memory.updates(1), loader.updates(1), strict=True):
            assert (a.indices, a.num_samples, a.sizes) == (b.indices, b.num_samples, b.sizes)
            assert batches_that_count(a) == batches_that_count(b) and len(a.micro_batches) == len(b.micro_batches)


@given(num_samples=st.integers(0, 60), batch_size=st.integers(1, 9), size=st.integers(1, 5),
       limit=st.none() | st.integers(1, 4))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_shares_of_an_evaluation_cover_it(num_samples, batch_size, size, limit):
    for make in (
        lambda share: EvalLoader(InMemory(num_samples), batch_size, limit, share),
        lambda share: EvalLoader(OneByOne(num_samples), batch_size, limit, share),
    ):
        loaders = [make((rank, size)) for rank in range(size)]
        seen = [index for loader in loaders for batch in loader for index in batch["indices"].tolist()]
        most = num_samples if limit is None else min(num_samples, limit * batch_size)
        assert seen == list(range(most)) and sum(loader.num_samples for loader in loaders) == most
