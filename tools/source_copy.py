"""Pack a project's source: what git tracks, as it is on the disk, and what it does not track yet."""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from utils.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
DATA = ("Results", "Dataset", "test_viz")  # directories of the project with nothing in them that is code
MAX_FILE, MAX_ALL = 2**20, 2**25  # bytes
DIFF = "uncommitted.diff"  # in the archive: what differs from the commit that provenance.json names


def copy_source(
    target: str | Path, root: str | Path = ROOT, max_file: int = MAX_FILE, max_all: int = MAX_ALL
) -> tuple[int, list[str]]:
    """Write a .tar.gz of the source below `root`: the files that git tracks, new .py files, and a diff to the commit.

    Without git, or where `root` is no repository, these are the .py files. Nothing is taken from `DATA`, through
    links, or beyond the bounds.

    Args:
        target: the archive.
        root: of the project.
        max_file: bytes of a file that is still taken; a larger one is hardly code.
        max_all: bytes of all files together.

    Returns:
        The number of files, and what there is to say about what is missing.

    Raises:
        UserError: when the archive cannot be written.
    """
    root, warnings = Path(root), []
    tracked = ask_git(root, "ls-files", "-z")
    if tracked is None:
        warnings.append("Not under git: the copy of the code has the .py files alone, and no diff.")
        names, diff = sorted(python_files(root)), b""
    else:
        new = ask_git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py") or b""
        names = sorted({os.fsdecode(name) for name in (tracked + new).split(b"\0") if name})
        diff = ask_git(root, "diff", "HEAD", "--", ".") or b""
    buffer, count, left, left_out = io.BytesIO(), 0, max_all, []
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in names:
            path = root / name
            if name.split("/")[0] in DATA or path.is_symlink() or not path.is_file():  # deleted, but not in git
                continue
            if (size := path.stat().st_size) > min(max_file, left):
                left_out.append(name)
                continue
            archive.add(path, name, recursive=False, filter=without_owner)
            count, left = count + 1, left - size
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
    """What a git command prints; None where there is no git, no repository, or no commit yet."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def python_files(root: Path) -> Iterator[str]:
    """The .py files below a directory, without those of hidden directories, environments and `DATA`."""
    for directory, names, files in os.walk(root):
        is_code = [n for n in names if n[0] != "." and n != "__pycache__" and n not in DATA]
        names[:] = [n for n in is_code if not (Path(directory) / n / "pyvenv.cfg").exists()]
        yield from (str((Path(directory) / n).relative_to(root)) for n in files if n.endswith(".py"))


def without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
