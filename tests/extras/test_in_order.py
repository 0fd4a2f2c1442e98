"""A data set in its own order."""

import pickle

from torch.utils.data import Dataset

from data.loader import UpdateLoader
from extras.in_order import InOrder


class Letters(Dataset):
    names = ["a", "b", "c", "d", "e"]
    is_random = False

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> str:
        return self.names[index]

    def open_cache(self) -> Dataset:
        return Letters()


def test_updates_come_in_the_order_of_the_data():
    for num_workers in (0, 1):
        loader = UpdateLoader(InOrder(Letters()), batch_size=2, num_workers=num_workers)
        for epoch in (0, 1):
            found = [sample for update in loader.updates(epoch) for batch in update.micro_batches for sample in batch]
            assert found == Letters.names
    shuffled = UpdateLoader(Letters(), batch_size=5)
    assert any(update.indices != [0, 1, 2, 3, 4] for epoch in (0, 1) for update in shuffled.updates(epoch))


def test_the_rest_is_that_of_the_data_set():
    dataset = InOrder(Letters())
    assert (dataset.names, dataset.is_random, len(dataset)) == (Letters.names, False, 5)
    assert not hasattr(dataset, "__getitems__") and not hasattr(dataset, "fingerprint")
    assert isinstance(dataset.open_cache(), InOrder)
    assert pickle.loads(pickle.dumps(dataset))[1] == "b"
