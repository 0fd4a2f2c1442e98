"""Copy the data of the next update to the GPU while it computes this one."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from utils.batch import iterate_tensors, move_to


def prefetched(updates: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Yield the updates with their data on a GPU. The copy of each is under way while the one before it is used.

    Copies and computations of one CUDA stream follow each other, so these copies have a stream of their own. They
    overlap only if the data comes in pinned memory (`pin_memory` of the loader).

    Args:
        updates: with `micro_batches` in the memory of the CPU, see `data.loader.Update`.
        device: the GPU.
    """
    copies = torch.cuda.Stream(device)
    ahead = None
    for update in updates:
        with torch.cuda.stream(copies):
            moved = replace(update, micro_batches=move_to(update.micro_batches, device, non_blocking=True))
            arrived = copies.record_event()
        if ahead is not None:
            yield handed_over(*ahead, device)
        ahead = moved, arrived
    if ahead is not None:
        yield handed_over(*ahead, device)


def handed_over(update: Any, arrived: torch.cuda.Event, device: torch.device) -> Any:
    """Return the update after its copy has been ordered before the computations that follow."""
    computing = torch.cuda.current_stream(device)
    computing.wait_event(arrived)
    for tensor in iterate_tensors(update.micro_batches):
        if tensor.is_cuda:
            tensor.record_stream(computing)  # or its memory could be given to the next copy while it is still read
    return update
