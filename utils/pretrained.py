"""Start from weights that only partly fit: another head, another wrapper, another file format."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from utils.checkpoint import load_file
from utils.errors import UserError

WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "state_dict.")  # of DataParallel, torch.compile and others


def find_weights(content: Any, name: str = "model") -> dict[str, torch.Tensor]:
    """Find the weights in a file's content: this template's checkpoint, a bare state dict, or a dict with one in it."""
    for key in ("networks", name, "state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        return {}
    return {key: value for key, value in content.items() if isinstance(key, str) and torch.is_tensor(value)}


def strip_wrappers(key: str, known: Mapping[str, Any]) -> str:
    """Remove prefixes that wrappers put before a name, until the network knows it or none is left."""
    while key not in known:
        prefix = next((prefix for prefix in WRAPPERS if key.startswith(prefix)), None)
        if prefix is None:
            return key
        key = key[len(prefix) :]
    return key


def load_pretrained(network: nn.Module, path: str, name: str = "model") -> str:
    """Load every weight whose name and shape fit, and return a report of what was and what was not loaded.

    Args:
        network: what is to be filled.
        path: a file that `torch.save` wrote; opened as data only.
        name: the name of the network, in a checkpoint that holds several.

    Raises:
        UserError: when the file cannot be opened, or nothing in it fits.
    """
    own = network.state_dict()
    found = {strip_wrappers(key, own): value for key, value in find_weights(load_file(path), name).items()}
    fitting = {key: value for key, value in found.items() if key in own and value.shape == own[key].shape}
    other_shape = [
        f"{key} {tuple(found[key].shape)} for {tuple(own[key].shape)}"
        for key in found
        if key in own and key not in fitting
    ]
    absent = [key for key in own if key not in found]
    surplus = [key for key in found if key not in own]
    if not fitting:
        raise UserError(
            f"Nothing in {path} fits the network {name!r}. It wants {', '.join(list(own)[:3])}, ...; "
            f"the file has {', '.join(list(found)[:3]) or 'no tensors'}{', ...' if len(found) > 3 else ''}."
        )
    network.load_state_dict(fitting, strict=False)
    lines = [f"Pretrained: {len(fitting)} of {len(own)} tensors of {name!r} loaded from {path}."]
    for label, names in (("other shape", other_shape), ("not in the file", absent), ("not in the network", surplus)):
        if names:
            lines.append(f"  {label} ({len(names)}): {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}")
    return "\n".join(lines)
