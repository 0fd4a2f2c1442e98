"""Pack the source of a project: the files that git tracks, as they are on the disk, and new ones."""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from engine.runs.provenance import loaded_files
from utils.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
DATA = ("Results", "Dataset", "test_viz")  # directories of the project without code
MAX_FILE, MAX_ALL = 2**20, 2**25  # bytes
DIFF = "uncommitted.diff"  # in the archive: the difference to the commit in provenance.json


def copy_source(
    target: str | Path, root: str | Path = ROOT, max_file: int = MAX_FILE, max_all: int = MAX_ALL
) -> tuple[int, list[str]]:
    """Write a .tar.gz of the source below `root`: the files that git tracks, new .py files, and a diff to the commit.

    Without git, or outside a repository, it packs the .py files. It never takes files from `DATA`, through links, or
    beyond the limits. Files that this process has loaded from elsewhere, such as a task's, come in a directory
    `outside`.

    Args:
        target: the archive.
        root: of the project.
        max_file: largest size of a file in bytes; a larger one is hardly code.
        max_all: bytes of all files together.

    Returns:
        The number of files, and warnings about missing ones.

    Raises:
        UserError: the archive cannot be written.
    """
    root = Path(root)
    warnings = []
    tracked = ask_git(root, "ls-files", "-z")
    if tracked is None:
        warnings.append("Not under git: the copy of the code has the .py files alone, and no diff.")
        names, diff = sorted(python_files(root)), b""
    else:
        new = ask_git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py") or b""
        names = sorted({os.fsdecode(name) for name in (tracked + new).split(b"\0") if name})
        diff = ask_git(root, "diff", "HEAD", "--", ".") or b""
    names += [str(path) for path in loaded_files() if not path.is_relative_to(root.resolve())]
    buffer = io.BytesIO()
    count = 0
    left = max_all
    left_out = []
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in names:
            path = root / name  # that of a file from outside is absolute, and stays
            if name.split("/")[0] in DATA or path.is_symlink() or not path.is_file():  # deleted, but not in git
                continue
            if (size := path.stat().st_size) > min(max_file, left):
                left_out.append(name)
                continue
            stored = f"outside{name}" if name.startswith("/") else name
            archive.add(path, stored, recursive=False, filter=without_owner)
            count += 1
            left -= size
        if diff and len(diff) <= max_file:
            entry = tarfile.TarInfo(DIFF)
            entry.size = len(diff)
            archive.addfile(entry, io.BytesIO(diff))
        elif diff:
            left_out.append(DIFF)
    if left_out:
        shown = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        warnings.append(f"The copy of the code is without {len(left_out)} files beyond its bounds: {shown}")
    write_atomically(Path(target), buffer.getvalue())
    return count, warnings


def ask_git(root: Path, *arguments: str) -> bytes | None:
    """Return the output of a git command; None without git, a repository, or a commit."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def python_files(root: Path) -> Iterator[str]:
    """Yield the .py files below a directory, without hidden directories, environments and `DATA`."""
    for directory, names, files in os.walk(root):
        is_code = [n for n in names if n[0] != "." and n != "__pycache__" and n not in DATA]
        names[:] = [n for n in is_code if not (Path(directory) / n / "pyvenv.cfg").exists()]
        yield from (str((Path(directory) / n).relative_to(root)) for n in files if n.endswith(".py"))


def without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Remove the names of user and group from an entry."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
