"""Draw the curves of one or more runs: python -m tools.plot_log Results/Vanilla/1663932921 ..."""

import csv
from collections.abc import Sequence
from pathlib import Path

from engine.options.parser import OptionParser, file_path, run_main
from utils.errors import UserError, nearest, shown

COLUMNS = 3  # of panels
FEW = 50  # points; longer curves have no markers


def read_metrics(run_dir: str | Path) -> dict[str, list[tuple[float, float]]]:
    """Read a run's `metrics.csv` into (epoch, value) points by column; an empty cell gives no point.

    Raises:
        UserError: there is no such file, or it has no epoch yet.
    """
    path = Path(run_dir) / "metrics.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        points = {
            name: [(float(row["epoch"]), float(row[name])) for row in rows if row[name]] for name in (rows or [{}])[0]
        }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"Cannot read the curves of {run_dir}: {error}") from None
    if not points:
        raise UserError(f"{path} has no epoch yet.")
    return points


def names_of(run_dirs: Sequence[str | Path]) -> list[str]:
    """Return the shortest path ends that distinguish the directories, for a legend.

    >>> names_of(["sweep/000-seed0/17", "sweep/001-seed0/17", "Results/Vanilla/18"])
    ['000-seed0/17', '001-seed0/17', '18']
    """
    parts = [Path(run_dir).resolve().parts for run_dir in run_dirs]
    names = []
    for own in parts:
        count = 1
        while count < len(own) and sum(other[-count:] == own[-count:] for other in parts) > 1:
            count += 1
        names.append("/".join(own[-count:]))
    return names


def metrics_of(runs: Sequence[dict[str, list[tuple[float, float]]]], wanted: Sequence[str] | None) -> list[str]:
    """Return the metrics to draw, without train/ and val/; UserError when no run has a wanted one."""
    columns = [name for points in runs for name in points if name.startswith(("train/", "val/"))]
    metrics = list(dict.fromkeys(name.split("/", 1)[1] for name in columns))
    for name in wanted or ():
        if name not in metrics:
            raise UserError(f"--metrics {shown(name)} is none of {', '.join(metrics)}{nearest(name[:60], metrics)}.")
    return list(dict.fromkeys(wanted)) if wanted else metrics


def plot_runs(run_dirs: Sequence[str | Path], output: str | Path, metrics: Sequence[str] | None = None) -> None:
    """Draw one panel for each metric, training and validation in the same panel, and save the picture.

    Args:
        run_dirs: the runs, each with a colour of its own.
        output: the picture; its suffix chooses the format: png, pdf, svg ...
        metrics: the metrics to draw, without train/ and val/; None draws all.

    Raises:
        UserError: a run has no curves, or none of the metrics, or the picture cannot be written.
    """
    from matplotlib.figure import Figure

    run_dirs = list(dict.fromkeys(map(str, run_dirs)))
    runs = [read_metrics(run_dir) for run_dir in run_dirs]
    metrics = metrics_of(runs, metrics)
    columns = min(COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), dpi=100, layout="constrained")
    for place, metric in enumerate(metrics):
        axes = figure.add_subplot(rows, columns, place + 1)
        for number, points in enumerate(runs):
            for part, style in (("train", "--"), ("val", "-")):
                if curve := points.get(f"{part}/{metric}"):
                    marker = "." if len(curve) < FEW else ""
                    axes.plot(*zip(*curve, strict=True), style, color=colour_of(number, len(runs)), marker=marker)
        axes.set_title(metric)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    add_legend(figure, names_of(run_dirs) if len(runs) > 1 else [])
    try:
        figure.savefig(output)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot write the picture {output}: {error}") from None


def colour_of(number: int, count: int):
    """Return the colour of a run among `count`: of the usual ten, or of a scale when there are more."""
    from matplotlib import colormaps

    return f"C{number}" if count <= 10 else colormaps["viridis"](number / (count - 1))


def add_legend(figure, names: Sequence[str]) -> None:
    """Add a legend below the panels, for training and validation and for the colours of the runs."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color="black", linestyle=style) for style in ("--", "-")]
    lines += [Line2D([], [], color=colour_of(number, len(names))) for number in range(len(names))]
    texts = ["train", "val", *names]
    width = max(map(len, texts)) * 0.08 + 0.6  # inches of an entry
    num_columns = max(1, min(len(texts), int(figure.get_figwidth() / width)))
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(texts) // num_columns))
    figure.legend(lines, texts, loc="outside lower center", ncols=num_columns, fontsize=8, frameon=False)


def main() -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("run", nargs="+", type=file_path, help="a run directory, with metrics.csv in it")
    parser.add_argument(
        "--output", type=file_path, default=None, help="the picture to write (default: curves.png in the first run)"
    )
    parser.add_argument(
        "--metrics", nargs="+", default=None, metavar="NAME", help="which to draw, such as loss accuracy (default: all)"
    )
    opt = parser.parse_args()
    output = opt.output or Path(opt.run[0]) / "curves.png"
    plot_runs(opt.run, output, opt.metrics)
    print(f"Saved {output}")


if __name__ == "__main__":
    run_main(main)
