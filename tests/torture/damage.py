"""Checkpoints with flipped bits, cut short, emptied, overwritten: each is noticed, and the one before it is used.

python -m tests.torture.damage --count 200
"""

import random
import shutil
from pathlib import Path

from engine.checkpoints.file import load_checkpoint, verify
from engine.checkpoints.find import find_checkpoint
from tests.torture import harness
from tests.torture.harness import Life, Row
from utils.errors import DamagedError, UserError

WHAT = "bit flips, truncations, empty and text files in checkpoints: noticed, and the one before is used"
COUNT, QUICK = 200, 20
REAL = 5  # of these, each is resumed to its end by the program
FOOTER = 16 + 16 + 32  # bytes: magic, position, SHA-256
NOTE = (
    "flips anywhere, in the footer, in the zip's directory, and what torch does not check; cut at any length; "
    "empty; text; a block of zeros; halves exchanged"
)


def flip(data: bytearray, place: int, dice: random.Random) -> bytes:
    data[place] ^= 1 << dice.randrange(8)
    return bytes(data)


def flip_anywhere(data: bytearray, dice: random.Random) -> bytes:
    return flip(data, dice.randrange(len(data)), dice)


def flip_in_footer(data: bytearray, dice: random.Random) -> bytes:
    return flip(data, len(data) - 1 - dice.randrange(FOOTER), dice)


def flip_in_directory(data: bytearray, dice: random.Random) -> bytes:
    """The directory of a zip archive stands at its end."""
    return flip(data, len(data) - 1 - FOOTER - dice.randrange(2000), dice)


def cut(data: bytearray, dice: random.Random) -> bytes:
    return bytes(data[: dice.randrange(1, len(data))])


def cut_a_little(data: bytearray, dice: random.Random) -> bytes:
    return bytes(data[: -dice.randrange(1, FOOTER + 10)])


def empty(data: bytearray, dice: random.Random) -> bytes:
    return b""


def text(data: bytearray, dice: random.Random) -> bytes:
    return b"this is no checkpoint\n" * dice.randrange(1, 100)


def zeros(data: bytearray, dice: random.Random) -> bytes:
    """A block that never reached the disk reads as zeros."""
    size = min(4096, len(data) // 2)
    place = dice.randrange(0, len(data) - size)
    if not any(data[place : place + size]):  # it was zeros before
        return flip(data, place, dice)
    data[place : place + size] = bytes(size)
    return bytes(data)


def exchange(data: bytearray, dice: random.Random) -> bytes:
    half = len(data) // 2
    return bytes(data[half:] + data[:half])


def append(data: bytearray, dice: random.Random) -> bytes:
    return bytes(data) + dice.randbytes(dice.randrange(1, 200))


DAMAGES = (
    flip_anywhere, flip_in_footer, flip_anywhere, flip_in_directory, flip_anywhere, cut, cut_a_little, empty, text,
    zeros, exchange, append,
)  # fmt: skip


def newest_files(run_dir: Path) -> tuple[list[Path], int]:
    """The checkpoints of the newest position, and the position before it, as an update."""
    updates = {path: load_checkpoint(path)["progress"]["update"] for path in harness.checkpoints(run_dir)}
    newest = max(updates.values())
    return [path for path, update in updates.items() if update == newest], max(
        (update for update in updates.values() if update < newest), default=-1
    )


def try_damage(run_dir: Path, damage, dice: random.Random) -> list[str]:
    """Damage the newest checkpoints; return what is not noticed."""
    damaged, before = newest_files(run_dir)
    faults = []
    for path in damaged:
        data = path.read_bytes()
        path.write_bytes(damage(bytearray(data), dice))
        try:
            verify(path)
            faults.append(f"{damage.__name__} in {path.name} is not noticed")
        except DamagedError as error:
            faults += [] if path.name in str(error) else [f"{path.name} is not named: {error}"]
    try:
        warnings: list[str] = []
        update = find_checkpoint(run_dir, warnings.append)[1]["progress"]["update"]
        faults += [] if update == before else [f"update {update} is resumed, not {before}"]
        faults += [f"{path.name} is not named on resume" for path in damaged if path.name not in "".join(warnings)]
    except UserError as error:
        faults.append(f"nothing is resumed: {error}")
    return faults


def try_all_bad(job, run_dir: Path, dice: random.Random) -> list[str]:
    """With no good checkpoint left, the program ends with status 3 and starts nothing."""
    for path in harness.checkpoints(run_dir):
        path.write_bytes(flip_anywhere(bytearray(path.read_bytes()), dice))
    before = sorted(str(path) for path in run_dir.parent.rglob("*"))
    life = Life(job.resume(run_dir), run_dir.parent, run_dir)
    status, said = life.end(), life.stderr()
    faults = [] if status == 3 else [f"all bad, and the status is {status}: {life.told()}"]
    faults += ["it ends with a traceback"] if "Traceback" in said else []
    left = sorted(str(path) for path in run_dir.parent.rglob("*"))
    return faults + ([] if left == before else [f"files were made: {set(left) - set(before)}"])


def run(count: int = COUNT, seed: int = 0) -> Row:
    """Damage so many checkpoints of a small run; a few are resumed to their end by the program."""
    row = Row()
    with harness.scratch() as directory:
        job = harness.seg_job(harness.make_cars(directory / "cars"), "UNet", "--keep", "3", "--num_workers", "0")
        whole, _ = harness.train_whole(job)
        output_dir = directory / "killed"
        life = Life(job.under("tools.kill", "--at", 39).command("--output_dir", output_dir), output_dir)
        life.end()
        run_dir, copy = life.run_dir, directory / "copies" / life.run_dir.name
        num_real = min(REAL, count // 20)
        for number in range(count):
            dice = harness.draw(seed, "damage", number)
            damage = DAMAGES[number % len(DAMAGES)]
            shutil.rmtree(copy.parent, ignore_errors=True)
            shutil.copytree(run_dir, copy)
            faults = try_damage(copy, damage, dice)
            if number < num_real:
                faults += harness.finish(job, copy, whole, "--num_workers", 0)
            row.add(f"{damage.__name__}, try {number}", faults)
        shutil.rmtree(copy.parent, ignore_errors=True)
        shutil.copytree(run_dir, copy)
        row.failures += try_all_bad(job, copy, harness.draw(seed, "all bad"))
    row.note = f"{NOTE}; {num_real} of them resumed by the program to the right digests; all bad: status 3"
    return row


if __name__ == "__main__":
    harness.main(run, COUNT, WHAT)
