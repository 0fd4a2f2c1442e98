"""The directory of one run, with the files in it besides checkpoints and curves."""

import contextlib
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.checkpoints.checkpointer import ENDED, PROVENANCE, read_record
from engine.devices.process_group import Distributed
from engine.registry import EVALUATORS, load
from engine.runs.lock import DirectoryLock
from engine.runs.provenance import command_line, provenance
from utils.files import write_atomically, write_json
from utils.logger import build_logger, build_stderr_logger, open_own
from utils.model_summary import count_parameters, layer_table
from utils.timestamp import make_timestamped_dir


class RunDir:
    """A new directory ``output_dir/TIMESTAMP``, or that of the resumed run, locked against other processes.

    Args:
        output_dir: the parent of a new directory.
        proj_name: the first part of a new run's name.
        resume: a checkpoint. If its directory is a run's, the run goes on there.
        distributed: of several processes, process 0 makes the directory and writes; the others warn on stderr only.

    Raises:
        UserError: another process is training in the directory.

    Attributes:
        path: the directory.
        name: of the run, PROJECT_TIMESTAMP. It is in its files' names or in them; see `run_name`.
        logger: writes to the terminal and to the run's log.
    """

    def __init__(
        self, output_dir: str | Path, proj_name: str, resume: str | None = None, distributed: Distributed | None = None
    ):
        distributed = distributed or Distributed()
        self.is_main = distributed.is_main
        place = None
        if self.is_main:
            name = None
            if resume:
                from engine.checkpoints.find import run_name  # here, as a new run has no name yet

                path = Path(resume).parent
                name = run_name(path)
            if name is None:
                path = make_timestamped_dir(output_dir)
                name = f"{proj_name}_{path.name}"
            place = (path, name)
        self.path, self.name = distributed.broadcast(place)
        self.log_path = self.path / f"{self.name}_log.txt"
        self.discarded_log_path = self.path.parent / f"{self.name}_failed_log.txt"
        self.lock: contextlib.AbstractContextManager = contextlib.nullcontext()
        if self.is_main:
            self.lock = DirectoryLock(self.path)
            self.logger = build_logger(proj_name, self.log_path)
        else:
            self.logger = build_stderr_logger(proj_name, f"[process {distributed.rank}] ")

    def note(self, text: str, is_warning: bool = False) -> None:
        """Log a message once for all processes."""
        if self.is_main:
            self.logger.log(logging.WARNING if is_warning else logging.INFO, text)

    def log_quietly(self, text: str) -> None:
        """Append to the log file alone; a full disk must not hide the error that is being reported."""
        if self.is_main:
            with contextlib.suppress(OSError), open_own(self.log_path) as file:
                file.write(text)

    def strike_out(self, epoch: int) -> None:
        """Mark the log's lines of epochs after the one that a resumed run begins with: they will be there again."""
        if self.is_main and self.log_path.is_file() and not self.log_path.is_symlink():
            text = self.log_path.read_bytes()
            lines = re.compile(rb"^(.{23} INFO )(epoch (\d+)/\d+: )", re.MULTILINE)
            marked = lines.sub(lambda m: m[1] + b"(made again) " + m[2] if int(m[3]) > epoch else m[0], text)
            if marked != text:
                write_atomically(self.log_path, marked)
                for handler in self.logger.handlers:
                    handler.close()  # it opens the new file with its next line

    def end(self, progress: Mapping[str, int]) -> None:
        """Write the position at which the run has ended."""
        if self.is_main:
            write_json(self.path / ENDED, {"run_name": self.name, **progress})

    def discard(self) -> None:
        """Remove the directory of a run that failed before its first update; its log stays beside it."""
        if self.is_main:
            for handler in self.logger.handlers:
                handler.close()
            with contextlib.suppress(OSError):
                self.log_path.replace(self.discarded_log_path)
            shutil.rmtree(self.path, ignore_errors=True)

    # ---- what a run is made from -------------------------------------------------------------------------------------
    def record(
        self,
        options: Mapping[str, Any],
        evaluator: str,
        devices: list[torch.device],
        networks: Mapping[str, nn.Module],
        names_by_part: Mapping[str, Sequence[Any]],
        fingerprints: Mapping[str, str],
    ) -> None:
        """Save the options, the split and the provenance, and log them with the networks.

        Args:
            options: the resolved options.
            evaluator: the name of its class, see `name_of_class`.
            devices: of the run.
            networks: by name.
            names_by_part: of the samples of each part of the data; a range where they have none.
            fingerprints: a digest of each part of the data.
        """
        if not self.is_main:
            return
        write_json(self.path / f"config_{self.name}.json", options)
        parts = {part: len(names) if isinstance(names, range) else list(names) for part, names in names_by_part.items()}
        write_json(self.path / "split.json", parts, indent=None)
        if not (self.path / PROVENANCE).exists():  # a resumed run keeps its first one
            write_json(self.path / PROVENANCE, {"run_name": self.name, **provenance(devices, fingerprints)})
        else:
            self.warn_of_changes(fingerprints)
        # Code, arguments and addresses: what a checkpoint may name again only if a person has named it.
        of_person = {name: value for name, value in options.items() if name == "import" or ":" in str(value)}
        of_person |= {} if evaluator in EVALUATORS else {"evaluator": evaluator}
        if any(of_person.values()):
            load("extras.own_runs:sign", "resume")(self.path, of_person)
        log = self.logger.info
        log(f"Run directory: {self.path}")
        log(f"Command: {command_line()}")
        not_empty = {name: value for name, value in options.items() if value not in (None, "", {})}
        log("Options: " + ", ".join(f"{name}={value}" for name, value in not_empty.items()))
        log("Data: " + ", ".join(f"{len(names):,} {part}" for part, names in names_by_part.items()))
        for name, network in networks.items():
            total, trainable = count_parameters(network)
            log(f"Network {name!r}: {total:,} parameters, {trainable:,} trainable\n{network}\n{layer_table(network)}")

    def warn_of_changes(self, fingerprints: Mapping[str, str]) -> None:
        """Log a warning when the data of a resumed run has other fingerprints than in the record of its beginning."""
        first = read_record(self.path / PROVENANCE).get("data")
        changed = [part for part in first if fingerprints.get(part) != first[part]] if isinstance(first, dict) else ()
        if changed:
            self.logger.warning(f"The data is not what this run began with: {', '.join(changed)} changed.")
