"""Let the processes of one machine meet where no other machine can reach them.

The key-value store of a job takes pickles and has no password. Torch's own launcher lets it listen on all addresses of
the machine. Here it listens on the loopback interface alone, and so do the connections of Gloo and NCCL.
"""

import os
import socket
import sys

from torch.distributed import DistError, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry as registry

from utils.errors import UserError

NAME = "one_machine"  # of the rendezvous, for torch
HOST = "127.0.0.1"
LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # the interface, by platform
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class OneMachine(RendezvousHandler):
    """Gives a launcher alone on its machine the job's store, which stays over all attempts.

    Args:
        run_id: of the job.

    Raises:
        UserError: the store cannot be opened.
    """

    use_agent_store = True  # the processes connect to this store, instead of making one of their own

    def __init__(self, run_id: str):
        self.run_id = run_id
        try:
            listener = socket.create_server((HOST, 0))
            self.port = listener.getsockname()[1]
            # The store takes the socket over.
            self.store = TCPStore(
                HOST, self.port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
            )
        except (OSError, DistError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"The processes cannot meet on this machine: {reason}. If too many files are open, raise their number "
                "(ulimit -n)."
            ) from None

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(self.store, 0, 1, RendezvousStoreInfo(HOST, self.port))

    def get_backend(self) -> str:
        return NAME

    def get_run_id(self) -> str:
        return self.run_id

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Do nothing: no other launcher comes."""

    def num_nodes_waiting(self) -> int:
        return 0

    def shutdown(self) -> bool:
        return True


def keep_to_one_machine() -> str:
    """Have the processes that are started use the loopback interface; return the name of the rendezvous."""
    if sys.platform in LOOPBACK:
        for name in INTERFACE_VARIABLES:
            os.environ.setdefault(name, LOOPBACK[sys.platform])
    registry.register(NAME, make)
    return NAME


def make(parameters: RendezvousParameters) -> OneMachine:
    return OneMachine(parameters.run_id)
