"""Compare runs on one page: python -m tools.compare RUN RUN ... -> compare.html

    python -m tools.compare Results/Vanilla/1663932921 Results/Vanilla/1663940000
    python -m tools.compare Results/Sweep/*/* --output sweep.html

A table that can be sorted, curves over each other, and the options that differ, in one file that needs no network. See
docs/report.md.
"""

from collections.abc import Sequence

from engine.options.parser import OptionParser, file_path, run_main
from engine.registry import load


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(prog="python -m tools.compare", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("run", nargs="+", type=file_path, metavar="RUN", help="a run directory, a checkpoint in one, or DIR/latest")
    add("--output", type=file_path, default="compare.html", metavar="FILE", help="the page to write")
    opt = parser.parse_args(argv)
    runs = list(map(load("extras.run_report.runs:named_run", "run"), opt.run))
    print(f"Saved {load('extras.run_report.comparison:write_comparison', 'run')(runs, opt.output)}")


if __name__ == "__main__":
    run_main(main)
