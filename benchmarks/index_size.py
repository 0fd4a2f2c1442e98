"""The cost of the index of a large data set: its time and memory at the start, and the time to find one sample.

    python -m benchmarks.index_size --write

It makes that many empty files, 1,110,100 in all, and leaves them in --data_dir for the next run.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Benchmark, Case, Column, Mark, main
from engine.options.parser import OptionParser, file_path

VIEWS = 16
SIZES = {"100 files": 100, "10,000 files": 10_000, "100,000 files": 100_000, "1,000,000 files": 1_000_000}
NUM_LOOKUPS = 20_000


def make_files(opt: argparse.Namespace, num_files: int) -> str:
    """Make empty files, half of them images and half masks, once for all runs; return their directory."""
    num_pairs = num_files // 2 // (100 if opt.quick and num_files > 1000 else 1)
    directory = Path(opt.data_dir or Path(tempfile.gettempdir(), "plainloop_index"), str(num_pairs))
    if not (directory / "complete").exists():
        for folder, end in (("train", ".jpg"), ("train_masks", "_mask.gif")):
            (directory / folder).mkdir(parents=True, exist_ok=True)
            place = os.open(directory / folder, os.O_RDONLY)
            for i in range(num_pairs):
                car = f"{i // VIEWS * 2654435761 % 2**48:012x}"
                os.close(os.open(f"{car}_{i % VIEWS + 1:02d}{end}", os.O_CREAT | os.O_WRONLY, dir_fd=place))
            os.close(place)
        (directory / "complete").touch()
    return str(directory)


def resident() -> float:
    """The memory that this process holds now, in MB (10**6 bytes)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def start_up(opt: argparse.Namespace, num_files: int) -> dict[str, Any]:
    """Do what a run does with the index before it loads anything, then look up samples at random."""
    import random

    import data.Carvana
    from benchmarks.harness import peak_memory
    from data.data_entry import describe, group_hashes, seen_groups
    from data.masks import ClassMap
    from extras.pixel_cache import cache_key
    from utils.files import write_json

    directory = make_files(opt, num_files)
    data.Carvana.scan_masks = lambda paths, *rest, **more: (ClassMap((0, 0xFFFFFF)), paths[len(paths) // 2])  # empty
    before, started = resident(), time.perf_counter()
    shares = {"train_val_sample_rate": 1, "test_sample_rate": 0.2}
    datasets = data.Carvana.build_carvana(directory, **shares)
    indexed = time.perf_counter()
    seen_groups(datasets), group_hashes(datasets["test"])
    names, _ = describe(datasets)
    with tempfile.TemporaryDirectory() as target:
        write_json(Path(target, "split.json"), names, indent=None)
    keys = [cache_key(dataset) for dataset in datasets.values()]
    seconds = time.perf_counter() - started
    growth = peak_memory() - before
    assert len(set(keys)) == 3

    pairs = datasets["train"].pairs
    chosen = [random.Random(0).randrange(len(pairs)) for _ in range(NUM_LOOKUPS)]
    looked = time.perf_counter()
    for index in chosen:
        pairs[index]
    lookup = (time.perf_counter() - looked) / NUM_LOOKUPS
    return {"seconds": seconds, "index": indexed - started, "growth": growth, "microseconds": lookup * 1e6}


def add_options(parser: OptionParser) -> None:
    parser.add_argument(
        "--data_dir",
        type=file_path,
        default=None,
        metavar="DIR",
        help="where to make the files (default: the directory for temporary files)",
    )


LARGEST, SMALLEST = "1,000,000 files", "100 files"
BENCHMARK = Benchmark(
    "index_size",
    __doc__,
    [
        Case(
            "index",
            "The index of a large data set",
            "Empty files, half of them images and half masks, 16 views of each car, all in use. Counted is what a run "
            "does before it loads anything: the listing, the split, the hashes of the cars, the sizes and times of all "
            "files for fingerprint and cache, split.json. Masks are not scanned, which takes 512 of them whatever "
            "their number. The memory is the growth of the whole process, at its peak.",
            {name: lambda opt, num_files=num_files: start_up(opt, num_files) for name, num_files in SIZES.items()},
            [
                Mark("seconds for 1,000,000 files", LARGEST, at_most=10),
                Mark("MB for 1,000,000 files", LARGEST, key="growth", at_most=500),
                Mark("1,000,000 files / 100,000 files, seconds", LARGEST, "100,000 files"),
                Mark("finding one sample, 1,000,000 files / 100 files", LARGEST, SMALLEST, "microseconds"),
            ],
            (
                Column("seconds", "seconds"),
                Column("index", "of them, listing and split"),
                Column("growth", "MB more", "{:,.0f}"),
                Column("microseconds", "µs to find a sample", "{:.2f}"),
            ),
        ),
    ],
    add_options,
)

if __name__ == "__main__":
    main(BENCHMARK)
