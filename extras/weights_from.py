"""Find the weights that --pretrained names: of a file, of torchvision, of timm, or of a model on huggingface.co.

A source is the text of the option: FILE, torchvision, timm, or hf:OWNER/NAME, or hf:OWNER/NAME@REVISION. Whatever such
files say is taken as data. Each is opened by a reader that runs nothing, and may name no other file.
"""

import importlib
import json
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.checkpoints.file import load_file
from engine.options.foreign import without_weights
from engine.registry import error_line, import_module
from extras.input_scale import is_scale
from utils.errors import UserError
from utils.seed import preserved_random_state

LIBRARIES = ("torchvision", "timm")
ON_HUB = re.compile(r"hf:(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.-]+))?")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # on huggingface.co, in this order
OWN_SCALE = ("googlenet", "inception_v3")  # torchvision's weights of these expect -1 to 1, by `transform_input`
OF_SHAPE = ("in_chans", "num_classes")  # arguments of timm that a network here may have otherwise than its weights

Scale = tuple[list[float], list[float]]  # the mean and the standard deviation of each channel


def is_file(source: str) -> bool:
    """Return whether a source is a file, and no library or model on huggingface.co."""
    return source not in LIBRARIES and not source.startswith("hf:")


def content_of(source: str, opt: Namespace) -> tuple[Any, str]:
    """Return what holds the weights of a source, as data, and words for where they are from.

    Args:
        source: see the top of this file.
        opt: the options; --model_type and --model_args name the network of a library.

    Raises:
        UserError: they cannot be had: a package or the network is missing, or there are none.
    """
    if source in LIBRARIES:
        return by_network(source, opt)
    if source.startswith("hf:"):
        path = from_hub(source, WEIGHT_FILES)
        return read_weights(path), f"{source} ({path})"
    return read_weights(source), source


def scale_of(source: str, opt: Namespace) -> Scale | None:
    """Return the mean and the standard deviation of the input that weights were trained with; None if unknown."""
    if source == "torchvision":
        name, weights = of_torchvision(opt)
        expected = weights.transforms()
        scale = ([0.5], [0.5]) if name in OWN_SCALE else (expected.mean, expected.std)
    elif source == "timm":
        _, cfg = of_timm(opt)
        scale = (cfg.mean, cfg.std)
    elif source.startswith("hf:"):
        path = from_hub(source, ["config.json"], is_needed=False)
        scale = scale_in(path and read_json(path))
    elif source.endswith(".safetensors"):
        scale = scale_in(metadata_of(source))
    else:
        content = load_file(source)
        scale = scale_in(content.get("options") if isinstance(content, dict) else None)
    return (list(map(float, scale[0])), list(map(float, scale[1]))) if is_scale(*scale) else None


def scale_in(description: Any) -> tuple[Any, Any]:
    """Return the mean and the deviation in options, in the configuration of timm, or in metadata, where they are text.

    >>> scale_in({"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5], "std": [0.25]}})
    ([0.5], [0.25])
    """
    if not isinstance(description, dict):
        return None, None
    of_timm = description.get("pretrained_cfg")
    if isinstance(of_timm, dict):
        return of_timm.get("mean"), of_timm.get("std")
    values = []
    for name in ("input_mean", "input_std"):
        value = description.get(name)
        try:
            values.append(json.loads(value) if isinstance(value, str) else value)
        except ValueError:
            values.append(None)
    return values[0], values[1]


# ---- libraries -------------------------------------------------------------------------------------------------------
def by_network(library: str, opt: Namespace) -> tuple[dict[str, Any], str]:
    """Return the weights that a library has for the network of --model_type, and words for where they are from."""
    if library == "torchvision":
        name, weights = of_torchvision(opt)
        settings = {"progress": sys.stderr.isatty(), "check_hash": True, "weights_only": True}
        return fetched(opt, lambda: weights.get_state_dict(**settings)), f"torchvision's {weights} ({weights.url})"
    import timm

    name, cfg = of_timm(opt)
    more = {}
    where = cfg.url
    if cfg.hf_hub_id:
        files = [cfg.hf_hub_filename] if cfg.hf_hub_filename else WEIGHT_FILES
        path = from_hub(f"hf:{cfg.hf_hub_id}", files)
        more = {"pretrained_cfg_overlay": {"file": str(path)}}
        where = path
    arguments = {key: value for key, value in without_weights(opt.model_args).items() if key not in OF_SHAPE}
    with preserved_random_state():  # the network that the weights are read into draws its own first
        network = fetched(opt, lambda: timm.create_model(name, pretrained=True, **arguments, **more))
    return network.state_dict(), f"timm's {name}.{cfg.tag} ({where})"


