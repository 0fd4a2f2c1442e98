"""Distributed checkpoints: all processes write together, each its part of the tensors, while training continues.

    RUN/PREFIX_last_ckpt.pth        everything but the tensors of `PARTS`; its entry "shards" names the files below
    RUN/shards/UPDATE/*.distcp      the tensors, written by torch.distributed.checkpoint (DCP)
    RUN/shards/UPDATE/.metadata     DCP's index of them

DCP plans which process writes which part of which tensor, copies them so that training can go on, and writes in a
thread. When it reads, it finds the pieces that a process needs, however many processes wrote them
(https://docs.pytorch.org/docs/stable/distributed.checkpoint.html). Networks that FSDP shards hold `DTensor`s
(https://docs.pytorch.org/docs/stable/distributed.tensor.html), whose shape is that of the whole tensor.

The core imports this file only where there are such checkpoints or tensors: DCP takes a while to import.
"""

import contextlib
import copy
import hashlib
import pickle
import re
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.tensor import DTensor, distribute_tensor

from engine.checkpoints.checkpointer import Checkpointer, first_free
from engine.checkpoints.file import PARTS, SHARDS, read_position
from engine.checkpoints.state import map_leaves
from engine.devices.process_group import Distributed
from utils.errors import DamagedError, UserError
from utils.files import fsync_directory

INDEX = {  # all that an index of tensors consists of
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "pathlib": ("PosixPath", "WindowsPath"),
    "torch": ("Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))),
}  # fmt: skip

warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


# ---- write -----------------------------------------------------------------------------------------------------------
class Writer(dcp.FileSystemWriter):
    """Writes the files of one checkpoint.

    Args:
        directory: a new one, on a file system that all processes see.
        commit: called in the thread of process 0 once the files of all processes are on the disk. An exception that it
            raises is raised in all processes.
    """

    def __init__(self, directory: Path, commit: Callable[[], None]):
        super().__init__(directory)
        self.commit = commit

    def finish(self, metadata: Metadata, results: list) -> None:
        super().finish(metadata, results)
        for directory in (Path(self.path), Path(self.path).parent):
            fsync_directory(directory)
        self.commit()


class DistributedCheckpointer(Checkpointer):
    """Writes distributed checkpoints.

    `save` copies the tensors and returns; a thread writes them. Process 0 writes the file that names them last, so a
    checkpoint is there only when it is whole, and until then the one before it is.

    Args:
        distributed: the processes.
        run_dir, prefix, every, keep: see `Checkpointer`.

    Attributes:
        longest_save: seconds from `save` until everything is on the disk.
        seconds: during which training stood still.
    """

    in_shards = True

    def __init__(self, distributed: Distributed, *args: Any, **settings: Any):
        super().__init__(*args, writes=distributed.is_main, **settings)
        self.distributed = distributed
        self._group: Any = None  # apart from the group of the training, because the thread talks at the same time
        self._writing: Future | None = None

    def save(self, state: dict[str, Any], *kinds: str) -> float:
        """Begin to write the state as checkpoints of these kinds, and return `longest_save`; all processes call it."""
        self.finish()
        started = time.perf_counter()
        update = state["progress"]["update"]
        directory = self.distributed.broadcast(first_free(self.run_dir / SHARDS / str(update), "-"))
        tensors, rest = take_tensors(state)
        rest = copy.deepcopy(rest)  # because training continues and changes it

        def commit() -> None:
            files = {path.name: [path.stat().st_size, file_digest(path)] for path in sorted(directory.iterdir())}
            self._write({**rest, "shards": {"directory": directory.name, "files": files}}, kinds)
            self.longest_save = max(self.longest_save, time.perf_counter() - started)

        if self._group is None and self.distributed.size > 1:
            limit = timedelta(seconds=self.distributed.timeout)
            self._group = dist.new_group(backend="gloo", timeout=limit)
        self._writing = dcp.async_save(
            tensors,
            storage_writer=Writer(directory, commit),
            # Process 0 writes the common tensors: the running statistics of batch normalization differ.
            planner=dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True),
            process_group=self._group,
            no_dist=self._group is None,
        )
        return self.longest_save

    def finish(self) -> None:
        """Wait until the checkpoint that was begun is on the disk; all processes call it.

        Raises:
            UserError: in all processes, when one of them could not write. The checkpoint before it is intact.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except CheckpointException as error:
            rank, (cause, _) = min(error.failures.items())
            if isinstance(cause, UserError):
                raise cause from None
            text = getattr(cause, "strerror", None) or one_line(cause)
            raise UserError(f"Process {rank} cannot write its shard of the checkpoint: {text}.") from None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def take_tensors(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of `PARTS` by their places, and the state with None in those places.

    A tensor without a dimension, such as an optimizer's count of steps, stays: it is smaller than an entry of an index.
    """
    tensors: dict[str, Tensor] = {}

    def take(place: str, value: Any) -> Any:
        if not torch.is_tensor(value) or not (value.ndim or isinstance(value, DTensor)):
            return value
        tensors[place] = value
        return None

    rest = {name: map_leaves(take, part, f"[{name!r}]") if name in PARTS else part for name, part in state.items()}
    return tensors, rest


