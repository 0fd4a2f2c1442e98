"""The order of the data and the random numbers of a sample are functions of the seed and the position alone."""

import contextlib
import random
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from data import dataloader
from data.dataloader import BatchFetcher
from data.loader import UpdateLoader
from data.sampler import UpdateSampler, epoch_order, may_be_random
from utils.errors import UserError

NUM_SAMPLES, BATCH_SIZE = 53, 16  # updates of 16, 16, 16 and 5


class RandomDataset(Dataset):
    """A sample is its index and what every global generator draws for it."""

    def __len__(self):
        return NUM_SAMPLES

    def __getitem__(self, index):
        drawn = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))]
        return torch.tensor([index, *drawn], dtype=torch.float64)  # (6,)


class PlainDataset(RandomDataset):
    """A sample is its index."""

    is_random = False

    def __getitem__(self, index):
        return torch.tensor([index])


class BatchedDataset(PlainDataset):
    """Fetches a whole batch at once."""

    def __getitems__(self, indices):
        return torch.tensor(indices)[:, None]

    @staticmethod
    def collate_fn(batch):
        return batch


def updates_of(loader: UpdateLoader, epoch: int = 0, start: int = 0) -> list[torch.Tensor]:
    """The samples of each update, micro-batches put together again."""
    return [torch.cat(update.micro_batches) for update in loader.updates(epoch, start)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def generators() -> list:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


# ---- the order -------------------------------------------------------------------------------------------------------
def test_order_is_a_function_of_seed_and_epoch_alone():
    orders = {(seed, epoch): tuple(epoch_order(40, seed, epoch)) for seed in range(4) for epoch in range(4)}
    torch.rand(7)  # the state of the global generator plays no part
    assert orders == {place: tuple(epoch_order(40, *place)) for place in orders}
    assert len(set(orders.values())) == 16  # also seed 1 in epoch 2 and seed 2 in epoch 1
    assert all(sorted(order) == list(range(40)) for order in orders.values())


@pytest.mark.parametrize("micro_batch_size", [1, 7, 16, 64, None])
@pytest.mark.parametrize("dataset", [PlainDataset, BatchedDataset])
def test_size_of_micro_batches_does_not_change_the_updates(dataset, micro_batch_size):
    whole = updates_of(UpdateLoader(PlainDataset(), BATCH_SIZE))
    loader = UpdateLoader(dataset(), BATCH_SIZE, micro_batch_size)
    assert same(updates_of(loader), whole)
    limit = micro_batch_size or BATCH_SIZE
    sizes = [[len(micro_batch) for micro_batch in update.micro_batches] for update in loader.updates(0)]
    assert [sum(update) for update in sizes] == [16, 16, 16, 5]
    assert all(size == min(limit, sum(update)) for update in sizes for size in update[:-2])
    assert all(0 < update[-1] <= limit for update in sizes)
    assert len(loader.sampler) == sum(map(len, sizes))


def test_no_sample_is_left_alone_if_the_micro_batches_can_be_evened():
    def sizes(update_size, micro_batch_size, share=(0, 1)):
        sampler = UpdateSampler(99, 32, micro_batch_size, share=share)
        return [end - begin for begin, end in sampler.slices(update_size)]

    assert [sizes(5, 4), sizes(9, 4), sizes(8, 4), sizes(6, 4)] == [[3, 2], [4, 3, 2], [4, 4], [4, 2]]
    assert [sizes(5, 2), sizes(1, 4), sizes(3, 1)] == [[2, 2, 1], [1], [1, 1, 1]]  # these cannot
    assert [sizes(10, 4, (rank, 2)) for rank in (0, 1)] == [[3, 2], [3, 2]] and sizes(1, 4, (1, 2)) == []


def test_update_takes_the_next_samples_of_the_order():
    seen = [update[:, 0].tolist() for update in updates_of(UpdateLoader(PlainDataset(), BATCH_SIZE, seed=3), epoch=2)]
    assert list(chain(*seen)) == epoch_order(NUM_SAMPLES, seed=3, epoch=2)


@pytest.mark.parametrize("max_updates", [None, 3, 99])
@pytest.mark.parametrize("micro_batch_size", [7, None])
def test_rest_from_any_position_is_the_tail_of_the_whole(micro_batch_size, max_updates):
    loader = UpdateLoader(PlainDataset(), BATCH_SIZE, micro_batch_size, max_updates=max_updates)
    whole = updates_of(loader, epoch=1)
    for done in range(len(whole) + 1):
        assert same(updates_of(loader, 1, start=min(done * BATCH_SIZE, loader.num_samples)), whole[done:])


def test_limit_takes_the_first_updates_of_the_same_order():
    whole = updates_of(UpdateLoader(PlainDataset(), BATCH_SIZE))
    for max_updates in (1, 3, 4, 9):
        loader = UpdateLoader(PlainDataset(), BATCH_SIZE, max_updates=max_updates)
        assert same(updates_of(loader), whole[:max_updates])
        assert loader.updates_per_epoch == min(max_updates, 4)
        assert loader.num_samples == sum(map(len, whole[:max_updates]))


@pytest.mark.parametrize(("num_samples", "batch_size"), [(53, 16), (48, 16), (5, 16), (1, 1)])
def test_sampler_gives_every_sample_exactly_once(num_samples, batch_size):
    given = [indices for _, indices in UpdateSampler(num_samples, batch_size, micro_batch_size=3)]
    assert sorted(chain(*given)) == list(range(num_samples))


# ---- what is random in a sample --------------------------------------------------------------------------------------
def augmented(loader: UpdateLoader, epoch: int = 0, start: int = 0) -> dict[int, list[float]]:
    """The random numbers of each sample, by its index."""
    rows = torch.cat(updates_of(loader, epoch, start))
    assert len(set(rows[:, 0].tolist())) == len(rows)
    return {int(row[0]): row[1:].tolist() for row in rows}


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("micro_batch_size", [None, 7])
def test_draws_do_not_depend_on_workers_micro_batches_or_order(num_workers, micro_batch_size):
    alone = BatchFetcher(RandomDataset(), seed=5)
    expected = {index: alone.sample(3, index)[1:].tolist() for index in range(NUM_SAMPLES)}
    loader = UpdateLoader(RandomDataset(), BATCH_SIZE, micro_batch_size, 5, num_workers=num_workers)
    assert augmented(loader, 3) == expected


def test_draws_differ_between_samples_epochs_and_seeds():
    loaders = [UpdateLoader(RandomDataset(), BATCH_SIZE, seed=seed) for seed in (1, 2)]
    draws = [augmented(loader, epoch) for loader in loaders for epoch in (1, 2)]
    for column in range(5):
        assert len({row[column] for drawn in draws for row in drawn.values()}) == 4 * NUM_SAMPLES


@pytest.mark.parametrize("num_workers", [0, 2])
def test_restart_in_mid_epoch_draws_the_same(num_workers):
    loader = UpdateLoader(RandomDataset(), BATCH_SIZE, 7, num_workers=num_workers)
    whole = updates_of(loader, epoch=1)
    assert same(updates_of(loader, 1, start=2 * BATCH_SIZE), whole[2:])
    broken_off = loader.updates(1)
    next(broken_off)  # an epoch that is left early, with batches still under way in the workers
    assert same(updates_of(loader, 1, start=BATCH_SIZE), whole[1:])
    assert same(updates_of(loader, 2), updates_of(UpdateLoader(RandomDataset(), BATCH_SIZE), 2))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_without_the_seeds_the_draws_would_differ(monkeypatch, num_workers):
    """The fault planted: samples that draw from the generators as they are."""
    monkeypatch.setattr(BatchFetcher, "sample", lambda self, epoch, index: self.dataset[index])
    monkeypatch.setattr(dataloader, "preserved_random_state", contextlib.nullcontext)
    loader = UpdateLoader(RandomDataset(), BATCH_SIZE, num_workers=num_workers)
    whole = augmented(loader, 1)
    rest = augmented(loader, 1, start=BATCH_SIZE)
    assert all(whole[index] != drawn for index, drawn in rest.items())


class MixUp(PlainDataset):
    """Draws while samples are put together, from all generators."""

    @staticmethod
    def collate_fn(samples):
        drawn = [random.random(), np.random.rand(), float(torch.rand(()))]
        return torch.stack(samples).double() + torch.tensor(drawn, dtype=torch.float64)


def test_draws_of_collate_fn_are_the_same_after_a_restart_and_with_any_number_of_processes():
    whole = updates_of(UpdateLoader(MixUp(), BATCH_SIZE, 7, seed=3), epoch=1)
    for num_workers in (0, 2):
        torch.rand(3)
        rest = UpdateLoader(MixUp(), BATCH_SIZE, 7, seed=3, num_workers=num_workers)
        assert same(updates_of(rest, 1, start=BATCH_SIZE), whole[1:])
    fractions = {round(float(row.frac()[0]), 9) for update in whole for row in update}
    assert len(fractions) == 3 + 3 + 3 + 1  # of each micro-batch its own
    assert not same(updates_of(UpdateLoader(MixUp(), BATCH_SIZE, 7, seed=3), epoch=2), whole)


@pytest.mark.parametrize("dataset", [RandomDataset, PlainDataset, MixUp])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_generators_of_the_main_process_are_left_alone(dataset, num_workers):
    before = generators()
    loader = UpdateLoader(dataset(), BATCH_SIZE, num_workers=num_workers)
    for epoch in range(2):
        updates_of(loader, epoch)
    assert generators() == before


def test_data_that_is_never_random_is_not_seeded_for_every_sample(monkeypatch):
    def fail(*arguments):
        raise AssertionError("seeded")

    monkeypatch.setattr(dataloader, "seed_cpu", fail)
    updates_of(UpdateLoader(PlainDataset(), BATCH_SIZE))
    with pytest.raises(AssertionError, match="seeded"):
        updates_of(UpdateLoader(RandomDataset(), BATCH_SIZE))


# ---- an order of the data set's own ----------------------------------------------------------------------------------
class OrderedDataset(PlainDataset):
    """Comes backwards in even epochs and as it is in odd ones, shifted by the seed."""

    def epoch_order(self, seed, epoch):
        return [(index + seed) % NUM_SAMPLES for index in range(NUM_SAMPLES)][:: 1 if epoch % 2 else -1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_order_of_the_data_set_replaces_the_permutation(num_workers):
    dataset = OrderedDataset()
    loader = UpdateLoader(dataset, BATCH_SIZE, 5, seed=3, num_workers=num_workers)
    for epoch in (0, 1):
        order = dataset.epoch_order(3, epoch)
        updates = updates_of(loader, epoch)
        assert [len(update) for update in updates] == [16, 16, 16, 5]
        assert torch.cat(updates).flatten().tolist() == order
        assert torch.cat(updates_of(loader, epoch, start=32)).flatten().tolist() == order[32:]


@pytest.mark.parametrize("order", [[0] * NUM_SAMPLES, list(range(NUM_SAMPLES - 1)), list(range(1, NUM_SAMPLES + 1))])
def test_an_order_that_leaves_out_or_doubles_a_sample_is_refused(order):
    with pytest.raises(UserError, match="each of 53 samples once"):  # before a run is made
        UpdateSampler(NUM_SAMPLES, BATCH_SIZE, order=lambda seed, epoch: order)
    later = UpdateSampler(NUM_SAMPLES, BATCH_SIZE, order=lambda seed, epoch: order if epoch else range(NUM_SAMPLES))
    later.epoch = 1
    with pytest.raises(UserError, match="each of 53 samples once"):
        next(iter(later))


def test_tensors_need_no_seeds_unless_a_data_set_says_that_it_is_random():
    tensors = TensorDataset(torch.zeros(3))
    assert not may_be_random(tensors) and may_be_random([1, 2])
    tensors.is_random = True
    assert may_be_random(tensors)


def test_a_kind_of_tensor_data_set_that_draws_is_seeded():
    class Noisy(TensorDataset):
        def __getitem__(self, index):
            return super().__getitem__(index)[0] + torch.rand(())

    loader = UpdateLoader(Noisy(torch.arange(NUM_SAMPLES)), BATCH_SIZE)
    assert same(updates_of(loader, 0, BATCH_SIZE), updates_of(loader)[1:])
