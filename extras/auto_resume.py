"""Find the run that --resume auto goes on with, so that a job can be started again by the same command."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.checkpoints.checkpointer import ENDED, Checkpointer, read_record
from engine.checkpoints.file import options_of
from engine.checkpoints.find import find_checkpoint, run_name
from engine.options.files import read_options
from engine.options.foreign import differ
from engine.options.parser import NOT_SAVED, OptionParser, as_flags, file_path
from options import MAY_CHANGE, with_new_names
from utils.errors import UserError

# Options that a run finds by itself when they are not given.
FOUND = ("seed", "n_channels", "n_classes", "class_names", "input_mean", "input_std", "mask_values", "columns")


def find_automatically(parser: OptionParser, argv: Sequence[str] | None, notes: list[str]) -> str | None:
    """Return the run of --resume auto: the newest unfinished one of this project with these options; or None."""
    now = vars(parser.resolve(argv))
    for path, options in unfinished_runs(now["output_dir"], now["proj_name"]):
        saved = with_new_names(options)
        fixed = parser.asked & saved.keys() - set(MAY_CHANGE)
        if others := [name for name in sorted(fixed) if differ(name, now[name], saved[name])]:
            notes.append(f"--resume auto: passes over {path}, which has another --{' --'.join(others)}.")
            continue
        notes.append(f"--resume auto: goes on with {path}.")
        if taken := not_asked(parser, now, saved):
            notes.append(f"--resume auto: that run has options that this command does not name: {taken}")
        return str(path)
    where = f"of {now['proj_name']} in {now['output_dir']}"
    notes.append(f"--resume auto: no unfinished run {where}; a new one begins.")
    return None


def not_asked(parser: OptionParser, now: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    """Return the options that a run brings along, as flags: the command does not give them, and would be without them.

    Those that every run finds for itself are left out, the seed and what the data decides; so are paths.

    Args:
        parser: has resolved the command.
        now: the options of the command.
        saved: those of the run.
    """
    flags = []
    for name, value in saved.items():
        is_found = name in FOUND and not now.get(name)
        is_silent = is_found or name not in parser.known or name in (*NOT_SAVED, *parser.asked)
        if is_silent or parser.known[name].type is file_path or not differ(name, now[name], value):
            continue
        flags += as_flags(name, value)
    return shlex.join(flags)


def unfinished_runs(output_dir: str | Path, proj_name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a project's runs that have not ended and have a checkpoint, newest first, with their options.

    Args:
        output_dir: the parent of the runs.
        proj_name: the project; the directory may hold runs of others.

    Raises:
        UserError: a directory has checkpoints, but nothing that says of which run.
    """
    runs: dict[str, Path] = {}
    for path in Path(output_dir).glob("*/"):
        if not os.access(path, os.R_OK | os.X_OK):  # another user's
            continue
        try:
            name = run_name(path)
        except OSError:  # closed to this user in another way, or just removed
            continue
        project, _, timestamp = (name or "").rpartition("_")
        if project == proj_name and (name not in runs or path.name == timestamp):  # a copy has another directory name
            runs[name] = path
        elif name is None and path.name.isdigit() and Checkpointer.candidates(path):
            raise UserError(f"{path} has checkpoints, but not the files that say of which run: move it away.")
    for name in sorted(runs, key=lambda name: int(name.rpartition("_")[2]), reverse=True):
        path = runs[name]
        has_ended = read_record(path / ENDED)  # if damaged, the run is resumed, and ends at once if it had ended
        if not has_ended and Checkpointer.candidates(path):
            config = path / f"config_{name}.json"
            if config.exists():
                options = read_options(config)
            else:
                checkpoint, state = find_checkpoint(path, warn=lambda line: None)
                options = options_of(state, checkpoint)
            yield path, options
