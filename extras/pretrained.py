"""Start from weights that only partly fit: another head, another wrapper, another file format."""

from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.checkpoints.file import load_file, weights_of
from engine.options.parser import Options, changed, mask_value
from extras.input_scale import BUFFERS
from extras.weights_from import Scale, content_of, is_file, read_weights, scale_of
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
    ways = [
        ({k.removeprefix(p): v for k, v in found.items() if k.startswith(p)}, f"{p!r} removed from its names")
        for p in parents(found)
    ]
    ways += [({p + k: v for k, v in found.items()}, f"{p!r} put before its names") for p in parents(own)]
    renamed, how = max(ways, key=lambda way: len(fits(own, way[0])), default=({}, ""))
    num_fitting = len(fits(own, renamed))
    return (renamed, how) if num_fitting and 2 * num_fitting >= min(len(own), len(renamed)) else ({}, "")


def with_channels_fitted(own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `found` with the weights of convolutions on three channels summed, where the network's are on one.

    So a grey picture gives what the same picture gives in red, green and blue.
    """
    fitted = dict(found)
    for key, value in found.items():
        shape = own[key].shape if key in own else ()
        is_of_grey = len(shape) == value.ndim == 4 and shape[1] == 1 and value.shape[1] == 3
        if is_of_grey and shape[2:] == value.shape[2:] and shape[0] == value.shape[0]:
            fitted[key] = value.sum(dim=1, keepdim=True)
    return fitted


def load_pretrained(network: nn.Module, path: str, name: str = "model", content: Any = None) -> str:
    """Load every weight whose name and shape fit, and return a report of what was and what was not loaded.

    When nothing fits as it is named, a prefix that all names lack, or have too much, is looked for.

    Args:
        network: what is to be filled.
        path: a file that `torch.save` wrote, or of safetensors; opened as data only.
        name: the name of the network, in a checkpoint that holds several.
        content: instead of the file's, with `path` in words for the report.

    Raises:
        UserError: when the file cannot be opened, or nothing in it fits.
    """
    own = network.state_dict()
    content = read_weights(path) if content is None else content
    found = find_weights(content, own, name)
    renamed, how = ({}, "") if fits(own, found) else without_or_with_prefix(own, found)
    found = renamed or found
    given, found = found, with_channels_fitted(own, found)
    fitting = fits(own, found)
    other_shape = [
        f"{key} {tuple(found[key].shape)} for {tuple(own[key].shape)}"
        for key in found
        if key in own and key not in fitting
    ]
    summed = [key for key in fitting if given[key].shape != own[key].shape]
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
    for label, names in (
        ("other shape", other_shape),
        ("not in the file", absent),
        ("not in the network", surplus),
        ("three channels summed to one", summed),
    ):
        if names:
            lines.append(f"  {label} ({len(names)}): {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}")
    return "\n".join(lines)


# ---- of a run --------------------------------------------------------------------------------------------------------
def check(options: Mapping[str, Any], resumes: bool) -> None:
    """Raise UserError when --pretrained and --model_path contradict each other, or the file is not there."""
    if options["pretrained"] is True and not options["model_path"] and not resumes:
        raise UserError("--pretrained needs the file to start from: --pretrained FILE, or a name, see --help.")
    if options["model_path"] and options["pretrained"] is not True:
        raise UserError("--model_path is the file that --pretrained starts from: give --pretrained FILE instead.")
    source = options["pretrained"]
    if isinstance(source, str) and is_file(source) and not resumes and not Path(source).exists():
        raise UserError(f"--pretrained {shown(source)}: no such file, nor torchvision, timm or hf:OWNER/NAME.")


def source_of(opt: Options) -> str:
    """Return the text that says where the weights of --pretrained are, see extras/weights_from.py."""
    return opt.model_path if opt.pretrained is True else opt.pretrained


def load_initial_weights(opt: Options, networks: Mapping[str, nn.Module]) -> list[str]:
    """Load the weights of --pretrained into the networks of a run; return notes on them for the log.

    Args:
        opt: the options, with the input's scale, see `with_scale`.
        networks: by name.
    """
    source = source_of(opt)
    content, origin = content_of(source, opt)
    notes = [load_pretrained(network, origin, name, content) for name, network in networks.items()]
    return notes + scale_note(opt, scale_of(source, opt))


def scale_note(opt: Options, expected: Scale | None) -> list[str]:
    """Return a line on the normalization of the input, if there is one, or if the weights were trained with one."""
    used = (opt.input_mean, opt.input_std) if opt.input_mean else None
    lines = []
    if used:
        lines.append(f"Input: normalized by {in_words(used)}.")
    if expected and used != fitted_scale(expected, opt.n_channels):
        lines.append(f"The weights were trained on input that was normalized by {in_words(expected)}.")
    return [" ".join(lines)] if lines else []


def in_words(scale: Scale) -> str:
    """Return a mean and a standard deviation per channel in words."""
    mean, std = (" ".join(f"{number:g}" for number in numbers) for numbers in scale)
    return f"mean {mean} and standard deviation {std} of the channels"


def fitted_scale(scale: Scale, n_channels: int) -> Scale | None:
    """Return a scale for this number of channels: of one value for each, of several for one their mean; else None."""
    if len(scale[0]) == n_channels:
        return scale
    if len(scale[0]) == 1:
        return scale[0] * n_channels, scale[1] * n_channels
    if n_channels == 1:
        return tuple([sum(numbers) / len(numbers)] for numbers in scale)
    return None


def with_scale(opt: Options) -> Options:
    """Return the options with the mean and the standard deviation of the input that the weights were trained with.

    Those that a person has given stay.
    """
    if opt.input_mean or opt.input_std:
        return opt
    scale = scale_of(source_of(opt), opt)
    scale = scale and fitted_scale(scale, opt.n_channels)
    return changed(opt, **dict(zip(BUFFERS, scale, strict=True))) if scale else opt


def groups_in(opt: Options) -> dict[str, torch.Tensor]:
    """Return the hashes of the data that the weights of --pretrained have seen, by part; {} if they do not say."""
    source = source_of(opt)
    content = load_file(source) if is_file(source) and not source.endswith(".safetensors") else {}
    groups = content.get("groups") if isinstance(content, dict) else None  # in a file of another program maybe anything
    if not isinstance(groups, dict):
        return {}
    return {part: hashes for part, hashes in groups.items() if torch.is_tensor(hashes)}


def with_mask_values(opt: Options) -> Options:
    """Return the options with the values of the masks that --pretrained was trained on, if the classes are as many."""
    path = source_of(opt)
    if getattr(opt, "mask_values", ()) is not None or not is_file(path) or path.endswith(".safetensors"):
        return opt
    content = load_file(path)
    known = content.get("options") if isinstance(content, dict) else None
    if not isinstance(known, dict) or not known.get("mask_values"):
        return opt
    if opt.n_classes not in (None, known.get("n_classes")):
        return opt
    try:
        return changed(opt, mask_values=[mask_value(str(value)) for value in known["mask_values"]])
    except (ArgumentTypeError, TypeError):
        raise UserError(f"--pretrained {path}: its mask_values are none: {shown(known['mask_values'])}.") from None
