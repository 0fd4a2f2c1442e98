"""The hint on the loading of data fits what is known."""

import pytest

from extras.data_advice import data_advice


@pytest.mark.parametrize(
    ("known", "flag"),
    [
        ({}, "--num_workers auto"),
        ({"num_workers": 2, "cores": 8}, "--num_workers 4"),
        ({"num_workers": 6, "cores": 8}, "--num_workers 8"),
        ({"num_workers": 2, "cores": 8, "was_measured": True, "can_cache": True}, "--cache"),
        ({"num_workers": 8, "cores": 8, "can_cache": True, "can_move": True, "patch_size": 256}, "--cache"),
        ({"num_workers": 8, "cores": 8, "can_move": True, "patch_size": 256}, "--data_device auto"),
        ({"num_workers": 16, "cores": 8, "patch_size": 256}, "--patch_size below 256"),
        ({"num_workers": 8, "cores": 8}, "faster disk"),
        ({"was_measured": True}, "faster disk"),
        ({"in_memory": True, "can_move": True}, "--data_device auto"),
        ({"in_memory": True, "num_workers": 4, "cores": 8, "can_move": True}, "--num_workers 0"),
        ({"in_memory": True}, None),
    ],
)
def test_advice_fits_what_is_known(known, flag):
    known = {"num_workers": 0, "cores": 8} | known
    text = data_advice(**known)
    assert text.startswith("Much of the time is spent waiting for data. ") and flag in text if flag else text == ""
    if text:
        assert sum(name in text for name in ("--num_workers", "--cache", "--data_device", "--patch_size")) <= 1
