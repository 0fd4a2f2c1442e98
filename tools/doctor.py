"""Look for the faults that most often make a task learn badly: --doctor.

Each check (tools/doctor_checks.py) makes on the task's own trainer what a training would make, and says what it found.
Most of them are in A. Karpathy's recipe (http://karpathy.github.io/2019/04/25/recipe/, 2019).
"""

import sys
import tempfile
from collections.abc import Callable
from typing import Any

from engine.checkpoints.file import load_checkpoint
from engine.checkpoints.state import digests
from engine.snapshot import Snapshot, parts_of
from tools.doctor_checks import CHECKS, NEED_LABELS, CannotTell, Finding, Patient, differing_parts

OK, PROBLEM, SKIPPED = "ok", "problem", "skipped"
STATUS = 1  # with which the program ends when there is a problem


def run_check(name: str, patient: Patient) -> tuple[str, str]:
    """Return what a check found, ok or problem or skipped, and the words for it. All is put back afterwards."""
    patient.trainer.freezing.set_train_mode(patient.trainer.networks)
    try:
        return OK, CHECKS[name](patient)
    except Finding as finding:
        return PROBLEM, str(finding)
    except CannotTell as reason:
        return SKIPPED, str(reason)
    except Exception as error:  # of the task: it would end the training, too
        return PROBLEM, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        patient.snapshot.put_back()


def diagnose(trainer) -> dict[str, tuple[str, str]]:
    """Make all checks on a trainer; return what each found. The trainer is left as it was, bit for bit."""
    patient = Patient(trainer, next(iter(trainer.train_loader.updates(0))), Snapshot(parts_of(trainer)))
    found: dict[str, tuple[str, str]] = {}
    for name in CHECKS:
        if found.get("labels and shapes", (OK,))[0] == PROBLEM and name in NEED_LABELS:
            found[name] = (SKIPPED, "labels and shapes must fit first")
        else:
            found[name] = run_check(name, patient)
    return found


def examine(build_trainer: Callable[[str], Any], resume: str | None = None) -> None:
    """Examine a task and print a line for each check.

    Args:
        build_trainer: makes its trainer, which writes to the directory that it is given.
        resume: a checkpoint whose state is to be examined; None for a fresh one.

    Raises:
        SystemExit: with status 1, when there is a problem.
    """
    with tempfile.TemporaryDirectory() as directory:  # it is no run, so it leaves none
        trainer = build_trainer(directory)
        if resume:
            trainer.load_state_dict(load_checkpoint(resume))
        before = digests(trainer.state_dict())
        found = diagnose(trainer)
        if differing := differing_parts(before, digests(trainer.state_dict())):
            found["left as it was"] = (PROBLEM, f"{', '.join(differing)} cannot be put back by load_state_dict")
    print(f"\nThe doctor on {type(trainer).__name__}:")
    for name, (outcome, text) in found.items():
        print(f"  {outcome:<8} {name:<19} {text}")
    num_problems = sum(outcome == PROBLEM for outcome, _ in found.values())
    print(f"{num_problems or 'No'} problem{'s' * (num_problems != 1)} found.", flush=True)
    if num_problems:
        sys.exit(STATUS)
