"""The common parts of the benchmarks: variants that take turns, each run in its own process; ratios, marks, a page.

A benchmark is a file with cases. A case is one table: variants that do the same work in different ways, and marks that
their ratios should reach. Every single run of a variant is a new process, and the variants take turns (A B A B ...), so
that a machine that gets slower does not hit one of them alone. Ratios are made pair by pair: run i of A by run i of B.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.processor import processor
from engine.options.parser import BoolAction, OptionParser, file_path, number, one_of, run_main
from engine.runs.provenance import command_line, version
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
ORDER = (
    "vanilla_epoch", "evaluation", "unet_step", "time_to_accuracy", "startup", "carvana_loading", "image_loading",
    "index_size", "scaling", "gpu",
)  # fmt: skip
LEAST_RUNS = 5  # for a figure that is written down
TIMEOUT = 1800  # seconds that a run may take; then it hangs
ANSWER = "RESULT "  # begins the line on which a run tells its figures
NOT_SETTINGS = ("runs", "write", "record", "case", "variants", "one", "number")  # what does not change a single run
PEERS = ("torchvision", "lightning", "accelerate")

Runs = dict[str, list[dict[str, Any]]]  # by variant: the figures of each run


# ---- what a benchmark says about itself ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Mark:
    """A figure to reach: a variant's own, or its ratio to another's, or their difference.

    Attributes:
        what: what is compared, in words.
        variant, base: their names; without `base` it is the variant's own figure.
        key: the name of the figure.
        at_most, at_least: the mark; neither only shows the figure.
        difference: variant - base, without its sign, instead of variant / base.
    """

    what: str
    variant: str
    base: str | None = None
    key: str = "seconds"
    at_most: float | None = None
    at_least: float | None = None
    difference: bool = False

    def values(self, runs: Runs) -> list[float]:
        """The figure of each run, or of each pair of runs; empty when one of the variants was not measured."""
        own = [run[self.key] for run in runs.get(self.variant, [])]
        if self.base is None:
            return own
        pairs = zip(own, (run[self.key] for run in runs.get(self.base, [])), strict=False)
        return [abs(a - b) if self.difference else a / b for a, b in pairs]

    @property
    def text(self) -> str:
        if self.at_most is None and self.at_least is None:
            return "-"
        return f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"

    def verdict(self, value: float) -> str:
        """Whether a figure reaches the mark, and how much is missing."""
        if self.at_most is None and self.at_least is None:
            return "-"
        is_met = value <= self.at_most if self.at_most is not None else value >= self.at_least
        if is_met:
            return "met"
        limit = self.at_most if self.at_most is not None else self.at_least
        return f"**missed** by {abs(value - limit):.3g} ({abs(value - limit) / limit:.0%})"


@dataclass(frozen=True)
class Column:
    """A column of the table of variants: a figure by its key, what it is called, and how it is written."""

    key: str
    title: str
    form: str = "{:.3f}"


MEMORY = Column("memory", "peak memory, MB", "{:,.0f}")


@dataclass(frozen=True)
class Case:
    """One table.

    Attributes:
        name: for the command line.
        title: the heading on the page.
        about: what is measured and how, in plain words, Markdown.
        variants: by name, a function of the options that makes one run and returns its figures: "seconds", and more.
        marks: what the figures should reach.
        columns: what is shown of each variant.
        needs_gpu: left out on a machine without a CUDA GPU.
        is_long: left out unless --case names it.
    """

    name: str
    title: str
    about: str
    variants: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]]
    marks: Sequence[Mark] = ()
    columns: Sequence[Column] = (Column("seconds", "seconds"), MEMORY)
    needs_gpu: bool = False
    is_long: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A file of benchmarks/: its name there, its text for --help, its cases and its own options."""

    name: str
    description: str
    cases: Sequence[Case]
    add_options: Callable[[OptionParser], None] = lambda parser: None
    by_name: dict[str, Case] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "by_name", {case.name: case for case in self.cases})


