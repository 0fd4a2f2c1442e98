"""The checkpoints that train_pl.py has Lightning write: their names, and how they become checkpoints of ours.

    python -m extras.lightning.checkpoint RUN/best.ckpt RUN/best.pth

A .ckpt of Lightning's has the state of the run in it as we save it, under the key `OURS`, beside what Lightning needs;
tensors that both have are in the file once. Lightning need not be installed to read it.
"""

from pathlib import Path

from engine.checkpoints.file import FORMAT, load_file, save_checkpoint
from engine.options.parser import OptionParser, file_path, run_main
from utils.errors import UserError

OURS = "plainloop"
BEST, LAST = "best", "last"  # NAME.ckpt and NAME-UPDATE.ckpt, in the directory of the run


def number_of(path: Path) -> int:
    """The update of a last-UPDATE.ckpt; -1 when its name tells none.

    >>> number_of(Path("last-120.ckpt")), number_of(Path("last-x.ckpt"))
    (120, -1)
    """
    number = path.stem.removeprefix(f"{LAST}-")
    return int(number) if number.isdecimal() else -1


def newest_of(run_dir: Path) -> Path | None:
    """The last-UPDATE.ckpt with the highest number; None without one."""
    found = [path for path in run_dir.glob(f"{LAST}-*.ckpt") if number_of(path) >= 0]
    return max(found, key=number_of, default=None)


def export(path: Path, target: Path) -> str:
    """Write what a .ckpt has of a run as a checkpoint of ours, for eval_*.py or to go on; return a line that says so.

    Args:
        path: of Lightning's, written by a run of train_pl.py.
        target: the checkpoint of ours; what was there is replaced.

    Raises:
        UserError: when it cannot be read, or is not of train_pl.py.
    """
    content = load_file(path)
    state = content.get(OURS) if isinstance(content, dict) else None
    if not isinstance(state, dict) or "networks" not in state:
        raise UserError(f"{path} is no checkpoint of a task that was trained by train_pl.py.")
    save_checkpoint({"format": FORMAT, **state}, target)
    return f"Saved: {target}, from {path.name}"


def export_run(run_dir: Path, prefix: str) -> list[str]:
    """Export the best and the newest of a run, to the names that ours have; return a line for each that is there.

    Args:
        run_dir: the directory of the run.
        prefix: the first part of the names of our checkpoints, usually the model type.
    """
    found = {BEST: run_dir / f"{BEST}.ckpt", LAST: newest_of(run_dir)}
    there = {kind: path for kind, path in found.items() if path and path.exists()}
    return [export(path, run_dir / f"{prefix}_{kind}_ckpt.pth") for kind, path in there.items()]


def main(argv: list[str] | None = None) -> None:
    parser = OptionParser(prog="python -m extras.lightning.checkpoint", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=file_path, metavar="FILE.ckpt", help="of a run of train_pl.py")
    parser.add_argument("target", type=file_path, nargs="?", metavar="FILE.pth", help="default: beside it")
    opt = parser.parse_args(argv)
    print(export(Path(opt.file), Path(opt.target or Path(opt.file).with_suffix(".pth"))))


if __name__ == "__main__":
    run_main(main)
