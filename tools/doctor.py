"""Look for the faults that most often make a task learn badly.

    python -m tools.doctor trainer_vanilla.py --lr 1e-3

Each check (tools/doctor_checks.py) runs the task's own trainer for a few updates and restores it. Most checks are in
A. Karpathy's recipe (http://karpathy.github.io/2019/04/25/recipe/, 2019). See docs/finding_settings.md.
"""

import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from engine.options.parser import OptionParser, run_main
from tools.digest import digests
from tools.doctor_checks import CHECKS, NEED_LABELS, CannotTell, Finding, Patient, differing_parts
from tools.snapshot import Snapshot
from tools.task import parts_of, read_command, run_tool, trial
from trainer import TrainerBase

OK, PROBLEM, SKIPPED = "ok", "problem", "skipped"
STATUS = 1  # the exit status when there is a problem


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(prog="python -m tools.doctor", description=__doc__.split("\n")[0])
    _, task, options = read_command(parser, argv)
    with tempfile.TemporaryDirectory() as directory:

        def change(opt: Namespace) -> dict[str, Any]:
            # One process sees every layer's gradient; compiled modules call no hooks.
            return {"output_dir": directory, "nproc": 1, "parallel": "none", "compile": False}

        run_tool(trial(task, examine, change), options)


def examine(trainer: TrainerBase) -> None:
    """Make all checks and print a line for each.

    Raises:
        SystemExit: with status 1, when there is a problem.
    """
    before = digests(trainer.state_dict())
    results = diagnose(trainer)
    if differing := differing_parts(before, digests(trainer.state_dict())):
        results["restored"] = (PROBLEM, f"load_state_dict does not restore {', '.join(differing)}")
    print(f"\nThe doctor on {type(trainer).__name__}:")
    for name, (outcome, text) in results.items():
        print(f"  {outcome:<8} {name:<19} {text}")
    num_problems = sum(outcome == PROBLEM for outcome, _ in results.values())
    print(f"{num_problems or 'No'} problem{'' if num_problems == 1 else 's'} found.", flush=True)
    if num_problems:
        sys.exit(STATUS)


def diagnose(trainer: TrainerBase) -> dict[str, tuple[str, str]]:
    """Make all checks on a trainer and return their results; the trainer is restored, bit for bit."""
    update = next(iter(trainer.train_loader.updates(0)))
    patient = Patient(trainer, update, Snapshot(parts_of(trainer)))
    results: dict[str, tuple[str, str]] = {}
    for name in CHECKS:
        if results.get("labels and shapes", (OK,))[0] == PROBLEM and name in NEED_LABELS:
            results[name] = (SKIPPED, "labels and shapes must fit first")
        else:
            results[name] = run_check(name, patient)
    return results


def run_check(name: str, patient: Patient) -> tuple[str, str]:
    """Return the outcome of a check, ok or problem or skipped, and its description; the trainer is restored."""
    patient.trainer.set_train_mode()
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


if __name__ == "__main__":
    run_main(main)
