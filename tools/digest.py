"""Digests of checkpoints and their parts: the same text for the same content, bit for bit."""

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.checkpoints.state import SCALARS, plain

# The options of a run, its observers and its clock do not determine the rest of the training.
NOT_THE_RUN = ("seconds", "options", "callbacks", "format", "run_name", "evaluator")


def digest(value: Any) -> str:
    """Return a SHA-256 that is the same only for the same content, bit for bit.

    The order of a dictionary does not count, and neither does the layout of a tensor in memory. Types count (1, 1.0 and
    True are three values, a list is no tuple), and so do the bits: 0.0 is not -0.0, and NaN is NaN.

    >>> digest({"a": 1, "b": [2.0]}) == digest({"b": [2.0], "a": 1})
    True
    >>> digest(["ab", "c"]) == digest(["a", "bc"])
    False

    Raises:
        UserError: for an object that a checkpoint cannot hold.
    """
    sha = hashlib.sha256()
    feed(sha, value)
    return sha.hexdigest()


def leaves(state: Any, place: str = "") -> list[tuple[str, Any]]:
    """Return every value that is no list, tuple or dictionary, with its place in the state.

    >>> leaves({"a": [1, {"b": 2}]})
    [("['a'][0]", 1), ("['a'][1]['b']", 2)]
    """
    if isinstance(state, dict):
        entries = state.items()
    elif isinstance(state, list | tuple):
        entries = enumerate(state)
    else:
        return [(place, state)]
    return [leaf for key, entry in entries for leaf in leaves(entry, f"{place}[{key!r}]")]


def feed(sha: Any, value: Any) -> None:
    """Give a value to a hash, led by its kind and length, so that two different values never give the same bytes."""
    if isinstance(value, dict):
        entries = sorted(digest(key) + digest(entry) for key, entry in value.items())
        feed_bytes(sha, "dict", "".join(entries).encode())
    elif type(value) in (list, tuple):
        sha.update(f"{type(value).__name__} {len(value)}:".encode())
        for entry in value:
            feed(sha, entry)
    elif isinstance(value, Tensor):
        flat = value.detach().to_dense().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        kind = f"tensor {value.dtype} {tuple(value.shape)}"
        feed_bytes(sha, kind, memoryview(flat.view(torch.uint8).numpy()))
    elif type(value) is float:
        feed_bytes(sha, "float", struct.pack(">d", value))  # all the bits, where the text would lose those of a NaN
    else:
        if type(value) not in SCALARS:
            plain(value, "the value")
        feed_bytes(sha, type(value).__name__, str(value).encode("utf-8", "surrogatepass"))


def feed_bytes(sha: Any, kind: str, content: bytes | memoryview) -> None:
    sha.update(f"{kind} {len(content)}:".encode())
    sha.update(content)


def digests(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each part of a checkpoint, and under "run" that of all parts that determine the training.

    Two runs with the same digest "run" continue in the same way.
    """
    assert "run" not in state, "'run' is the name of the digest over the parts"
    found = {name: digest(part) for name, part in state.items()}
    return found | {"run": digest({name: text for name, text in found.items() if name not in NOT_THE_RUN})}
