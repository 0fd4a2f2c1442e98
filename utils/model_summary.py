"""A table of a network's layers, and the number of its parameters."""

from torch import nn


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return how many numbers the module has as parameters, and how many of them are trained. Shared ones count once.

    >>> count_parameters(nn.Linear(4, 2))
    (10, 10)
    """
    total = sum(parameter.numel() for parameter in module.parameters())
    trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return total, trainable


def layer_table(module: nn.Module, max_rows: int = 40) -> str:
    """Return a table of the layers: name, type, shapes of the parameters, number of parameters; the total below.

    A layer is a module with no children, or with parameters of its own.

    >>> print(layer_table(nn.Sequential(nn.Linear(4, 2), nn.ReLU())))
    layer  type    shapes  parameters
    0      Linear  2x4, 2          10
    1      ReLU                     0
    total 10 parameters, 10 trainable

    Args:
        module: the network.
        max_rows: layers shown; how many more there are is said in one line.
    """
    rows = [("layer", "type", "shapes", "parameters")]
    for name, layer in module.named_modules():
        own = list(layer.parameters(recurse=False))
        if own or not any(True for _ in layer.children()):
            shapes = ", ".join("x".join(map(str, parameter.shape)) or "1" for parameter in own)
            count = sum(parameter.numel() for parameter in own)
            rows.append((name or "(itself)", type(layer).__name__, shapes, f"{count:,}"))
    num_hidden = max(len(rows) - 1 - max_rows, 0)
    rows = rows[: 1 + max_rows]

    name_width, type_width, shapes_width, count_width = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        f"{name:<{name_width}}  {kind:<{type_width}}  {shapes:<{shapes_width}}  {count:>{count_width}}"
        for name, kind, shapes, count in rows
    ]
    if num_hidden:
        lines.append(f"... and {num_hidden} more layers")
    total, trainable = count_parameters(module)
    lines.append(f"total {total:,} parameters, {trainable:,} trainable")
    return "\n".join(lines)
