"""Train parameters from a later epoch on: --unfreeze 'encoder.*=5'. They are frozen before.

Which parameters are trained is a function of the epoch, so a resume needs no state for it. An optimizer has them from
the beginning; it passes over parameters without a gradient, and makes their state at their first update.
"""

import gc
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from extras.param_groups import frozen_normalization, matching_parameters, nearest_with_parameters, plain_name
from utils.errors import UserError


def split_epoch(text: str) -> tuple[str, int]:
    """Split ``PATTERN=EPOCH``.

    >>> split_epoch("encoder.*=5")
    ('encoder.*', 5)
    """
    pattern, _, epoch = text.rpartition("=")
    return pattern, int(epoch)


def check(opt: Namespace, networks: Mapping[str, nn.Module]) -> None:
    """Check --unfreeze, when a run begins.

    Args:
        opt: the options.
        networks: by name. What is frozen for the whole run is frozen already.

    Raises:
        UserError: a pattern matches nothing, or only frozen parameters; an epoch is after the last one; or nothing
            would be trained in the first epoch.
    """
    for text in opt.unfreeze:
        pattern, epoch = split_epoch(text)
        if not any(parameter.requires_grad for parameter in matching_parameters(networks, pattern, "--unfreeze")):
            raise UserError(f"--unfreeze {text!r} matches only parameters that are frozen for the whole run.")
        if epoch > opt.n_epoch and not opt.debug:  # which makes one epoch of any number
            raise UserError(f"--unfreeze {text!r} is after the last epoch, --n_epoch {opt.n_epoch}.")
    begin = first_epochs(networks, opt.unfreeze)
    for name, network in networks.items():
        epochs = [begin.get(id(parameter), 1) for parameter in network.parameters() if parameter.requires_grad]
        if epochs and min(epochs) > 1:
            flags = " ".join(opt.unfreeze)
            raise UserError(f"--unfreeze {flags}: nothing in {name!r} would be trained before epoch {min(epochs)}.")


def first_epochs(networks: Mapping[str, nn.Module], texts: Sequence[str]) -> dict[int, int]:
    """Return by the identity of each matching parameter the epoch from which it is trained; the last pattern counts."""
    begin: dict[int, int] = {}
    for text in texts:
        pattern, epoch = split_epoch(text)
        begin |= {id(parameter): epoch for parameter in matching_parameters(networks, pattern, "--unfreeze")}
    return begin


def follow(trainer) -> None:
    """Freeze and unfreeze parameters for the epoch that begins, and put frozen normalization in eval mode.

    Args:
        trainer: its networks are in train mode.
    """
    if trainer.distributed.is_sharded:
        raise UserError("--unfreeze does not go with --parallel fsdp: take ddp, or freeze for the whole run.")
    networks = trainer.networks
    epoch = trainer.progress.current_epoch
    groups = [group for optimizer in trainer.optimizers.values() for group in optimizer.param_groups]
    stepped = {id(parameter) for group in groups for parameter in group["params"]}  # not those of --freeze
    begin = first_epochs(networks, trainer.opt.unfreeze)
    for name, network in networks.items():
        scheduled = [p for p in network.parameters() if id(p) in begin.keys() & stepped]
        changing = [p for p in scheduled if p.requires_grad != (epoch >= begin[id(p)])]
        for parameter in changing:
            parameter.requires_grad_(epoch >= begin[id(parameter)])
            parameter.grad = None
        in_eval_mode = normalization_of(network, scheduled)
        for layer in in_eval_mode:
            network.get_submodule(layer).eval()
        if changing:
            trainer.run_dir.note(f"Epoch {epoch}: {in_words(name, scheduled, in_eval_mode)}")
            trainer.wrapped[name] = network
            if trainer.distributed.size > 1:
                gc.collect()  # else the hooks of the wrapper before would stay
            trainer.wrapped[name] = trainer.distributed.wrap(network, trainer.device)


def normalization_of(network: nn.Module, scheduled: Iterable[nn.Parameter]) -> list[str]:
    """Return the names of the layers with running statistics that are frozen, and that --unfreeze trains later.

    Those that a network freezes by itself go on with their statistics, as without the option.
    """
    named = {id(parameter) for parameter in scheduled}
    decisive = {layer: nearest_with_parameters(network, layer) for layer in frozen_normalization(network)}
    return [layer for layer, module in decisive.items() if any(id(p) in named for p in module.parameters())]


def in_words(name: str, scheduled: Iterable[nn.Parameter], in_eval_mode: Iterable[str]) -> str:
    """Return how many parameters of --unfreeze are frozen, and which normalization is in eval mode."""
    frozen = [parameter for parameter in scheduled if not parameter.requires_grad]
    if not frozen:
        return f"all parameters of {name!r} that --unfreeze names are trained"
    layers = ", ".join(map(plain_name, in_eval_mode))
    more = f"; in eval mode: {layers}" if layers else ""
    count = sum(parameter.numel() for parameter in frozen)
    return f"--unfreeze: {count:,} parameters in {len(frozen)} tensors of {name!r} are frozen{more}"
