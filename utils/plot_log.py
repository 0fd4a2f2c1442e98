"""Draw the curves of one or more runs: python -m utils.plot_log Results/Vanilla/1663932921"""

import csv
from collections.abc import Sequence
from pathlib import Path

from utils.draw import new_figure, render
from utils.errors import UserError
from utils.options import OptionParser, file_path, run_main


def read_metrics(run_dir: str | Path) -> dict[str, list[tuple[float, float]]]:
    """Read a run's `metrics.csv` into (epoch, value) points by column; empty cells give no point.

    Raises:
        UserError: when there is no such file, or it holds no epoch.
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
        raise UserError(f"{path} holds no epoch yet.")
    return points


def plot_runs(run_dirs: Sequence[str | Path], output: str | Path) -> None:
    """Draw one panel for each metric, training and validation in the same panel, and save the picture."""
    runs = {str(run_dir): read_metrics(run_dir) for run_dir in run_dirs}
    columns = [name for points in runs.values() for name in points if name.startswith(("train/", "val/"))]
    metrics = list(dict.fromkeys(name.split("/", 1)[1] for name in columns))
    figure = new_figure(4.2 * len(metrics), 3.2)
    for place, metric in enumerate(metrics):
        axes = figure.add_subplot(1, len(metrics), place + 1)
        for number, (run_dir, points) in enumerate(runs.items()):
            for part, style in (("train", "--"), ("val", "-")):
                if curve := points.get(f"{part}/{metric}"):
                    label = part if len(runs) == 1 else f"{part} {Path(run_dir).name}"
                    axes.plot(*zip(*curve, strict=True), style, color=f"C{number}", marker=".", label=label)
        axes.set_title(metric)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    try:
        render(figure, output)
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot write the picture {output}: {error}") from None


def main() -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("run", nargs="+", type=file_path, help="a run directory, with metrics.csv in it")
    parser.add_argument("--output", type=file_path, default=None,
                        help="the picture to write (default: curves.png in the first run)")  # fmt: skip
    opt = parser.parse_args()
    output = opt.output or Path(opt.run[0]) / "curves.png"
    plot_runs(opt.run, output)
    print(f"Saved {output}")


if __name__ == "__main__":
    run_main(main)