# ---- the machine -----------------------------------------------------------------------------------------------------
def machine() -> str:
    """The hardware and the versions, in one line."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    bound = f"; OMP_PROC_BIND={binding}" if (binding := os.environ.get("OMP_PROC_BIND")) else ""
    peers = [f"{name} {version(name)}" for name in PEERS if version(name)]
    return (
        "; ".join(
            [processor(), gpu, ", ".join([f"Python {platform.python_version()}", f"torch {torch.__version__}", *peers])]
        )
        + bound
    )


def has_gpu() -> bool:
    """Whether there is a CUDA GPU; importing torch to ask would take seconds where there is no driver at all."""
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidiactl").exists():
        return False
    import torch

    return torch.cuda.is_available()


def peak_memory() -> float:
    """The most memory that this process held so far, in MB (10**6 bytes).

    Linux resets it for each program (VmHWM), while `ru_maxrss` also knows what the parent held when it started it.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


# ---- runs ------------------------------------------------------------------------------------------------------------
def settings_of(opt: argparse.Namespace) -> dict[str, Any]:
    """The options that a single run depends on."""
    return {name: value for name, value in vars(opt).items() if name not in NOT_SETTINGS}


def run_here(case: Case, variant: str, opt: argparse.Namespace) -> None:
    """Make one run in this process and print its figures as JSON on one line."""
    import torch

    if opt.threads:
        torch.set_num_threads(opt.threads)
    with contextlib.redirect_stdout(sys.stderr):
        figures = case.variants[variant](opt)
    figures = {"memory": peak_memory(), **figures, "machine": machine()}
    print(ANSWER + json.dumps(figures), flush=True)


def run_in_process(
    benchmark: Benchmark, case: Case, variant: str, number: int, argv: Sequence[str], threads: int, bind: bool = False
) -> dict[str, Any]:
    """Make one run in a new process and return its figures; UserError with its last words when it fails.

    Args:
        benchmark, case, variant: what to run.
        number: of the run, from 0; a seed where runs should differ.
        argv: the command line of the benchmark, which is that of the run, too.
        threads, bind: how many threads, 0 leaves it to torch; each bound to a core of its own.
    """
    command = [sys.executable, "-m", f"benchmarks.{benchmark.name}", *argv]
    command += [f"--number={number}", "--case", case.name, "--one", variant]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    environment |= {"OMP_PROC_BIND": "true"} if bind else {}  # not for this process, which would pass its core on
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{variant} took more than {TIMEOUT} seconds") from None
    answers = [line.removeprefix(ANSWER) for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if done.returncode or not answers:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(last.split(": error: ")[-1])
    return json.loads(answers[-1])


def recorded(path: str | None, benchmark: Benchmark, case: Case, settings: dict[str, Any]) -> Runs:
    """The runs of a case in a file of --record that were made with these settings."""
    runs: Runs = {}
    if path and Path(path).exists():
        for entry in map(json.loads, Path(path).read_text(encoding="utf-8").splitlines()):
            if [entry["benchmark"], entry["case"], entry["settings"]] == [benchmark.name, case.name, settings]:
                runs.setdefault(entry["variant"], []).append(entry["figures"])
    return runs


def measure(
    benchmark: Benchmark, case: Case, opt: argparse.Namespace, run: Callable[[str, int], dict[str, Any]]
) -> tuple[Runs, dict[str, str]]:
    """Run the variants in turn until each has `opt.runs`; return their figures, and why some failed.

    A variant that fails once is not tried again; the others are.

    Args:
        benchmark, case: what is measured.
        opt: its options.
        run: makes a run of the variant with this name and that number, in a process of its own.
    """
    names = [name for name in case.variants if not opt.variants or name in opt.variants]
    settings, failed = settings_of(opt), {}
    runs = recorded(opt.record, benchmark, case, settings)
    while left := [name for name in names if name not in failed and len(runs.get(name, [])) < opt.runs]:
        name = min(left, key=lambda name: len(runs.get(name, [])))  # the first of those with the fewest
        try:
            figures = run(name, len(runs.get(name, [])))
        except UserError as error:
            failed[name] = str(error)
            print(f"  {case.name} {name}: FAILED: {error}", file=sys.stderr, flush=True)
            continue
        runs.setdefault(name, []).append(figures)
        print(f"  {case.name} {name}: {shown(figures)}", file=sys.stderr, flush=True)
        if opt.record:
            entry = {"benchmark": benchmark.name, "case": case.name, "variant": name, "settings": settings}
            with open(opt.record, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry | {"figures": figures}) + "\n")
    return {name: runs[name][: opt.runs] for name in names if name in runs}, failed


