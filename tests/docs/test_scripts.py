"""The scripts for several machines, tried on this one: two launchers that meet, and a scheduler that is played."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.checkpoints.file import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
RUN = (
    *("trainer_vanilla.py", "--train_val_sample_rate", "300", "--seed", "0", "--gpu_devices", "cpu", "--patience", "0"),
    *("--dist_timeout", "90"),
)
pytestmark = pytest.mark.skipif(not (BIN / "torchrun").exists(), reason="torchrun is not beside this Python")

# Plays srun: starts the command as often as there are machines, and passes the warning signal on, as SLURM does.
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit=1
trap 'kill -USR1 "${started[@]}"' USR1
for _ in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & started+=($!); done
status=0
for child in "${started[@]}"; do
    while kill -0 "$child" 2> /dev/null; do wait "$child"; last=$?; done
    [ "$last" -gt "$status" ] && status=$last
done
exit "$status"
"""
SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then echo 127.0.0.1; sleep 0.2; echo second
else echo "$@" >> "$(dirname "$0")/asked"; fi
"""

# As torchrun, but that its processes need not import torch again.
TORCHRUN = """#!/bin/bash
exec python -m tests.fork_server -m torch.distributed.run "$@"
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(*paths, **more) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return own | {"PATH": ":".join(map(str, [*paths, BIN, os.environ["PATH"]])), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """A function that starts a command; what is left of it is ended after the test."""
    started = []

    def start(command, env) -> subprocess.Popen:
        settings = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen([str(word) for word in command], env=env, start_new_session=True, **settings)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # torchrun passes it on


@pytest.fixture
def scheduler(tmp_path) -> Path:
    """A directory with the commands of SLURM, and torchrun."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("torchrun", TORCHRUN)):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path / "bin"


@pytest.mark.parametrize("name", ["slurm.sbatch", "two_machines.sh"])
def test_a_script_is_sound_and_says_what_it_lacks(name):
    path = ROOT / "scripts" / name
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    done = subprocess.run(["bash", path], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and name in done.stderr and len(done.stderr.splitlines()) == 1


def test_two_machines_train_one_run(tmp_path, scheduler, start):
    ports = environment(scheduler, PORT=str(free_port()), GLOO_SOCKET_IFNAME="lo")
    flags = (*RUN, "--n_epoch", "1", "--output_dir", tmp_path / "runs")
    both = [start(["scripts/two_machines.sh", rank, "127.0.0.1", *flags], env=ports) for rank in (0, 1)]
    texts = [machine.communicate(timeout=120)[0] for machine in both]
    assert [machine.returncode for machine in both] == [0, 0], texts
    assert "2 processes (ddp)" in texts[0] and "Finished after" in texts[0] and "Finished" not in texts[1]


def test_a_job_that_is_warned_saves_and_goes_on_in_its_next_turn(tmp_path, scheduler, start):
    job = environment(
        scheduler, SLURM_JOB_ID=str(free_port()), SLURM_JOB_NODELIST="first,second", SLURM_JOB_NUM_NODES="2",
        SLURM_CPUS_PER_TASK="1", GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    command = ["bash", "scripts/slurm.sbatch", *RUN, "--output_dir", tmp_path / "runs", "--n_epoch"]
    first = start([*command, 100_000], env=job)
    checkpoints, waited = [], time.monotonic()
    while not checkpoints and first.poll() is None and time.monotonic() < waited + 90:
        time.sleep(0.1)
        checkpoints = list((tmp_path / "runs").glob("*/Vanilla_best_ckpt.pth"))
    first.send_signal(signal.SIGUSR1)
    told = first.communicate(timeout=90)[0]
    assert "Stopped by the signal SIGUSR1" in told, told
    assert f"requeue {job['SLURM_JOB_ID']}" in (scheduler / "asked").read_text()
    (interrupted,) = (tmp_path / "runs").glob("*/Vanilla_InT_ckpt.pth")
    update = load_checkpoint(interrupted)["progress"]["update"]

    second = start([*command, 1], env=job | {"SLURM_RESTART_COUNT": "1"})
    told = second.communicate(timeout=90)[0]
    assert second.returncode == 0 and f"Resumed {interrupted} after update {update:,}" in told, told
