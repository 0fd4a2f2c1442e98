"""Find a learning rate: the range test of L. N. Smith, "Cyclical Learning Rates ...", WACV 2017.

The rate grows from tiny to huge in a geometric sequence; each value is used for a few updates. At first the loss hardly
changes. Then it falls, the faster the larger the rate, until it rises or is no longer finite. A good rate lies where it
falls. One run depends on the samples it happened to draw, so there are several, from the same weights.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

TOO_HIGH = 3.0  # a run ends when its loss is this many times the first loss above its lowest
LEAST_FALL = 0.05  # of the first loss; a smaller fall may be chance


@dataclass
class LrCurve:
    """The losses of a range test.

    Attributes:
        rates: the learning rates tried, (V,), ascending.
        losses: of each run and rate, (R, V), the mean over the updates; NaN from where a run ended.
    """

    rates: np.ndarray
    losses: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean over the runs and over neighbouring rates, (V,); NaN from where one of the runs ended."""
        return smoothed(self.losses.mean(axis=0))

    @property
    def suggestion(self) -> float | None:
        """The geometric mean of the two `landmarks`; None when the loss falls nowhere."""
        found = landmarks(self.rates, self.mean)
        return found and math.sqrt(found[0] * found[1])

    @property
    def suggestions(self) -> list[float]:
        """The suggestion of each run alone; their spread shows how reliable the suggestion is."""
        found = (landmarks(self.rates, smoothed(losses)) for losses in self.losses)
        return [math.sqrt(both[0] * both[1]) for both in found if both]


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Average each value with its neighbours, an eighth of the array in all; NaN stays NaN.

    >>> smoothed(np.array([1.0, 1.0, 4.0, 1.0, 1.0, np.nan])).tolist()
    [1.0, 2.0, 2.0, 2.0, 1.0, nan]
    """
    reach = reach_of(losses)
    result = np.full(len(losses), np.nan)
    end = num_finite(losses)
    for place in range(end):
        near = min(reach, place, end - 1 - place)  # as many on both sides, so that a slope does not move the mean
        result[place] = losses[place - near : place + near + 1].mean()
    return result


def reach_of(values: np.ndarray) -> int:
    """Return how many neighbours on each side count in a mean."""
    return max(1, len(values) // 16)


def num_finite(losses: np.ndarray) -> int:
    """Count the finite values before the first that is not."""
    return int(np.isfinite(losses).cumprod().sum())


def landmarks(rates: np.ndarray, losses: np.ndarray) -> tuple[float, float] | None:
    """Return the rate at which the loss falls fastest and the rate at which it is lowest; None if it hardly falls.

    The first certainly learns, but a training wants more: with few updates at each rate, the fall begins late. The
    second is nearly too much.

    >>> landmarks(np.array([1e-4, 1e-3, 1e-2, 1e-1, 1.0]), np.array([2.0, 1.9, 1.2, 1.0, 3.0]))
    (0.01, 0.1)
    >>> landmarks(np.array([1e-3, 1e-2, 1e-1]), np.array([2.0, 2.0, 2.1])) is None
    True
    """
    end = num_finite(losses)
    lowest = int(np.argmin(losses[:end])) if end else 0
    if lowest == 0 or losses[0] - losses[lowest] <= LEAST_FALL * abs(losses[0]):
        return None
    slopes = np.gradient(losses[: lowest + 1], np.log(rates[: lowest + 1]))
    return float(rates[int(np.argmin(slopes))]), float(rates[lowest])


# ---- the test --------------------------------------------------------------------------------------------------------
def find_lr(
    step: Callable[[Any], float],
    optimizers: Iterable[Optimizer],
    batches: Callable[[int], Iterator[Any]],
    get_state: Callable[[], Any],
    set_state: Callable[[Any], None],
    *,
    low: float = 1e-7,
    high: float = 1.0,
    num_values: int = 50,
    num_updates: int = 3,
    num_runs: int = 3,
    base_lr: float | None = None,
) -> LrCurve:
    """Run the range test, and restore the state afterwards, also after an exception.

    Args:
        step: makes one update from a batch and returns its loss; a loss that is not finite ends the run.
        optimizers: all that the step uses. Where the rates of their groups differ, they keep their ratio.
        batches: returns an endless iterator over batches, given the number of the run, from 0 on.
        get_state, set_state: return the state of the weights, the optimizers and all else, and restore it.
        low, high: the first and the last rate, 0 < low < high.
        num_values: the number of rates, at least 2, evenly spaced on a logarithmic scale.
        num_updates: updates with each rate, at least 1.
        num_runs: at least 1.
        base_lr: the rate of the group that gets exactly the rates tried; None for the highest rate of all groups.
    """
    optimizers = list(optimizers)
    rates = np.geomspace(low, high, num_values)
    whole = [rate_of(group) for optimizer in optimizers for group in optimizer.param_groups]
    ratios = [rate / (base_lr or max(whole)) for rate in whole]
    losses = np.full((num_runs, num_values), np.nan)
    state = get_state()
    try:
        for run in range(num_runs):
            set_state(state)
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            source = batches(run)
            best = math.inf
            for place, rate in enumerate(rates):
                for group, ratio in zip(groups, ratios, strict=True):
                    set_rate(group, float(rate) * ratio)
                loss = mean_loss(step, source, num_updates)
                losses[run, place] = loss
                best = min(best, loss)
                if not math.isfinite(loss) or loss > best + TOO_HIGH * max(abs(losses[run, 0]), abs(best)):
                    break
    finally:
        set_state(state)
    losses[~np.isfinite(losses)] = np.nan
    return LrCurve(rates, losses)


def mean_loss(step: Callable[[Any], float], source: Iterator[Any], num_updates: int) -> float:
    """Make some updates and return their mean loss; NaN at the first that is not finite."""
    total = 0.0
    for _ in range(num_updates):
        total += step(next(source))
        if not math.isfinite(total):
            return math.nan
    return total / num_updates


def rate_of(group: dict[str, Any]) -> float:
    """Return the configured rate of a parameter group, without the factor of a schedule."""
    return float(group.get("initial_lr", group["lr"]))


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a parameter group; a rate that is a tensor is changed in place."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


# ---- the result ------------------------------------------------------------------------------------------------------
def describe(curve: LrCurve, option: str = "--lr") -> str:
    """Describe the suggestion in a few lines, with a warning when it lies at an edge of the range."""
    lines = []
    if found := landmarks(curve.rates, curve.mean):
        single = ", ".join(f"{rate:.2g}" for rate in curve.suggestions) or "none"
        lines.append(
            f"Suggestion: {option} {curve.suggestion:.2g}, between {found[0]:.2g}, where the loss falls fastest, and "
            f"{found[1]:.2g}, where it is lowest. Each run alone: {single}."
        )
        edge = 1 + reach_of(curve.rates)  # rates at each end whose mean has few neighbours
        if found[1] >= curve.rates[max(-1 - edge, -len(curve.rates))]:
            lines.append(f"Warning: the loss falls up to {found[1]:.2g}, next to the highest. Try a higher range.")
        if found[0] <= curve.rates[min(edge, len(curve.rates) - 1)]:
            lines.append(f"Warning: the loss falls fastest at {found[0]:.2g}, next to the lowest. Try a lower range.")
    else:
        lines.append(
            f"No suggestion: between {curve.rates[0]:.2g} and {curve.rates[-1]:.2g} the loss hardly falls. Try another "
            f"range, or more updates with each rate."
        )
    ended = [int(np.isnan(losses).argmax()) for losses in curve.losses if np.isnan(losses).any()]
    if ended:
        first = curve.rates[min(ended)]
        lines.append(f"{len(ended)} of {len(curve.losses)} runs ended early, one at {first:.2g}: the loss is too high.")
    return "\n".join(lines)


def draw_curve(curve: LrCurve, path: Path) -> None:
    """Draw the loss over the rate: each run thin, their mean thick, the suggestion as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)  # needs no display
    axes = figure.add_subplot()
    for number, losses in enumerate(curve.losses):
        axes.plot(curve.rates, losses, color="C0", alpha=0.35, linewidth=0.8, label=None if number else "single runs")
    axes.plot(curve.rates, curve.mean, color="C0", linewidth=2, label="mean, smoothed")
    if found := landmarks(curve.rates, curve.mean):
        axes.axvspan(*found, color="C1", alpha=0.15, label="falls fastest to lowest")
        axes.axvline(curve.suggestion, color="C1", linestyle="--", label=f"suggestion: {curve.suggestion:.2g}")
    finite = curve.losses[np.isfinite(curve.losses)]
    first = curve.losses[:, 0].mean()
    lowest = finite.min(initial=math.inf)
    if first > lowest:  # losses far above the first would flatten everything else
        axes.set_ylim(lowest - 0.1 * (first - lowest), first + 0.5 * (first - lowest))
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)