def sweep_shards(run_dir: Path) -> None:
    """Remove the shards of updates that no checkpoint of a run is from, renamed checkpoints included.

    Links are not followed, and other directories than those of `DistributedCheckpointer` stay.
    """
    shards = run_dir / SHARDS
    if shards.is_symlink():
        return
    with contextlib.suppress(UserError):  # a file that cannot be read may need any of them
        positions = [read_position(path) for path in run_dir.glob("*_ckpt.pth*")]
        needed = {str(position[1]) for position in positions if position}
        for path in shards.iterdir():
            update = re.fullmatch(r"(\d+)(-\d+)?", path.name)
            if update and update[1] not in needed and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)


# ---- read ------------------------------------------------------------------------------------------------------------
class IndexUnpickler(pickle.Unpickler):
    """Opens DCP's index, a pickle, as data only."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in INDEX.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of an index of tensors")
        return super().find_class(module, name)


class Reader(dcp.FileSystemReader):
    """Reads tensors, and nothing else, from the files of one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            return IndexUnpickler(file).load()


def files_of(state: Mapping[str, Any], path: str | Path) -> dict[Path, tuple[int, str]]:
    """Return the files that a checkpoint names, each with its size in bytes and its SHA-256; `path` is its own file.

    Raises:
        UserError: when the entry "shards" is not one that this template writes.
    """
    try:
        record = state["shards"]
        directory = Path(path).parent / SHARDS / record["directory"]
        return {directory / name: (int(size), str(digest)) for name, (size, digest) in record["files"].items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} does not name the files of its tensors as this template does.") from None


def check_shards(state: Mapping[str, Any], path: str | Path, deep: bool = True) -> None:
    """Raise DamagedError when a file is missing, or its size or (`deep`) its content is not as it was written."""
    for file, (size, digest) in files_of(state, path).items():
        is_whole = file.is_file() and file.stat().st_size == size
        if not is_whole or (deep and file_digest(file) != digest):
            fault = "does not match its SHA-256" if is_whole else "is missing or cut off"
            raise DamagedError(f"The checkpoint {path} is damaged: its shard {file} {fault}.")


def read_shards(
    state: Mapping[str, Any],
    path: str | Path,
    parts: Collection[str] = PARTS,
    models: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Return the state with the tensors of these parts; each process reads the pieces that it needs.

    Args:
        state: the content of a distributed checkpoint.
        path: its file.
        parts: of the state.
        models: tensors by place. A tensor of the same shape is laid out and sharded like its model; the others are
            whole, on the CPU.

    Raises:
        DamagedError: when a file is not intact.
    """
    check_shards(state, path)
    tensors = {}
    try:
        reader = Reader(next(iter(files_of(state, path))).parent)
        for place, stored in reader.read_metadata().state_dict_metadata.items():
            if place.startswith(tuple(f"[{part!r}]" for part in parts)):
                model = (models or {}).get(place)
                if model is None or model.shape != stored.size:
                    model = torch.zeros(stored.size)
                tensors[place] = torch.zeros_like(model, dtype=stored.properties.dtype, requires_grad=False)
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    except (Exception, CheckpointException) as error:  # what is damaged may lead DCP into an exception of any type
        cause = error.failures[0][0] if isinstance(error, CheckpointException) else error
        raise DamagedError(f"The checkpoint {path} is damaged: its shards cannot be read: {one_line(cause)}") from None
    put = lambda place, value: tensors.get(place, value)  # noqa: E731
    return {name: map_leaves(put, part, f"[{name!r}]") for name, part in state.items() if name != "shards"}


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# ---- whole and sharded -----------------------------------------------------------------------------------------------
def gather_state(state: Any, keep: bool) -> Any:
    """Return the state with every `DTensor` whole, on the CPU; all processes call it.

    Args:
        state: dictionaries, lists and tuples in one another.
        keep: whether this process wants the tensors; otherwise it only helps the others, and has None in their place.
    """

    def gather(place: str, value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if keep else None

    return map_leaves(gather, state)


def shard_state(state: dict[str, Any], path: str | Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state in which tensors are sharded between the processes like the objects that they belong to.

    Args:
        state: the content of a checkpoint, with its tensors or with an entry "shards".
        path: its file.
        parts: a run's objects with a state: "networks" and "optimizers" by name.
    """
    models = find_models(parts, state)
    if "shards" in state:
        return read_shards(state, path, PARTS, models)

    def shard(place: str, value: Any) -> Any:
        model = models.get(place)
        if not isinstance(model, DTensor) or not torch.is_tensor(value) or value.shape != model.shape:
            return value
        return distribute_tensor(value.to(model.device), model.device_mesh, model.placements, src_data_rank=None)

    return {name: map_leaves(shard, part, f"[{name!r}]") if name in PARTS else part for name, part in state.items()}


def find_models(parts: Mapping[str, Any], state: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a run by the places, in a state, of the tensors that are sharded like them.

    An average is sharded like its network. An optimizer's state for a parameter is if it has the parameter's shape;
    optimizers number their parameters in the order of their groups.
    """
    models = {}
    for name, network in parts["networks"].items():
        for key, tensor in network.state_dict().items():
            models[f"['networks'][{name!r}][{key!r}]"] = tensor
            models[f"['averaging']['networks'][{name!r}][{key!r}]"] = tensor
    for name, optimizer in parts["optimizers"].items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        with contextlib.suppress(LookupError, TypeError, AttributeError):  # `set_state` says why it does not fit
            for number, entry in state["optimizers"][name]["state"].items():
                for key in entry:
                    models[f"['optimizers'][{name!r}]['state'][{number!r}][{key!r}]"] = parameters[number]
    return models
