"""List the runs below a directory, newest first: status, best metric, time, options that differ.

    python -m tools.runs
    python -m tools.runs Results/Vanilla --depth 1

The status is running, finished, stopped early (before --n_epoch), interrupted (Ctrl-C, a signal, the time limit) or
crashed (an error, or killed). See docs/report.md.
"""

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.options.parser import OptionParser, file_path, number, printable, run_main
from engine.registry import import_module, load
from utils.errors import UserError

PART = "run"  # for messages
NARROWEST = 20  # columns for the options that differ, below which they get a line of their own


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(prog="python -m tools.runs", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("directory", nargs="?", type=file_path, default="Results", help="where to look")
    add("--depth", type=number(int, low=0, high=20), default=5, metavar="N", help="how many directories deep")
    opt = parser.parse_args(argv)
    rows = list(rows_below(opt.directory, opt.depth))
    if not rows:
        raise UserError(f"There is no run below {opt.directory}. Name another directory.")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(lines_of(rows, width)))


def rows_below(root: str | Path, depth: int) -> Iterable[tuple[str, str, str, str, str]]:
    """Yield the cells of each run: its directory, status, best metric, time, and options that differ.

    A directory whose files cannot be read is passed over.
    """
    runs = import_module("extras.run_report.runs", PART)
    duration = load("extras.run_report.page:duration_text", PART)
    for path in runs.find_runs(root, depth):
        try:
            run = runs.read_run(path)
        except UserError:
            continue
        monitor = f"val/{run.options.get('monitor')}"
        best = f"{monitor} {run.best[monitor]:.4g} (epoch {run.best['epoch']:.0f})" if run.best else "none"
        settings = runs.settings_text(runs.differing(run.options, runs.defaults_of(run)))
        yield tuple(map(printable, (str(path), run.status, best, duration(run.seconds), settings)))


def lines_of(rows: Sequence[tuple[str, ...]], width: int | None) -> list[str]:
    """Return the rows under a header, at most `width` columns wide, by moving or cutting the options that differ.

    >>> lines_of([("Results/1", "crashed", "none", "3.2 s", "lr=0.1 seed=4")], 40)[1:]
    ['Results/1  crashed  none  3.2 s', '    lr=0.1 seed=4']
    """
    header = ("run", "status", "best", "time", "options that differ")
    widths = [max(map(len, column)) for column in zip(header[:-1], *(row[:-1] for row in rows), strict=True)]
    used = sum(widths) + 2 * len(widths)
    is_apart = width is not None and width - used < NARROWEST
    lines = []
    for row in (header, *rows):
        text = "  ".join(f"{cell:{size}}" for cell, size in zip(row[:-1], widths, strict=True))
        whole = [text, f"    {row[-1]}"] if is_apart else [f"{text}  {row[-1]}"]
        lines += [cut(line.rstrip(), width) for line in whole if line.strip()]
    return lines


def cut(line: str, width: int | None) -> str:
    """Return a line that is at most `width` columns wide."""
    return line if width is None or len(line) <= width else f"{line[: width - 3]}..."


if __name__ == "__main__":
    run_main(main)
