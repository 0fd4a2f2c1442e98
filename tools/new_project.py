"""Start a project of your own from this template.

    python -m tools.new_project ../my_project

It copies the files that git tracks, as they are on the disk, and initializes a repository: no results, no data, no
history.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from engine.options.parser import OptionParser, file_path, run_main
from tools.source_copy import DATA, ROOT, ask_git
from utils.errors import UserError


def new_project(target: str | Path, root: str | Path = ROOT) -> int:
    """Copy a template into a new directory, and return the number of files.

    Args:
        target: the new directory, outside of `root`; it may exist if it is empty.
        root: of the template, a git repository.

    Raises:
        UserError: `target` is not empty, is inside `root`, or cannot be written, or `root` is no repository. Nothing is
            left behind.
    """
    target = Path(target).absolute()
    root = Path(root)
    if target.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{target} is inside the template: name a directory outside of {root.resolve()}.")
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty directory: name a new one.")
    tracked = ask_git(root, "ls-files", "-z")
    if not tracked:
        raise UserError(f"{root.resolve()} is no git repository, so its files are not known: copy it by hand.")
    names = [os.fsdecode(name) for name in tracked.split(b"\0") if name]
    names = [name for name in names if name.split("/")[0] not in DATA and (root / name).is_file()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            copy = Path(scratch) / "copy"
            for name in names:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, copy / name, follow_symlinks=False)
            copy.rename(target)  # whole or not at all; also over an empty directory
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error.strerror}.") from None
    return len(names)


def begin_repository(directory: Path) -> bool:
    """Initialize a git repository without a commit; return whether that worked."""
    try:
        subprocess.run(["git", "-C", str(directory), "init", "--quiet"], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def main() -> None:
    parser = OptionParser(description=__doc__)
    parser.add_argument("target", type=file_path, metavar="DIR", help="the directory of the new project")
    target = Path(parser.parse_args().target)
    print(f"{new_project(target)} files in {target}")
    if begin_repository(target):
        print("It is a git repository without a commit. The first one: git add -A && git commit")
    print("Where to start: docs/own_task.md")


if __name__ == "__main__":
    run_main(main)
