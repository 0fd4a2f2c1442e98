"""Requeue a job of the scheduler SLURM (https://slurm.schedmd.com/scontrol.html)."""

import os
import subprocess
from logging import Logger

TIMEOUT = 30  # seconds; a busy controller is slow


def job_id() -> str | None:
    """Return the id of the SLURM job of this process, "12" or, in an array, "12_3"; None outside SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID") or None


def requeue(logger: Logger) -> bool:
    """Ask SLURM to start this job again, log the result, and return whether it will.

    SLURM then kills the job, so call this after the last checkpoint. A failure is logged, not raised.
    """
    job = job_id()
    if job is None:
        logger.warning("Not requeued: this is no SLURM job, SLURM_JOB_ID is not set.")
        return False
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        problem = "no such command"
    except subprocess.TimeoutExpired:
        problem = f"no answer within {TIMEOUT} seconds"
    except OSError as error:
        problem = str(error.strerror)
    else:
        if done.returncode == 0:
            logger.info(f"Requeued as job {job}.")
            return True
        problem = " ".join((done.stderr or done.stdout).split()) or f"status {done.returncode}"
    logger.error(f"Not requeued: {' '.join(command)}: {problem}. Start the run again by hand.")
    return False