def shown(figures: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if isinstance(value, int | float))


# ---- the table -------------------------------------------------------------------------------------------------------
def spread(values: Sequence[float], form: str) -> str:
    """The median, and the lowest and the highest where they differ from it."""
    middle, low, high = statistics.median(values), min(values), max(values)
    texts = [form.format(value) for value in (middle, low, high)]
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} ({texts[1]} to {texts[2]})"


def table_of(case: Case, runs: Runs, failed: Mapping[str, str]) -> str:
    """The figures of each variant, and what became of each mark, as two Markdown tables."""
    titles = ["variant", *(column.title for column in case.columns), "runs"]
    lines = [row(titles), row(["---"] * len(titles))]
    for name in (name for name in case.variants if name in runs or name in failed):
        if name in failed:
            lines.append(row([name, f"failed: {failed[name]}", *[""] * (len(titles) - 2)]))
            continue
        cells = [[run[column.key] for run in runs[name] if column.key in run] for column in case.columns]
        texts = [spread(cell, column.form) if cell else "-" for cell, column in zip(cells, case.columns, strict=True)]
        lines.append(row([name, *texts, str(len(runs[name]))]))
    if case.marks:
        lines += ["", row(["compared, run by run", "median", "lowest to highest", "mark", "result"]), row(["---"] * 5)]
    for mark in case.marks:
        values = mark.values(runs)
        if not values or mark.variant in failed or mark.base in failed:
            lines.append(row([mark.what, "-", "-", mark.text, "not measured"]))
            continue
        middle = statistics.median(values)
        between = f"{min(values):.3g} to {max(values):.3g}"
        lines.append(row([mark.what, f"{middle:.3g}", between, mark.text, mark.verdict(middle)]))
    return "\n".join(lines)


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def section_of(case: Case, table: str, machines: Sequence[str], command: str) -> str:
    """Return the section of the page on a case."""
    on = "; and on: ".join(dict.fromkeys(machines))
    return f"## {case.title}\n\n{case.about.strip()}\n\n{table}\n\n`{command}` on: {on}; {date.today()}."


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Put the section `name` on the page; the others, and all the text around them, stay."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    old, after = rest.split(END)
    sections, key, lines = {}, None, []
    for line in old.splitlines():
        if line.startswith("<!-- section ") and line.endswith(" -->"):
            key = line.removeprefix("<!-- section ").removesuffix(" -->")
            lines = sections.setdefault(key, [])
        elif key is not None:
            lines.append(line)
    sections[name] = text.splitlines()
    place = {benchmark: number for number, benchmark in enumerate(ORDER)}
    names = sorted(sections, key=lambda name: place.get(name.split()[0], len(ORDER)))  # stable within a benchmark
    texts = ["<!-- section {} -->\n{}\n".format(name, "\n".join(sections[name]).strip()) for name in names]
    page.write_text(f"{before}{BEGIN}\n\n" + "\n".join(texts) + f"\n{END}{after}", encoding="utf-8")


