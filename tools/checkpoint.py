"""Look at checkpoints: digests, contents, integrity.

    python -m tools.checkpoint hash|show|verify FILE...
    python -m tools.checkpoint merge FILE OUT
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engine.checkpoints.file import load_checkpoint, save_checkpoint, verify
from engine.options.parser import OptionParser, one_of, printable, run_main
from engine.registry import load
from tools.digest import digests, leaves
from utils.errors import UserError


def describe(state: dict[str, Any]) -> str:
    """Describe the contents of a checkpoint, in lines of at most 80 letters where words allow it."""
    options, score = state.get("options", {}), state.get("score")
    rows = [("holds", ", ".join(state))]
    if "progress" in state:
        epoch, update, sample = (f"{state['progress'][name]:,}" for name in ("epoch", "update", "sample"))
        rows.append(("position", f"completed: {epoch} epochs, {update} updates, {sample} samples of the next epoch"))
    for name, weights in state.get("networks", {}).items():
        tensors = [value for _, value in leaves(weights) if torch.is_tensor(value)]
        count = sum(tensor.numel() for tensor in tensors)
        kind = options.get("model_type", "of unknown type")
        rows.append(("network", f"{name} ({kind}): {count:,} numbers in {len(tensors):,} tensors, buffers included"))
    if "averaging" in state:
        kinds = {"ema": f"--ema {options.get('ema')}", "swa_start": "--swa_start"}
        kind = next((text for name, text in kinds.items() if options.get(name) is not None), "of the optimizer")
        rows.append(("average", f"of the weights, {kind}, over {state['averaging']['num_averaged']:,}"))
    for name, optimizer in state.get("optimizers", {}).items():
        rates = ", ".join(f"{group['lr']:g}" for group in optimizer["param_groups"])
        count = sum(len(group["params"]) for group in optimizer["param_groups"])
        kind = options.get("optim", "of unknown type")
        rows.append(("optimizer", f"{name} ({kind}): learning rate {rates}, {count:,} parameter tensors"))
    if score:
        monitor = options.get("monitor")
        results = score["results"]
        shown = {monitor: results[monitor]} if monitor in results else results
        text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        rows.append(("score", f"{text} on {score['num_samples']:,} samples, after update {score['update']:,}"))
    if "shards" in state:
        files, directory = state["shards"]["files"].values(), state["shards"]["directory"]
        num_bytes = sum(size for size, _ in files)
        rows.append(("shards", f"shards/{directory}, {num_bytes:,} bytes in {len(files):,} files"))
    rows.append(("options", ", ".join(f"{name}={value}" for name, value in options.items()) or "none"))
    return "\n".join(
        textwrap.fill(
            printable(text),
            width=80,
            initial_indent=f"  {label:<11}",
            subsequent_indent=" " * 13,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in rows
    )


def print_hash(path: str) -> None:
    """Print the digest of each part."""
    try:
        parts = digests(load_checkpoint(path))
    except (TypeError, AssertionError) as error:
        raise UserError(f"{path} does not have the contents of a checkpoint: {error}") from None
    print(printable(path))
    for name, text in parts.items():
        print(f"  {printable(name):<11} {text}")


def print_content(path: str) -> None:
    """Print a description of the contents."""
    state = load_checkpoint(path, tensors_of=())
    if "shards" in state:
        state["networks"] = load_checkpoint(path, tensors_of=("networks",))["networks"]
    try:
        text = describe(state)
    except (TypeError, ValueError, LookupError, AttributeError):
        raise UserError(f"{path} does not have the contents of a checkpoint: {', '.join(map(str, state))}") from None
    print(f"{printable(path)}, {Path(path).stat().st_size:,} bytes\n{text}")


def print_integrity(path: str) -> None:
    """Print that a file is intact; raise DamagedError when it is not."""
    verify(path)
    print(f"{printable(path)}: good")


def merge(path: str, target: str) -> None:
    """Write a checkpoint whose tensors are in shards as one file."""
    state = load_checkpoint(path, tensors_of=())
    if "shards" not in state:
        raise UserError(f"{path} has its tensors in itself: there is nothing to merge.")
    if Path(target).exists():
        raise UserError(f"{target} exists already: give another name for the merged file.")
    save_checkpoint(load_checkpoint(path), target)
    print(f"{printable(target)}: {Path(target).stat().st_size:,} bytes")


COMMANDS = {"hash": print_hash, "show": print_content, "verify": print_integrity}


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(
        prog="python -m tools.checkpoint",
        description="hash: the SHA-256 of each part, and of all that decides how training continues (run). "
        "show: the contents of a file. verify: whether a file is intact. "
        "merge: write a distributed checkpoint (--checkpoint_format sharded) as one file. "
        "Exit status: 0 all is well, 2 a file cannot be read or holds no run, 3 one is damaged.",
    )
    parser.add_argument("command", type=one_of((*COMMANDS, "merge")), metavar="hash|show|verify|merge")
    what = "a checkpoint, the directory of a run, or latest; for merge a checkpoint and a new name"
    parser.add_argument("files", nargs="+", metavar="FILE", help=what)
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv:
        parser.exit(2, parser.format_usage())
    opt = parser.parse_args(argv)
    if opt.command == "merge":
        if len(opt.files) != 2:
            parser.error(f"merge needs two names: a checkpoint and the file to write; {len(opt.files)} given.")
        merge(*opt.files)
        return
    status = 0
    for name in opt.files:
        try:
            path = load("extras.named_run:checkpoint_of", "files")(name, "./Results/")
            COMMANDS[opt.command](str(path))
        except UserError as error:  # go on with the other files
            print(f"{parser.prog}: error: {printable(str(error))}", file=sys.stderr)
            status = max(status, error.status)
    sys.exit(status)


if __name__ == "__main__":
    run_main(main)
