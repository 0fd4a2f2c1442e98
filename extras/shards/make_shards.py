"""Write the Carvana data set into shards: tar files in the layout of WebDataset, a few hundred samples in each.

    python -m extras.shards.make_shards --data_dir ./Dataset/Carvana --shards_dir ./Dataset/CarvanaShards

The parts are cut here, by car, as the data set of files would cut them with the same options, and each has its own
shards. Within a part the samples are in the order of their names, as there. The same files give the same shards, bit
for bit.
"""

import hashlib
import os
import tarfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from data.Carvana import CarvanaDataset, build_carvana
from engine.options.parser import ListAction, OptionParser, file_path, list_of, mask_value, number
from extras.shards.dataset import FORMAT, INDEX_FILE, SAMPLE_NAME, SHARD_FILE
from extras.shards.store import Member, Sample, Shard, load_webdataset
from utils.errors import UserError
from utils.files import write_json


class Pair(NamedTuple):
    """One sample: "<car>_<view>", the car, and the two files."""

    name: str
    car: str
    image_path: str
    mask_path: str


def pairs_of(dataset: CarvanaDataset) -> list[Pair]:
    files = zip(dataset.names, dataset.groups, dataset.pairs, strict=True)
    return [Pair(name, car, *paths) for name, car, paths in files]


def member_names(pair: Pair) -> tuple[str, str]:
    """The names of image and mask in a shard: "<name>.jpg" and "<name>.mask.gif", which WebDataset puts together."""
    endings = [Path(path).suffix.lower() for path in (pair.image_path, pair.mask_path)]
    return f"{pair.name}{endings[0]}", f"{pair.name}.mask{endings[1]}"


def write_shard(path: Path, pairs: Sequence[Pair]) -> Shard:
    """Write a shard, and read it back for its index."""
    with open(path, "wb") as file, load_webdataset().TarWriter(file, encoder=False, mtime=0) as writer:
        for pair in pairs:
            contents = zip(member_names(pair), (pair.image_path, pair.mask_path), strict=True)
            by_ending = {name.partition(".")[2]: Path(source).read_bytes() for name, source in contents}
            writer.write({"__key__": pair.name, **by_ending})
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # before the index says that it is there
        with tarfile.open(fileobj=file) as tar:
            members = {held.name: Member(held.name, held.offset_data, held.size) for held in tar}
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    samples = tuple(Sample(pair.name, pair.car, *(members[name] for name in member_names(pair))) for pair in pairs)
    return Shard(path.name, path.stat().st_size, digest, samples)


def prepare(shards_dir: Path) -> None:
    """Make the directory, or empty it of shards that were never finished; UserError when it holds anything else."""
    shards_dir.mkdir(parents=True, exist_ok=True)
    held = sorted(shards_dir.iterdir())
    if others := [path.name for path in held if not SHARD_FILE.fullmatch(path.name)]:
        what = "finished shards" if INDEX_FILE in others else f"other files, such as {others[0]}"
        raise UserError(f"--shards_dir {shards_dir} holds {what}. Give a new directory.")
    for path in held:
        path.unlink()


def make_shards(
    data_dir: str | Path, shards_dir: str | Path, samples_per_shard: int = 256, n_classes: int = 2, **cut: Any
) -> None:
    """Write the shards of all three parts, and last the index, without which they count as unfinished.

    Args:
        data_dir: holds `train` and `train_masks`, see `data.Carvana.find_pairs`.
        shards_dir: a directory that is new, empty, or holds shards of a call that did not end.
        samples_per_shard: from 1; the last shard of a part may have fewer.
        n_classes: the most values that may occur in the masks, see `data.masks.scan_masks`.
        cut: train_val_sample_rate, test_sample_rate, val_split and split_seed, see `data.split.split_by_group`; and
            ignored_values, see `data.Carvana.build_carvana`.

    Raises:
        UserError: files that are missing or do not fit together, a name that a shard cannot hold, an empty part, or a
            directory with other content or that cannot be written.
    """
    load_webdataset()
    shards_dir = Path(shards_dir)
    datasets = build_carvana(data_dir, n_classes=n_classes, **cut)
    pairs = {part: pairs_of(dataset) for part, dataset in datasets.items()}
    for pair in chain.from_iterable(pairs.values()):
        if not SAMPLE_NAME.fullmatch(pair.name) or len(max(member_names(pair), key=len).encode()) > 100:
            rule = "the name of a sample in a shard has at most 80 characters and no dot, and is UTF-8"
            raise UserError(f"{pair.image_path}: {rule}.")
    shards: dict[str, list[Shard]] = {part: [] for part in datasets}
    try:
        prepare(shards_dir)
        with tqdm(total=sum(map(len, datasets.values())), desc="making shards", unit="sample", disable=None) as bar:
            for part, dataset in datasets.items():
                for first in range(0, len(dataset), samples_per_shard):
                    end = first + samples_per_shard
                    path = shards_dir / f"{part}-{first // samples_per_shard:06d}.tar"
                    shards[part].append(write_shard(path, pairs[part][first:end]))
                    bar.update(len(shards[part][-1].samples))
    except OSError as error:
        raise UserError(f"The shards cannot be written to {shards_dir}: {error}.") from error
    index = {
        "format": FORMAT,
        "made_with": cut | {"n_classes": max(n_classes, 2)},
        "codes": dataset.class_map.codes,
        "threshold_jpeg": dataset.class_map.threshold_jpeg,
        "ignored": dataset.class_map.ignored,
        "report": dataset.report,
        "summary": dataset.summary,
        "parts": {part: [shard._asdict() for shard in of_part] for part, of_part in shards.items()},
    }
    write_json(shards_dir / INDEX_FILE, index, indent=None)
    print(f"{dataset.summary}; {sum(map(len, shards.values())):,} shards in {shards_dir}")


def main(arguments: list[str] | None = None) -> None:
    parser = OptionParser(prog="make_shards", description="Write the Carvana data set into shards.")
    add, amount = parser.add_argument, number(float, above=0)
    add("--data_dir", type=file_path, default="./Dataset/Carvana", help="holds train/ and train_masks/")
    add("--shards_dir", type=file_path, required=True, help="where to write the shards")
    add("--samples_per_shard", type=number(int, low=1, high=10**6), default=256, help="samples in a shard")
    add("--n_classes", type=number(int, low=1, high=10**6), default=2, help="the most values in the masks")
    add("--ignored_values", type=list_of(mask_value), action=ListAction, nargs="+", default=None, help="as in training")
    add("--train_val_sample_rate", type=amount, default=1.0, help="as in training, which must be given the same")
    add("--test_sample_rate", type=amount, default=0.02, help="as in training")
    add("--val_split", type=amount, default=0.15, help="as in training")
    add("--split_seed", type=number(int, low=0, high=2**63 - 1), default=0, help="as in training")
    opt = parser.parse_args(arguments)
    try:
        make_shards(**vars(opt))
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
