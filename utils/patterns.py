"""Parameters by shell-style patterns on their names.

`*` stands for any letters, dots included, `?` for one letter, `[ab]` for one of these. Names are those of
`named_parameters()`, without what wrappers put into them. Where there are several networks, `NETWORK:PATTERN` looks
into one of them, and a pattern without a colon into all. A parameter that two modules share goes by either name.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from torch import nn

from utils.errors import UserError, nearest

INSERTED = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")  # into names, by wrappers
SHOWN = 8  # names in a message


def plain_name(name: str) -> str:
    """The name that a parameter has in its network, whatever is wrapped around the modules.

    >>> plain_name("layers._checkpoint_wrapped_module.0.weight")
    'layers.0.weight'
    """
    for inserted in INSERTED:
        name = name.replace(inserted, "")
    return name


def named_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every parameter with its plain name, a shared one with each of its names."""
    for name, parameter in network.named_parameters(remove_duplicate=False):
        yield plain_name(name), parameter


def split_pattern(pattern: str) -> tuple[str | None, str]:
    """The name of the network that a pattern is for, None for all, and the pattern itself.

    >>> split_pattern("critic:head.*"), split_pattern("head.*")
    (('critic', 'head.*'), (None, 'head.*'))
    """
    network, colon, rest = pattern.partition(":")
    return (network, rest) if colon else (None, pattern)


def for_network(pattern: str, name: str) -> list[str]:
    """The pattern without its network, if it is for the network `name`; otherwise none."""
    of, rest = split_pattern(pattern)
    return [rest] if of in (None, name) else []


def matching(networks: Mapping[str, nn.Module], pattern: str, option: str) -> list[nn.Parameter]:
    """Return the parameters whose names match a pattern, each once.

    Args:
        networks: by name.
        pattern: see above.
        option: what an error begins with, such as "--freeze".

    Raises:
        UserError: when none does, or the pattern is for a network that there is not.
    """
    of, rest = split_pattern(pattern)
    if of is not None and of not in networks:
        raise UserError(f"{option} {pattern!r}: there is no network {of!r}, only {', '.join(networks)}.")
    named = [entry for name, network in networks.items() if of in (None, name) for entry in named_parameters(network)]
    found = {id(parameter): parameter for name, parameter in named if fnmatchcase(name, rest)}
    if not found:
        names = list(dict.fromkeys(name for name, _ in named))
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise UserError(
            f"{option} {pattern!r} matches no parameter{nearest(rest, names)}. "
            f"There are {', '.join(names[:SHOWN]) or 'none'}{more}."
        )
    return list(found.values())