# ---- the command line ------------------------------------------------------------------------------------------------
def build_parser(benchmark: Benchmark) -> OptionParser:
    """The options that all benchmarks have, and its own."""
    text = argparse.RawDescriptionHelpFormatter
    parser = OptionParser(
        prog=f"python -m benchmarks.{benchmark.name}", description=benchmark.description, formatter_class=text
    )
    add, cases = parser.add_argument, tuple(benchmark.by_name)
    names = tuple(dict.fromkeys(name for case in benchmark.cases for name in case.variants))
    add("--runs", type=number(int, low=1, high=1000), default=LEAST_RUNS, metavar="N",
        help=f"runs of each variant, in turn (default: {LEAST_RUNS})")
    add("--case", type=one_of(cases), nargs="+", default=None, metavar="NAME",
        help=f"only these tables: {', '.join(cases)}")
    add("--variants", type=one_of(names), nargs="+", default=None, metavar="NAME",
        help=f"only these variants: {', '.join(names)}")
    add("--threads", type=number(int, low=0, high=1024), default=0, metavar="N",
        help="threads of each run; 0 leaves it to torch (default: 0)")
    add("--bind", action=BoolAction, default=False,
        help="bind each thread of a run to a core of its own, which makes the times of small networks repeat")
    add("--quick", action=BoolAction, default=False, help="tiny sizes, to see that it works; not a measurement")
    add("--record", type=file_path, default=None, metavar="FILE",
        help="append each run to FILE, and count the runs with the same options that are there already")
    add("--write", action=BoolAction, default=False, help=f"put the tables into {PAGE.relative_to(ROOT)}")
    add("--number", type=number(int, low=0), default=0, metavar="N",
        help="with --one: the number of the run, the seed where runs should differ (default: 0)")
    add("--one", type=one_of(names), default=None, metavar="NAME",
        help="make one run of this variant in this process, and print its figures as JSON")
    benchmark.add_options(parser)
    return parser


def run_benchmark(benchmark: Benchmark, argv: Sequence[str] | None = None) -> None:
    """The program of a benchmark; ends with status 1 when a variant failed. A missed mark is only reported."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(benchmark)
    opt = parser.parse_args(argv)
    shorter = [case.name for case in benchmark.cases if not case.is_long]
    cases = [benchmark.by_name[name] for name in opt.case or shorter]
    if opt.one:
        if len(cases) != 1 or opt.one not in cases[0].variants:
            parser.error("--one needs --case with the one table that has this variant")
        return run_here(cases[0], opt.one, opt)
    if opt.write and (opt.quick or opt.variants or opt.runs < LEAST_RUNS):
        parser.error(f"--write is for all variants, in full size, with at least {LEAST_RUNS} runs")
    began, num_failed, told = time.monotonic(), 0, []
    for case in cases:
        if case.needs_gpu and not has_gpu():
            print(f"{case.title}: left out, there is no CUDA GPU.", file=sys.stderr)
            continue
        one_run = partial(run_in_process, benchmark, case, argv=argv, threads=opt.threads, bind=opt.bind)
        runs, failed = measure(benchmark, case, opt, one_run)
        num_failed += len(failed)
        table = table_of(case, runs, failed)
        machines = [run["machine"] for of_variant in runs.values() for run in of_variant]
        print(f"\n{case.title}\n\n{table}\n\n{'; '.join(dict.fromkeys(machines))}\n", flush=True)
        told += [line for line in table.splitlines() if "**missed**" in line]
        if opt.write and not failed:
            write_section(f"{benchmark.name} {case.name}", section_of(case, table, machines, command_line()))
    print("\n".join([f"{len(told)} marks missed, in {time.monotonic() - began:,.0f} s", *told]), flush=True)
    sys.exit(1 if num_failed else 0)


def main(benchmark: Benchmark) -> None:
    """Run a benchmark from the command line."""
    run_main(lambda: run_benchmark(benchmark))
