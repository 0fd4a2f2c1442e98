"""Start from weights that only partly fit: another head, another wrapper, another file format."""

from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from engine.checkpoints.file import load_file, weights_of
from engine.options.parser import Options, changed, mask_value
from utils.errors import UserError, shown

WRAPPERS = ("module.", "_orig_mod.", "model.", "network.", "state_dict.")  # of DataParallel, torch.compile and others


def find_weights(content: Any, own: Mapping[str, torch.Tensor], name: str = "model") -> dict[str, torch.Tensor]:
    """Find the weights of a network in a file's content, wherever they stand in it, without the names of wrappers.

    Of a checkpoint with averaged weights they are these, which is what it is measured by. Of several networks in a file
    of another program they are those that fit best, and of equal ones the first.

    Args:
        content: this template's checkpoint, a bare state dict, or dictionaries with one in them, under any names.
        own: the state of the network that is to be filled.
        name: the name of the network, in a checkpoint that holds several.
    """
    if isinstance(content, Mapping) and "averaging" in content and isinstance(content.get("networks"), dict):
        content = weights_of(dict(content))
    for key in ("networks", name):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    found = [{strip_wrappers(key, own): tensors[key] for key in tensors} for tensors in mappings_of_tensors(content)]
    return max(found, key=lambda tensors: (len(fits(own, tensors)), len(tensors)), default={})


def mappings_of_tensors(content: Any, depth: int = 4) -> Iterator[dict[str, torch.Tensor]]:
    """Yield each mapping of names to tensors in a file's content, outermost first, without the other values in it."""
    if isinstance(content, Mapping):
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and torch.is_tensor(value)}
        if tensors:
            yield tensors
        for value in content.values() if depth else ():
            yield from mappings_of_tensors(value, depth - 1)


def strip_wrappers(key: str, known: Mapping[str, Any]) -> str:
    """Remove prefixes that wrappers put before a name, until the network knows it or none is left."""
    while key not in known:
        prefix = next((prefix for prefix in WRAPPERS if key.startswith(prefix)), None)
        if prefix is None:
            return key
        key = key[len(prefix) :]
    return key


def fits(own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of `found` with the name and the shape of a tensor of `own`."""
    return {key: value for key, value in found.items() if key in own and value.shape == own[key].shape}


def parents(names: Mapping[str, Any]) -> list[str]:
    """The modules that tensors stand in, each with its dot.

    >>> parents({"a.b.weight": 0, "a.b.bias": 0, "scale": 0})
    ['a.', 'a.b.']
    """
    parts = [name.split(".")[:-1] for name in names]
    return list(dict.fromkeys(".".join(p[: i + 1]) + "." for p in parts for i in range(len(p))))


def without_or_with_prefix(
    own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], str]:
    """Rename `found` so that as much as can be fits: it may be of a larger network, or of a part of this one.

    Returns:
        The renamed tensors, and what was done, in words; {} and "" unless at least half of them fit then.
    """
    ways = [({k.removeprefix(p): v for k, v in found.items() if k.startswith(p)}, f"{p!r} removed from its names")
            for p in parents(found)]  # fmt: skip
    ways += [({p + k: v for k, v in found.items()}, f"{p!r} put before its names") for p in parents(own)]
    renamed, how = max(ways, key=lambda way: len(fits(own, way[0])), default=({}, ""))
    num_fitting = len(fits(own, renamed))
    return (renamed, how) if num_fitting and 2 * num_fitting >= min(len(own), len(renamed)) else ({}, "")


def load_pretrained(network: nn.Module, path: str, name: str = "model") -> str:
    """Load every weight whose name and shape fit, and return a report of what was and what was not loaded.

    When nothing fits as it is named, a prefix that all names lack, or have too much, is looked for.

    Args:
        network: what is to be filled.
        path: a file that `torch.save` wrote; opened as data only.
        name: the name of the network, in a checkpoint that holds several.

    Raises:
        UserError: when the file cannot be opened, or nothing in it fits.
    """
    own = network.state_dict()
    content = load_file(path)
    found = find_weights(content, own, name)
    renamed, how = ({}, "") if fits(own, found) else without_or_with_prefix(own, found)
    found = renamed or found
    fitting = fits(own, found)
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
    kind = "averaged tensors" if isinstance(content, Mapping) and content.get("averaging") else "tensors"
    how = how and f", with {how}"
    lines = [f"Pretrained: {len(fitting)} of {len(own)} {kind} of {name!r} loaded from {path}{how}."]
    for label, names in (("other shape", other_shape), ("not in the file", absent), ("not in the network", surplus)):
        if names:
            lines.append(f"  {label} ({len(names)}): {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}")
    return "\n".join(lines)


def with_mask_values(opt: Options, path: str) -> Options:
    """Return the options with the values of the masks that a checkpoint was trained on, if the classes are as many."""
    if getattr(opt, "mask_values", ()) is not None:
        return opt
    content = load_file(path)
    known = content.get("options") if isinstance(content, dict) else None
    if not isinstance(known, dict) or not known.get("mask_values") or known.get("n_classes") != opt.n_classes:
        return opt
    try:
        return changed(opt, mask_values=[mask_value(str(value)) for value in known["mask_values"]])
    except (ArgumentTypeError, TypeError):
        raise UserError(f"--model_path {path}: its mask_values are none: {shown(known['mask_values'])}.") from None
