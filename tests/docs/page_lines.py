"""Read a page of tables with the commands of their rows below, and run these as a user does, without a start of Python.

A command of Python runs in a process that is forked off one which has imported everything (see fork_server.py).
Others are run by a shell.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests import fork_server

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT = 120  # seconds that a command may take
SHELL = set("|<>;&$*")  # a command with one of these letters, outside quotes, needs a shell
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
ROW = re.compile(r"\| *([A-Z]\d+) *\|(.*)\|")
LABEL = re.compile(r"# ([A-Z]\d+)(?:, ends with status (\d+))?")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
BLOCK = re.compile(r"```(?:python|yaml|json)\n((?:#|//) (\S+)[^\n]*\n.*?)```", re.DOTALL)


@dataclass
class Line:
    """A command, and the status that it is said to end with."""

    command: str
    status: int = 0


@dataclass
class Row:
    """A row of a table: its name, what there is, what is here, and its commands."""

    name: str
    there: str
    here: str
    lines: list[Line] = field(default_factory=list)


@dataclass
class Done:
    """How a command ended, and what it printed."""

    status: int | None  # None for one that did not end in time
    stdout: str
    stderr: str


# ---- reading ---------------------------------------------------------------------------------------------------------
def lines_of(text: str) -> dict[str, list[Line]]:
    """The commands of the ```bash blocks by the row that the comment before them names; "" for those before any.

    >>> lines_of("```bash\\n# A1\\npython a.py\\n# A1, ends with status 2\\npython b.py\\n```")["A1"]
    [Line(command='python a.py', status=0), Line(command='python b.py', status=2)]
    """
    found: dict[str, list[Line]] = {}
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        name, status = "", 0
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("#"):
                match = LABEL.fullmatch(line.strip())
                name, status = (match[1], int(match[2] or 0)) if match else (line, 0)
            elif line.strip():
                found.setdefault(name, []).append(Line(line.strip(), status))
    return found


def rows_of(text: str) -> list[Row]:
    """The rows of a page's tables, those whose first cell is a letter and a number, with their commands."""
    rows, lines = [], lines_of(text)
    for line in text.splitlines():
        if match := ROW.fullmatch(line.strip()):
            there, here = (cell.strip() for cell in re.split(r"(?<!\\)\|", match[2]))
            rows.append(Row(match[1], there, here, lines.get(match[1], [])))
    return rows


def files_of(text: str) -> dict[str, str]:
    """The files that stand in the page: blocks whose first line is a comment with the name, by this name.

    >>> files_of("```python\\n# a.py: what it is\\nx = 1\\n```")
    {'a.py': '# a.py: what it is\\nx = 1\\n'}
    """
    return {name.rstrip(":"): content for content, name in BLOCK.findall(text)}


def faults_of(text: str, directory: Path) -> list[str]:
    """Return the faults of a page that show without running its commands.

    Args:
        text: of the page.
        directory: where it stands; links are relative to it.
    """
    rows, faults = rows_of(text), []
    files = files_of(text)
    for before, row in zip([None, *rows], rows, strict=False):
        follows = before and before.name[0] == row.name[0]
        if int(row.name[1:]) != (int(before.name[1:]) + 1 if follows else 1):
            faults.append(f"{row.name} does not follow {before.name if before else 'the start'}")
        if not row.there or not row.here:
            faults.append(f"{row.name} has an empty cell")
        if not row.lines and not LINK.search(row.here):
            faults.append(f"{row.name} has neither a line that runs nor a link")
    faults += [f"{name} has lines and no row" for name in lines_of(text) if name and name not in {r.name for r in rows}]
    for target in LINK.findall(text):
        if "://" not in target and not is_there(target, text, directory):
            faults.append(f"the link {target} leads nowhere")
    for name in files:
        users = [line.command for row in rows for line in row.lines] + [files[n] for n in files if n != name]
        if not any(name.removesuffix(".py") in user for user in users):
            faults.append(f"no line uses {name}")
    if len(files) != len(re.findall(r"```(?:python|yaml|json)\n", text)):
        faults.append("a block does not begin with the name of its file")
    return faults


def is_there(target: str, text: str, directory: Path) -> bool:
    """Whether a relative link of a page leads to a file, and to a heading of it."""
    path, _, anchor = target.partition("#")
    if path and not (directory / path).exists():
        return False
    return not anchor or anchor in anchors((directory / path).read_text(encoding="utf-8") if path else text)


def anchors(text: str) -> Iterator[str]:
    """Yield the anchors that GitHub makes of the headings of a page."""
    for heading in re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# ---- running ---------------------------------------------------------------------------------------------------------
def make_workplace(place: Path) -> Path:
    """Make a directory with links to what the project has, without what runs have left there."""
    place.mkdir()
    for path in ROOT.iterdir():
        if path.name[0] != "." and path.name not in ("Results", "Dataset", "test_viz", "tests"):
            (place / path.name).symlink_to(path)
    return place


def run_line(command: str, directory: Path, more: str = "") -> Done:
    """Run a command in a directory and return how it ended; TIMESTAMP stands for the newest directory at its place.

    Args:
        command: as the page has it.
        directory: with the files of the project, or links to them.
        more: flags to add.
    """
    command = f"{command} {more}".strip()
    for parent in re.findall(r"(\S*)/TIMESTAMP", command):
        newest = max((directory / parent).iterdir(), key=lambda path: path.stat().st_mtime_ns)
        command = command.replace(f"{parent}/TIMESTAMP", f"{parent}/{newest.name}").replace("TIMESTAMP", newest.name)
    words = shlex.split(command)
    bin_dir = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": bin_dir, "GLOO_SOCKET_IFNAME": "lo"}
    if words[0] == "torchrun":
        words[:1] = ["python", "-m", "torch.distributed.run"]
    if words[0] == "python" and not SHELL & set(QUOTED.sub("", command)):
        done = fork_server.run(words[1:], directory, environment, TIMEOUT)
    else:
        done = subprocess.run(
            ["bash", "-c", command], cwd=directory, env=environment, capture_output=True, text=True, timeout=TIMEOUT,
            check=False,
        )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)
