"""The directory of one run: what it holds besides checkpoints and curves is written here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.files import write_json
from utils.func import count_parameters, layer_table
from utils.lock import DirectoryLock
from utils.logger import build_logger
from utils.provenance import command_line, write_provenance
from utils.timestamp import make_timestamped_dir

ENDED = "finished.json"  # is there when a run has come to its end, and tells where it stood


class RunDir:
    """A new directory ``output_dir/TIMESTAMP``, or that of the run which is resumed; no other process can have it too.

    Args:
        output_dir: the parent of a new one.
        proj_name: the first part of the files' names.
        resume: a checkpoint. When the directory it stands in is a run's, the run goes on there.

    Raises:
        UserError: when another process is training in the directory.

    Attributes:
        path: the directory.
        logger: writes to the terminal and to the run's log.
    """

    def __init__(self, output_dir: str | Path, proj_name: str, resume: str | None = None):
        if resume and is_run_dir(Path(resume).parent):
            self.path = Path(resume).parent
        else:
            self.path, _ = make_timestamped_dir(output_dir)
        self.lock = DirectoryLock(self.path)
        self.end_path = self.path / ENDED
        self.end_path.unlink(missing_ok=True)  # a run that is resumed has not ended
        self.name = f"{proj_name}_{self.path.name}"
        self.logger = build_logger(proj_name, self.path / f"{self.name}_log.txt")

    def end(self, progress: Mapping[str, int]) -> None:
        """Note that nothing is left to do, and where the run stands."""
        write_json(self.end_path, progress)

    def record(
        self,
        options: Mapping[str, Any],
        devices: list[torch.device],
        networks: Mapping[str, nn.Module],
        parts: Mapping[str, list[str]],
        fingerprints: Mapping[str, str],
    ) -> None:
        """Save the options, the split and the provenance, and log what a reader of the log wants to know first.

        Args:
            options: the resolved options.
            devices: where the run computes.
            networks: the networks by name.
            parts: the names of the samples of each part of the data.
            fingerprints: a digest of each part of the data.
        """
        log = self.logger.info
        log(f"Run directory: {self.path}")
        write_json(self.path / f"config_{self.name}.json", options)
        write_json(self.path / "split.json", parts, indent=None)
        if not (self.path / "provenance.json").exists():  # a resumed run keeps that of its beginning
            write_provenance(self.path / "provenance.json", devices, fingerprints)
        log(f"Command: {command_line()}")
        log("Options: " + ", ".join(f"{name}={value}" for name, value in options.items() if value not in (None, "")))
        log("Data: " + ", ".join(f"{len(names):,} {part}" for part, names in parts.items()))
        for name, network in networks.items():
            total, trainable = count_parameters(network)
            log(f"Network {name!r}: {total:,} parameters, {trainable:,} trainable\n{network}\n{layer_table(network)}")


def is_run_dir(path: Path) -> bool:
    return any(path.glob("config_*.json"))


def find_unfinished(output_dir: str | Path, proj_name: str) -> Path | None:
    """Return the newest run of a project that has not ended and has a checkpoint, or None.

    Args:
        output_dir: the parent of the runs.
        proj_name: the project; runs of others in the same directory are passed over.
    """
    runs = [path for path in Path(output_dir).glob("*/") if path.name.isdigit()]
    for path in sorted(runs, key=lambda path: int(path.name), reverse=True):
        config = path / f"config_{proj_name}_{path.name}.json"
        if config.exists() and not (path / ENDED).exists() and any(path.glob("*_ckpt.pth")):
            return path
    return None
