"""The exception for people keeps its message, and a misspelt name finds its neighbour."""

import pytest
from torch.utils.data import DataLoader, Dataset

from utils.errors import UserError, nearest


class Unreadable(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise UserError("car_07.jpg cannot be opened.\nDelete it, or download it again.")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_message_from_a_loading_process_is_the_message_alone(num_workers):
    try:
        next(iter(DataLoader(Unreadable(), num_workers=num_workers)))
    except UserError as error:  # pytest.raises would keep the loading process alive
        message = str(error)
    assert message == "car_07.jpg cannot be opened.\nDelete it, or download it again."


def test_it_is_a_value_error():
    with pytest.raises(ValueError, match="no such thing"):
        raise UserError("no such thing")


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("batchsize", ["batch_size", "lr"], "batch_size"),
        ("ADAMW", ["adam", "adamW"], "adamW"),
        ("epcoh", iter(["epoch", "batch"]), "epoch"),
        ("zzz", ["batch_size", "lr"], None),
        ("lr", [], None),
    ],
)
def test_nearest(name, known, found):
    assert nearest(name, known) == (f" (did you mean '{found}'?)" if found else "")
