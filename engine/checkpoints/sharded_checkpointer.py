"""Checkpoints whose tensors all processes write together, each its part, while training goes on."""

import copy
import time
from concurrent.futures import Future
from typing import Any

from engine.checkpoints.checkpointer import Checkpointer
from engine.checkpoints.shard_record import DIRECTORY, Shards, new_directory, take_out
from engine.checkpoints.sharded_state import is_cut
from engine.devices.process_group import Distributed


class ShardedCheckpointer(Checkpointer):
    """Writes what shard_record.py describes: the tensors to shards, and all else to a file that refers to them.

    `save` copies the tensors and returns; a thread writes them. The file is written last, by process 0, when the shards
    of all processes are on the disk: so a checkpoint is there only when it is whole, and until then the one before it
    is. What another process has as well, process 0 writes; what is cut up (FSDP), each process its part.

    Args:
        distributed: the processes.
        run_dir, prefix, every, keep: see `Checkpointer`.

    Attributes:
        longest_save: seconds from `save` until all is on the disk.
        seconds: that training stood still.
    """

    in_shards = True

    def __init__(self, distributed: Distributed, *args: Any, **settings: Any):
        super().__init__(*args, writes=distributed.is_main, **settings)
        self.distributed = distributed
        self._group: Any = None
        self._under_way: Future | None = None

    def save(self, state: dict[str, Any], *kinds: str) -> float:
        """Begin to write the state as checkpoints of these kinds, and return `longest_save`; to be called by all."""
        from engine.checkpoints.shard_files import write_shards

        self.finish()
        started = time.perf_counter()
        name = new_directory(self.run_dir, state["progress"]["update"]) if self.writes else ""
        name = self.distributed.broadcast(name)
        rest, tensors = take_out(state)
        if self.writes:
            rest = copy.deepcopy(rest)  # training goes on and changes it
        else:
            tensors = {place: tensor for place, tensor in tensors.items() if is_cut(tensor)}

        def commit(shards: Shards) -> None:
            self._write({**rest, "shards": shards.state_dict()}, kinds)
            self.longest_save = max(self.longest_save, time.perf_counter() - started)

        self._group = self._group or self.distributed.new_group()
        self._under_way = write_shards(self.run_dir / DIRECTORY / name, tensors, commit, self._group)
        self.seconds += time.perf_counter() - started
        return self.longest_save

    def finish(self) -> None:
        """Wait until what was saved is on the disk; to be called by all.

        Raises:
            UserError: in all processes, when one of them could not write. The checkpoint before it is intact.
        """
        if self._under_way is None:
            return
        from engine.checkpoints.shard_files import wait_for

        started = time.perf_counter()
        future, self._under_way = self._under_way, None
        wait_for(future)
        self.seconds += time.perf_counter() - started
