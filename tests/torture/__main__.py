"""Run all that should break a training run, and write down the figures.

python -m tests.torture [--only NAME ...] [--quick] [--write]
"""

import argparse
import importlib
import os
import platform
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from tests.torture.harness import ROOT, Row, timed

DOCS = ROOT / "docs"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
HEADER = "| what was tried | tried | passed | seconds | date | command |\n|---|---|---|---|---|---|"
SCRIPTS = (
    "kills", "switched_off", "io_boundaries", "damage", "full_disk", "sigterm", "workers", "fuzz_options",
    "malicious_programs", "two_runs",
    "agreement", "exact_eval", "resizing", "restarts", "one_signal", "hangs", "sharded",
)  # fmt: skip


def machine() -> str:
    """The hardware and the versions, in one line."""
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text())
        name = found[1].strip() if found else name
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{name}, {os.cpu_count()} cores, no GPU used; {platform.system()}; {versions}"


def line_of(what: str, row: Row, command: str) -> str:
    """A line of the table."""
    note = row.note.replace("|", "/")
    result = f"{row.passed:,}" if row.is_good else f"**{row.passed:,}**"
    date = datetime.now(UTC).date().isoformat()
    return f"| **{what}.** {note} | {row.tried:,} | {result} | {row.seconds:,.0f} | {date} | `{command}` |"


def page_of(name: str) -> Path:
    """The page that shows the figures of a script, which may name it: PAGE, without ".md"."""
    return DOCS / f"{getattr(importlib.import_module(f'tests.torture.{name}'), 'PAGE', 'reliability')}.md"


def write_pages(lines: dict[str, str]) -> None:
    """Put lines, by the names of the scripts, into the tables of their pages."""
    for page in dict.fromkeys(map(page_of, lines)):
        write_page(page, {name: line for name, line in lines.items() if page_of(name) == page})


def write_page(page: Path, lines: dict[str, str]) -> None:
    """Put lines into the table of a page; the others, and all the text around it, stay."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    of_script = re.compile(r"`python -m tests\.torture\.(\w+)")
    kept = {found[1]: line for line in old.splitlines() if (found := of_script.search(line))}
    kept |= lines
    table = "\n".join([HEADER, *(kept[name] for name in SCRIPTS if name in kept)])
    page.write_text(f"{before}{BEGIN}\n{table}\n\nMeasured on: {machine()}.\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS, metavar="NAME", help=", ".join(SCRIPTS))
    parser.add_argument("--quick", action="store_true", help="a small part of each")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of what is drawn")
    parser.add_argument("--write", action="store_true", help="write the tables of the pages in docs/")
    opt = parser.parse_args()
    if opt.write and opt.quick:
        parser.error("--write is for the full counts, not for --quick.")
    lines, failed, began = {}, [], time.monotonic()
    print(f"{machine()}\n{'':20s} tried passed seconds", flush=True)
    for name in opt.only:
        script = importlib.import_module(f"tests.torture.{name}")
        count = script.QUICK if opt.quick else script.COUNT
        try:
            row = timed(script.run, count, opt.seed)
        except Exception as error:  # the others are tried all the same
            row = Row(failures=[f"{type(error).__name__}: {error}"])
        print(f"{name:20s} {row.tried:5,} {row.passed:6,} {row.seconds:7,.0f}", flush=True)
        for failure in row.failures:
            print(f"    {failure}", flush=True)
        failed += [] if row.is_good else [name]
        command = f"python -m tests.torture.{name} --count {count} --seed {opt.seed}"
        lines[name] = line_of(script.WHAT, row, command)
    if opt.write:
        write_pages(lines)
    print(f"{'All held' if not failed else 'FAILED: ' + ', '.join(failed)}, in {time.monotonic() - began:,.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