def of_torchvision(opt: Namespace) -> tuple[str, Any]:
    """Return the name of a classifier of torchvision, and its best weights."""
    name = name_in("torchvision", opt)
    models = import_module("torchvision.models", "--pretrained torchvision")
    known = list(models.get_model_weights(name))
    if not known:
        raise UserError(f"--pretrained torchvision: it has no weights of {name}.")
    return name, models.get_model_weights(name).DEFAULT


def of_timm(opt: Namespace) -> tuple[str, Any]:
    """Return the name of a classifier of timm, and the configuration of its weights."""
    name = name_in("timm", opt)
    timm = import_module("timm", "--pretrained timm")
    cfg = timm.models.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise UserError(f"--pretrained timm: it has no weights of {name}; timm.list_pretrained() lists those it has.")
    return name, cfg


def name_in(library: str, opt: Namespace) -> str:
    """Return the name of a library's network that --model_type names; UserError for any other network."""
    chosen, _, name = (opt.model_type or "").partition(":")
    if chosen != library or not name:
        raise UserError(
            f"--pretrained {library} is for a network of {library}, such as --model_type {library}:resnet18, and "
            f"--model_type is {opt.model_type}. Other networks take a file, or hf:OWNER/NAME."
        )
    return name


def fetched(opt: Namespace, fetch: Callable[[], Any]) -> Any:
    """Return what a library fetches; UserError when it cannot."""
    try:
        return fetch()
    except Exception as error:  # libraries of the network raise many types
        raise UserError(
            f"--pretrained {opt.pretrained}: the weights of {opt.model_type} cannot be had: {error_line(error)}. "
            f"Without a network, fetch them once on a machine that has one, or give a file."
        ) from error


# ---- huggingface.co --------------------------------------------------------------------------------------------------
def from_hub(source: str, names: Sequence[str], is_needed: bool = True) -> Path | None:
    """Return the path of the first of these files that a model has, from the cache, or else from huggingface.co.

    Args:
        source: hf:OWNER/NAME, or hf:OWNER/NAME@REVISION.
        names: of files.
        is_needed: raise if the model has none of them; otherwise return None.

    Raises:
        UserError: there is no such model or file, or no network.
    """
    match = ON_HUB.fullmatch(source)
    if match is None:
        raise UserError(f"--pretrained {source!r} is not hf:OWNER/NAME, such as hf:timm/resnet18.a1_in1k.")
    hub = import_hub("huggingface_hub", source)
    errors = importlib.import_module("huggingface_hub.errors")  # the package imports its modules when they are named
    logging = importlib.import_module("huggingface_hub.utils").logging
    logging.set_verbosity_error()  # without a network it would report each of its trials
    place = {"repo_id": match["name"], "revision": match["revision"]}
    cached = {name: hub.try_to_load_from_cache(filename=name, **place) for name in names}
    for path in cached.values():
        if isinstance(path, str):
            return Path(path)
    for name in names:
        if cached[name] is hub._CACHED_NO_EXIST:  # the model is known to have no such file
            continue
        try:
            return Path(hub.hf_hub_download(filename=name, **place))
        except errors.EntryNotFoundError as error:
            if isinstance(error, errors.LocalEntryNotFoundError):  # neither in the cache nor to be asked for
                raise unreachable(source, error) from None
        except Exception as error:  # of the network, of many types
            raise unreachable(source, error) from None
    if is_needed:
        raise UserError(f"--pretrained {source}: the model has none of {', '.join(names)}.")
    return None


def unreachable(source: str, error: Exception) -> UserError:
    """Return the error for a file that cannot be fetched."""
    name = source.removeprefix("hf:").partition("@")[0]
    return UserError(
        f"--pretrained {source}: {' '.join(str(error).split())[:300]} Without a network, fetch it once on a machine "
        f"that has one (hf download {name}), or give a file."
    )


def import_hub(package: str, source: str) -> Any:
    """Import a package of Hugging Face; UserError with the command that installs it when it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"--pretrained {source} needs the package {package}: pip install {package}") from None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


# ---- files -----------------------------------------------------------------------------------------------------------
def read_weights(path: str | Path) -> Any:
    """Open a file of safetensors, or one that `torch.save` wrote, as data only and onto the CPU."""
    if not str(path).endswith(".safetensors"):
        return load_file(path)
    return with_safetensors(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def metadata_of(path: str | Path) -> dict[str, str]:
    """Return the texts by name that a file of safetensors has beside its tensors."""
    return with_safetensors(path, lambda file: file.metadata() or {})


def with_safetensors(path: str | Path, read: Callable[[Any], Any]) -> Any:
    """Return `read(file)` of a file of safetensors; UserError when it cannot be read."""
    safetensors = import_hub("safetensors", str(path))
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return read(file)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"Cannot read {path}: {' '.join(str(error).split())[:200]}") from None
