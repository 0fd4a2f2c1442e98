"""The files of shards, written and read through torch.distributed.checkpoint (DCP).

DCP plans who writes which part of which tensor, copies them to memory apart so that training can go on, and writes in a
thread (https://docs.pytorch.org/docs/stable/distributed.checkpoint.html). When it reads, it finds for each process the
pieces that its part of a tensor is made of, however many processes there were before. To be imported where it is used:
DCP takes a while to import.
"""

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import StorageReader, WriteResult

from engine.checkpoints.shard_record import Shards, Stored, file_digest
from engine.checkpoints.untrusted import open_as_data
from utils.errors import DamagedError, UserError
from utils.files import fsync_directory

warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


# ---- write -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Written(WriteResult):
    """What a process tells of a piece: also the size and the SHA-256 of the file that it is in."""

    file_size: int = 0
    sha256: str = ""


class ShardWriter(dcp.FileSystemWriter):
    """Writes the tensors of one checkpoint.

    Args:
        directory: a new one.
        commit: is called in process 0, in the thread that writes, once the files of all processes are on the disk. What
            it raises is raised in all processes.
    """

    def __init__(self, directory: Path, commit: Callable[[Shards], None]):
        super().__init__(directory)
        self.commit = commit

    def write_data(self, plan, planner) -> torch.futures.Future:
        """Write this process's file, if there is anything for it, and read it once for its digest."""
        results = super().write_data(plan, planner).wait() if plan.items else []
        paths = {name: Path(self.path) / name for name in {result.storage_data.relative_path for result in results}}
        told = {name: (path.stat().st_size, file_digest(path)) for name, path in paths.items()}
        future: torch.futures.Future = torch.futures.Future()
        future.set_result([
            Written(result.index, result.size_in_bytes, result.storage_data, *told[result.storage_data.relative_path])
            for result in results
        ])  # fmt: skip
        return future

    def finish(self, metadata: Metadata, results: list[list[Written]]) -> None:
        """In process 0, when all have written."""
        written = [result for of_process in results for result in of_process]
        super().finish(metadata, results)
        for directory in (Path(self.path), Path(self.path).parent):
            fsync_directory(directory)
        self.commit(record_of(Path(self.path).name, metadata, written))


def record_of(directory: str, metadata: Metadata, written: list[Written]) -> Shards:
    """The record of what was written."""
    files = {result.storage_data.relative_path: (result.file_size, result.sha256) for result in written}
    numbers = {name: number for number, name in enumerate(files)}
    rows: dict[str, list[list[int]]] = {place: [] for place in metadata.state_dict_metadata}
    sizes = {
        (place, tuple(chunk.offsets)): chunk.sizes
        for place, stored in metadata.state_dict_metadata.items() for chunk in stored.chunks
    }  # fmt: skip
    for result in written:
        place, begin, of_file = result.index.fqn, tuple(result.index.offset), result.storage_data
        piece = [numbers[of_file.relative_path], of_file.offset, of_file.length, *begin, *sizes[place, begin]]
        rows[place].append(piece)
    tensors = {
        place: Stored(tuple(stored.size), stored.properties.dtype, torch.tensor(rows[place], dtype=torch.int64))
        for place, stored in metadata.state_dict_metadata.items()
    }
    return Shards(directory, files, tensors)


def write_shards(directory: Path, tensors: dict[str, Tensor], commit: Callable[[Shards], None], group) -> Future:
    """Copy the tensors, and write them in a thread; to be called by all processes.

    Args:
        directory: a new one, on a file system that all processes see.
        tensors: of this process; those that are cut up must be given by all, others by one.
        commit: see `ShardWriter`.
        group: of all processes, for this alone, since the thread talks while training does; None for a single process.
    """
    writer = ShardWriter(directory, commit)
    return dcp.async_save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)


def wait_for(future: Future) -> None:
    """Wait until shards are written; what went wrong in any process is raised in all of them, as UserError."""
    try:
        future.result()
    except CheckpointException as error:
        rank, reason = first_failure(error)
        if isinstance(reason, UserError):
            raise reason from None
        text = getattr(reason, "strerror", None) or " ".join(str(reason).split())[:200] or type(reason).__name__
        raise UserError(f"Process {rank} cannot write its shard of the checkpoint: {text}.") from None


