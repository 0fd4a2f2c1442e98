"""A file system without enough space while a run writes: the old checkpoint is intact, and the run resumes later.

python -m tests.torture.full_disk --count 12

On Linux with `unshare`, the file system is a tmpfs of a few megabytes that only this script's processes see, with a
file in it that leaves so many bytes free. Elsewhere the size of a file is limited instead (`ulimit -f`).
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.torture import harness
from tests.torture.harness import End, Job, Life, Row

WHAT = "a small full file system while a run saves: old checkpoint intact, bytes named, later resumed"
COUNT, QUICK = 12, 2
SIZE = 16 * 2**20  # bytes of the small file system
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
INSIDE = "--inside"
BALLAST = "ballast"


def can_mount() -> bool:
    """Whether this process may have a file system of its own."""
    try:
        script = "mount -t tmpfs -o size=1m tmpfs /tmp"  # seen by this shell alone
        return subprocess.run([*UNSHARE, "sh", "-c", script], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def fill(file_system: Path, free: int) -> None:
    """Leave so many bytes free."""
    available = shutil.disk_usage(file_system).free
    with open(file_system / BALLAST, "wb") as file:
        left = max(0, available - free)
        while left:
            left -= file.write(bytes(min(left, 2**20)))


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def try_once(job: Job, saved: Path, whole: End, place: Path, free: int, is_limit: bool) -> list[str] | None:
    """Go on with a run where there is no space; return what is not as it should be, None when the space was enough.

    Args:
        job: what is run.
        saved: the directory of the run.
        whole: how it ends when there is space.
        place: where to try it.
        free: bytes that are left; or, as a limit, that a file may have.
        is_limit: limit the size of a file instead of filling the file system.
    """
    run_dir = place / saved.name
    shutil.copytree(saved, run_dir)
    before, _ = harness.newest_update(run_dir)
    command = job.resume(run_dir, "--num_workers", 0)
    if is_limit:
        command = ["bash", "-c", 'ulimit -f "$0"; exec "$@"', str(free // 1024), *command]
    else:
        fill(place, free)
    try:
        life = Life(command, place, run_dir)
        status, said = life.end(), life.stderr()
        if status == 0:
            return None
        faults = [] if status == 2 else [f"status {status}: {life.told()}"]
        faults += ["a traceback was printed"] if "Traceback" in said else []
        faults += [] if re.search(r"[0-9][0-9,]* bytes", said) else [f"the needed bytes are not named: {life.told()}"]
        (place / BALLAST).unlink(missing_ok=True)
        newest, damaged = harness.newest_update(run_dir)
        faults += damaged
        faults += [] if newest is not None and newest >= before else [f"update {before} was saved, now {newest} is"]
        faults += [f"{path.name} was left damaged" for path in run_dir.glob("*.json") if not is_json(path)]
        return faults + harness.finish(job, run_dir, whole, "--num_workers", 0)
    finally:
        (place / BALLAST).unlink(missing_ok=True)
        shutil.rmtree(run_dir, ignore_errors=True)


def run_inside(place: Path, count: int, seed: int, is_limit: bool) -> Row:
    """Try it on the file system at `place`."""
    row, enough = Row(), 0
    with harness.scratch() as directory:
        job = harness.seg_job(harness.make_cars(directory / "cars"), "UNet")
        whole, _ = harness.train_whole(job)
        output_dir = directory / "killed"
        killed = job.under("tools.kill", "--at", 21)
        life = Life(killed.command("--output_dir", output_dir, "--num_workers", 0), output_dir)
        life.end()
        size = max(path.stat().st_size for path in harness.checkpoints(life.run_dir))
        for number in range(4 * count):
            dice = harness.draw(seed, "full", number)
            # From nothing at all to nearly what a save needs; a page is the smallest piece.
            free = dice.choice((0, 4096 * dice.randrange(12), dice.randrange(size), dice.randrange(size, 2 * size)))
            free = dice.randrange(1024, size) if is_limit else free
            faults = try_once(job, life.run_dir, whole, place, free, is_limit)
            enough += faults is None
            if faults is not None:
                row.add(f"{free:,} bytes {'a file' if is_limit else 'free'}, try {number}", faults)
            if row.tried == count:
                break
    how = "a limit on the size of a file" if is_limit else f"a tmpfs of {SIZE // 2**20} MB"
    row.note = f"{how}, with 0 to {2 * size:,} bytes left; a checkpoint has {size:,}; then resumed to the right digests"
    return row


def run(count: int = COUNT, seed: int = 0) -> Row:
    """Try so many sizes that do not suffice."""
    with harness.scratch() as directory:
        if not can_mount():
            return run_inside(directory, count, seed, is_limit=True)
        answer, mount = directory / "row.json", directory / "small"
        mount.mkdir()
        python = f"{sys.executable} -m tests.torture.full_disk {INSIDE} {mount} {count} {seed} {answer}"
        script = f"mount -t tmpfs -o size={SIZE} tmpfs {mount} && exec {python}"
        subprocess.run([*UNSHARE, "sh", "-c", script], cwd=harness.ROOT, check=True)
        return Row(**json.loads(answer.read_text()))


if __name__ == "__main__":
    if sys.argv[1:2] == [INSIDE]:
        found = run_inside(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), is_limit=False)
        fields = ("tried", "passed", "failures", "note")
        Path(sys.argv[5]).write_text(json.dumps({name: getattr(found, name) for name in fields}))
    else:
        harness.main(run, COUNT, WHAT)
