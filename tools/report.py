"""Write the report of a run, one HTML file that needs no network: python -m tools.report RUN

    python -m tools.report latest
    python -m tools.report Results/Vanilla/1663932921 --evaluation test_viz/1663933000

report.html and curves.png go into the directory of the run. --logger tensorboard csv report writes them while it
trains. See docs/report.md.
"""

from collections.abc import Sequence

from engine.options.parser import OptionParser, file_path, run_main
from engine.registry import load
from tools.plot_log import plot_runs
from utils.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(prog="python -m tools.report", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("run", type=file_path, metavar="RUN", help="a run directory, a checkpoint in one, latest, or DIR/latest")
    add("--evaluation", type=file_path, metavar="DIR", default=None,
        help="the directory of an evaluation (default: the newest of this run in its directory or in test_viz)")
    opt = parser.parse_args(argv)
    run = load("extras.run_report.runs:named_run", "run")(opt.run)
    written = [load("extras.run_report.page:write_report", "run")(run, evaluation=opt.evaluation)]
    try:
        plot_runs([run], run / "curves.png")
        written.append(run / "curves.png")
    except UserError as error:  # no epoch yet: the page says so, too
        print(error)
    print(f"Saved {', '.join(map(str, written))}")


if __name__ == "__main__":
    run_main(main)
