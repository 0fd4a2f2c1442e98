"""The memory of a transformer of 7 billion parameters on each device under FSDP, for 8 to 1,024 devices.

    python -m benchmarks.memory_plan
    python -m benchmarks.memory_plan --write

No device is needed. The network is cut up by the same code as in training, in a world of N processes of which this is
process 0 and the others are pretended (torch's "fake" process group). A step of training goes through it with tensors
that have shapes but no content (`FakeTensorMode`), and what is then left of parameters, gradients and AdamW's state is
added up and held against the arithmetic.
"""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import ROOT, row
from engine.options.parser import BoolAction, ListAction, OptionParser, list_of, number, run_main
from engine.runs.provenance import command_line
from extras.blocks import blocks_of
from extras.sharding import ShardedProcesses
from utils.model_summary import memory_of, num_bytes

PAGE = ROOT / "docs" / "distributed.md"
BEGIN, END = "<!-- memory plan: begin -->", "<!-- memory plan: end -->"
WORLDS = (8, 16, 32, 64, 128, 256, 512, 1024)
BYTES_PER_PARAMETER = 16  # float32: the parameter, its gradient, and two moments of AdamW, 4 bytes each
GB = 1e9


# ---- the network -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """Of a transformer: layers, channels, channels inside the multilayer perceptron, heads, words."""

    layers: int = 32
    width: int = 4096
    inner: int = 11008
    heads: int = 32
    words: int = 32000


class DecoderLayer(nn.Module):
    """Causal self-attention and a gated multilayer perceptron, each behind a normalization and beside a skip."""

    def __init__(self, size: Size):
        super().__init__()
        self.heads = size.heads
        self.before_attention, self.before_mlp = nn.RMSNorm(size.width), nn.RMSNorm(size.width)
        self.query, self.key, self.value, self.out = (nn.Linear(size.width, size.width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(size.width, size.inner, bias=False) for _ in range(2))
        self.down = nn.Linear(size.inner, size.width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, length, width) to the same."""
        normal = self.before_attention(features)
        parts = [
            layer(normal).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, heads, length, width / heads)
            for layer in (self.query, self.key, self.value)
        ]
        seen = F.scaled_dot_product_attention(*parts, is_causal=True)
        features = features + self.out(seen.transpose(1, 2).flatten(-2))
        normal = self.before_mlp(features)
        return features + self.down(F.silu(self.gate(normal)) * self.up(normal))


class Decoder(nn.Module):
    """A stack of decoder layers between a table of words and a linear layer that scores the next word."""

    def __init__(self, size: Size):
        super().__init__()
        self.words = nn.Embedding(size.words, size.width)
        self.layers = nn.ModuleList(DecoderLayer(size) for _ in range(size.layers))
        self.norm = nn.RMSNorm(size.width)
        self.head = nn.Linear(size.width, size.words, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        """Numbers of words (N, length) to scores of the next ones (N, length, words)."""
        features = self.words(words)
        for layer in self.layers:
            features = layer(features)
        return self.head(self.norm(features))


# ---- the plan --------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def pretended_world(size: int) -> Iterator[ShardedProcesses]:
    """In the block this is process 0 of `size` processes, whose messages are not sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield ShardedProcesses(0, size)
    finally:
        dist.destroy_process_group()


def plan(size: Size, num_devices: int) -> dict[str, float]:
    """Make a step of training of process 0 and return what it holds, in bytes, and what the arithmetic says.

    Returns:
        "parameters", "gradients", "optimizer state" and their "sum"; "largest block" whole, as it is when it computes;
        "count" of parameters; "arithmetic" for the sum.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    without_content = FakeTensorMode()
    with pretended_world(num_devices) as world:
        with without_content:
            network = Decoder(size)
        count = sum(parameter.numel() for parameter in network.parameters())
        network = world.wrap(network, torch.device("cpu"))
        with without_content:
            optimizer = torch.optim.AdamW(network.parameters(), fused=True)
            network(torch.zeros(1, 8, dtype=torch.int64)).mean().backward()
            optimizer.step()
        held = memory_of([network], [optimizer])
        # All processes send parts of one length, that of process 0, so this is what arrives.
        largest = max(num_bytes(block.parameters()) for block in blocks_of(network)) * num_devices
    arithmetic = BYTES_PER_PARAMETER * count / num_devices
    return {**held, "sum": sum(held.values()), "largest block": largest, "count": count, "arithmetic": arithmetic}


def table_of(plans: dict[int, dict[str, float]]) -> str:
    """The plans by number of devices, as a Markdown table in GB."""
    titles = ["devices", "parameters", "gradients", "AdamW's state", "sum", "16 bytes per parameter / devices",
              "sum / arithmetic", "largest block, whole", "with it"]  # fmt: skip
    lines = [row(titles), row(["---:"] * len(titles))]
    for num_devices, told in plans.items():
        names = ("parameters", "gradients", "optimizer state", "sum", "arithmetic")
        cells = [f"{num_devices:,}", *(f"{told[name] / GB:.3f}" for name in names)]
        cells += [f"{told['sum'] / told['arithmetic']:.4f}", f"{told['largest block'] / GB:.3f}"]
        lines.append(row([*cells, f"{(told['sum'] + told['largest block']) / GB:.2f}"]))
    return "\n".join(lines)


def write(text: str, page=PAGE) -> None:
    """Put the text between the marks on the page."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> None:
    text = argparse.RawDescriptionHelpFormatter
    parser = OptionParser(prog="python -m benchmarks.memory_plan", description=__doc__, formatter_class=text)
    devices = number(int, low=2, high=2**20)
    add = parser.add_argument
    add("--devices", type=list_of(devices), action=ListAction, nargs="+", default=None, metavar="N",
        help=f"numbers of devices (default: {' '.join(map(str, WORLDS))})")
    add("--layers", type=number(int, low=1, high=10_000), default=Size.layers, metavar="N",
        help=f"decoder layers (default: {Size.layers}, 6.7 billion parameters)")
    add("--write", action=BoolAction, default=False, help=f"put the table into {PAGE.relative_to(ROOT)}")
    opt = parser.parse_args()
    if opt.write and (opt.devices or opt.layers != Size.layers):
        parser.error("--write is for the whole table: leave --devices and --layers out")
    plans = {num_devices: plan(Size(layers=opt.layers), num_devices) for num_devices in opt.devices or WORLDS}
    (count,) = {told["count"] for told in plans.values()}
    about = f"{count:,} parameters; GB (10⁹ bytes) of process 0, which has the largest part."
    told = f"{about}\n\n{table_of(plans)}\n\n`{command_line()}`: torch {torch.__version__}; {date.today()}."
    print(told)
    if opt.write:
        write(told)


if __name__ == "__main__":
    run_main(main)