def first_failure(error: CheckpointException) -> tuple[int, BaseException]:
    """The lowest rank of a process in which something went wrong, and what."""
    rank, (reason, _) = min(error.failures.items())
    return rank, reason


# ---- read ------------------------------------------------------------------------------------------------------------
class ShardReader(StorageReader):
    """Reads pieces as data only. Where they are says the record in the checkpoint, not the pickle beside them.

    Args:
        shards: the record.
        path: of the checkpoint.
    """

    def __init__(self, shards: Shards, path: str | Path):
        self.shards, self.path = shards, path
        self.names = list(shards.files)

    def read_metadata(self) -> Metadata:
        """What DCP plans by."""
        found = {}
        for place, stored in self.shards.tensors.items():
            dims = len(stored.shape)
            rows = [(torch.Size(row[3 : 3 + dims]), torch.Size(row[3 + dims :])) for row in stored.pieces.tolist()]
            chunks = [ChunkStorageMetadata(offsets, sizes) for offsets, sizes in rows]
            found[place] = TensorStorageMetadata(TensorProperties(stored.dtype), torch.Size(stored.shape), chunks)
        return Metadata(found)

    def read_data(self, plan, planner) -> torch.futures.Future:
        """Read what this process needs, each piece once."""
        needed: dict[tuple, list] = {}
        for item in plan.items:
            needed.setdefault((item.storage_index.fqn, item.storage_index.index), []).append(item)
        for (place, number), items in needed.items():
            piece = self.read_piece(self.shards.tensors[place], number)
            for item in items:
                begins = zip(item.storage_offsets, item.lengths, strict=True)
                target = planner.resolve_tensor(item).detach()
                target.copy_(piece[tuple(slice(begin, begin + length) for begin, length in begins)])
                planner.commit_tensor(item, target)
        future: torch.futures.Future = torch.futures.Future()
        future.set_result(None)
        return future

    def read_piece(self, stored: Stored, number: int) -> Tensor:
        """Open one piece, which is a file of `torch.save` within a file."""
        name, begin, length, *box = stored.pieces[number].tolist()
        path = self.shards.at(self.path) / self.names[name]
        with open(path, "rb") as file:
            file.seek(begin)
            data = file.read(length)
        piece = open_as_data(data, path)
        if not torch.is_tensor(piece) or [*piece.shape] != box[len(box) // 2 :] or piece.dtype != stored.dtype:
            raise UserError(f"The shard {path} does not hold the tensors that the checkpoint {self.path} names.")
        return piece

    def reset(self, checkpoint_id=None) -> None:
        """Nothing is kept from one reading to the next."""

    def set_up_storage_reader(self, metadata, is_coordinator, *args, **kwargs) -> None:
        """Nothing to prepare."""

    def prepare_local_plan(self, plan):
        """Take the plan as it is."""
        return plan

    def prepare_global_plan(self, plans):
        """Take the plans as they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id) -> bool:
        """There is none."""
        return True


def read_shards(shards: Shards, path: str | Path, models: Mapping[str, Tensor], places=None) -> dict[str, Tensor]:
    """Return tensors of a checkpoint, filled; each process reads only what it needs, without asking the others.

    Args:
        shards: the record in the checkpoint, whose files were checked.
        path: of the checkpoint.
        models: tensors by places. Where one has the right shape, what is read is laid out, and cut up, as it is; else
            it is whole, on the CPU.
        places: those to read; None for all.

    Raises:
        DamagedError, UserError: when a file does not hold what it should.
    """
    tensors = {}
    for place in shards.tensors if places is None else places:
        stored, model = shards.tensors[place], models.get(place)
        if model is not None and tuple(model.shape) == stored.shape:
            tensors[place] = torch.zeros_like(model, dtype=stored.dtype, requires_grad=False)
        else:
            tensors[place] = torch.zeros(stored.shape, dtype=stored.dtype)
    try:
        dcp.load(tensors, storage_reader=ShardReader(shards, path), no_dist=True)
    except CheckpointException as error:
        _, reason = first_failure(error)
        if isinstance(reason, UserError):
            raise reason from None
        text = " ".join(str(reason).split())[:120] or type(reason).__name__
        raise DamagedError(f"The checkpoint {path} is damaged: its shards cannot be read: {text}") from None
    return tensors
