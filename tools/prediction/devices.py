"""The name of one device on a command line."""

import re
from argparse import ArgumentTypeError

from utils.errors import shown


def device(text: str) -> str:
    """An argparse type for one device, as --gpu_devices of an evaluation takes it.

    >>> device("cuda:1"), device("cuda"), device("0"), device("CPU")
    ('1', '0', '0', 'cpu')
    """
    match = re.fullmatch(r"(cpu)|(?:cuda:?)?([0-9]{0,4})", text.strip().lower())
    if not match or not text.strip() or text.strip().endswith(":"):
        raise ArgumentTypeError(f"{shown(text)} is not one device: give cpu, cuda, cuda:1, or the number of a GPU")
    return match[1] or match[2] or "0"
