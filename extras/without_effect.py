"""Refuse an option that changes nothing beside the other options: who gives it expects something else of the run."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import registry
from engine.options.parser import OptionParser, split_weight
from extras.by_network import SINGLE
from utils.errors import UserError

# The option that selects a component, its kind, and the method in which a task may read any option.
SELECTING = {
    "data_type": ("data", "build_datasets"), "model_type": ("model", "build_networks"),
    "loss_type": ("loss", "build_criterion"), "optim": ("optimizer", "build_optimizers"),
    "lr_scheduler": ("scheduler", "build_schedulers"),
}  # fmt: skip

CUTTING = ("train_val_sample_rate", "test_sample_rate", "val_split", "fold", "split_seed")  # data into parts

# What options need, to have an effect: NAME, an option that is on; NAME=VALUE,VALUE, one that has one of the values;
# !, the opposite. Of an option that selects a component, NAME alone means that the component takes the option. Limits,
# such as --worker_timeout, and --parallel are not here: they may stand in every command, whatever machine it runs on.
NEEDS = {
    "data_type": (
        "data_dir", "train_val_sample_rate", "test_sample_rate", "val_split", "fold", "split_seed", "patch_size",
        "crop", "mask_values", "shuffle_shards", "cache", "cache_dir", "shard_cache_dir", "shard_cache_gb",
        "image_size", "target", "features", "leave_out", "group", "categories", "columns", "text",
    ),
    "data_type|!augment=True": ("augment",),  # with a name, any data of images
    "model_type": ("width", "up", "deep_supervision", "latent", "batch_norm"),
    "loss_type": ("label_smoothing",),
    "optim": ("lr", "weight_decay", "momentum"),
    "!optim=rmsprop": ("momentum",),
    "!optim=sgd,nesterov,rmsprop,adagrad": ("beta1",),
    "weight_decay": ("no_decay",),
    "clip": ("clip_type",),
    "lr_scheduler=step,exponential": ("lr_decay_rate",),
    "!lr_scheduler=constant": ("lr_min",),
    "!lr_scheduler=OneCycleLR,CyclicLR": ("lr",),
    "!lr_scheduler=constant|warmup_epoch": ("scheduler_step",),
    "warmup_epoch": ("warmup_multiplier",),
    "!nproc=1": ("sync_bn", "max_restarts"),
    "!parallel=dp": ("sync_bn", "max_restarts"),
    "val_every": ("monitor", "monitor_mode", "patience", "min_delta", "eval_batch_size", "metrics", "metric_args"),
    "nan_policy=skip": ("max_skips",),
    "!save_every_updates": ("save_every",),
    "!fold": ("val_split",),
    "cache": ("cache_dir",),
    "!mode=padding": ("eval_batch_size",),
    "!mode=padding|split=train": ("patch_size",),
    "!crop": ("patch_size",),
    "viz": ("n_snap",),
    "!split=train": ("allow_seen",),
}  # fmt: skip


class WithoutEffect(UserError):
    """An option changes nothing beside the others.

    Attributes:
        option: its name.
    """

    def __init__(self, option: str, message: str):
        super().__init__(message)
        self.option = option


def refuse_without_effect(
    parser: OptionParser, options: Mapping[str, Any], defaults: OptionParser, tasks: Sequence[type]
) -> list[str]:
    """Raise WithoutEffect when the command line or an option file gives an option that has no effect; see `NEEDS`.

    Args:
        parser: has resolved the options.
        options: all of them.
        defaults: a parser of the same program that has read nothing.
        tasks: the classes of the task, which may read any option in methods of their own.

    An option that one of several networks uses has an effect.

    Returns:
        Those of `CUTTING` that the data does not take: they may cut it, see extras/own_data/cut.py.
    """
    asked_to_cut = []
    num_processes = max(options.get("nproc", 1), 2 if "WORLD_SIZE" in os.environ else 1)
    if options.get("parallel", "none") != "none":
        num_processes = max(num_processes, len(options["gpu_devices"].split(",")))
    options = {**options, "nproc": num_processes}
    left: dict[str, list[dict[str, Any]]] = {}  # of each option: the networks for which its needs so far are met
    for need, names in NEEDS.items():
        needed = need.split("|")
        for name in names:
            source, value = parser.sources.get(name, ""), options.get(name)
            if name not in parser.asked or not is_claim(source, value, defaults.get_default(name)):
                continue
            views = left.get(name) or by_network(options)
            left[name] = [view for view in views if any(is_met(one, name, view, tasks) for one in needed)]
            if not left[name]:
                if need == "data_type" and name in CUTTING:
                    asked_to_cut.append(name)
                    continue
                beside = [one.strip("!").partition("=")[0] for one in needed]
                beside = [other for other in beside if other != name]
                others = " and ".join(f"--{other} {in_words(options[other])}" for other in beside)
                allowed = [one for one in needed if "=" in one and not one.startswith("!")]
                wanted = [f"--{one.replace('=', ' ').replace(',', ' or ')}" for one in allowed]
                hint = f": it is for {' and '.join(wanted)}" if wanted else ""
                message = f"--{name} {in_words(value)} has no effect with {others}{hint}. Leave it out."
                raise WithoutEffect(name, message)
    return asked_to_cut


def by_network(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the options of each network that a mapping names, as --optim may be one; a single entry without any."""
    by_name = {option: options[option] for option in SINGLE if isinstance(options.get(option), Mapping)}
    networks = dict.fromkeys(name for values in by_name.values() for name in values) or {"": None}
    return [{**options, **{option: values.get(network) for option, values in by_name.items()}} for network in networks]


def is_claim(source: str, value: Any, default: Any) -> bool:
    """Return whether a value was given to have an effect: not one that is off, nor one of an earlier run.

    A file may list options as they are by default, and a person may name the default of a choice, as --parallel none.
    """
    is_of_file = not source.startswith("command line")
    is_of_run = is_of_file and Path(source).name.startswith("config_")  # as a run saves them
    return bool(value) and not is_of_run and not (value == default and (is_of_file or isinstance(value, str)))


def is_met(need: str, name: str, options: Mapping[str, Any], tasks: Sequence[type]) -> bool:
    """Return whether one need of the option `name` is met; always, of an option that the program does not have."""
    option, equals, values = need.strip("!").partition("=")
    kind, method = SELECTING.get(option, ("", ""))
    methods = [getattr(task, method) for task in tasks if hasattr(task, method)]
    is_own = any(made.__module__.partition(".")[0] not in ("trainer", "eval", "extras") for made in methods)
    value = options.get(option)
    chosen = registry.as_list(value)
    if option not in options or (kind and (is_own or None in chosen)):
        return True
    if kind and not equals:
        components = [registry.find(kind, split_weight(one)[0]) for one in chosen]
        parameter = "val_split" if name == "fold" else name  # see data.data_entry.build_datasets
        return any(registry.taken(component, {parameter: None}) for component in components)
    is_so = any(str(one) in values.split(",") for one in chosen) if equals else bool(options[option])
    return is_so != need.startswith("!")


def in_words(value: Any) -> str:
    return " ".join(map(str, registry.as_list(value)))
