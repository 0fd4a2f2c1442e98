"""Train one task many times: over a grid of options, or where a search leads.

    python sweep.py trainer_vanilla.py --grid lr=1e-3,3e-4 optim=adamW,sgd --seeds 3 -- --n_epoch 5
    python sweep.py trainer_vanilla.py --search lr=log:1e-5..1e-1 batch_size=int:16..128 --trials 20
    python sweep.py trainer_vanilla.py --grid optim_args.eps=1e-8,1e-6 "optim_args.betas=[0.9,0.95],[0.9,0.999]"

docs/sweeps.md explains it. The options after -- go to the trainer.
"""

import shlex
import sys
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from engine.options.parser import (
    BoolAction,
    OptionParser,
    Options,
    changed,
    device_ids,
    file_name,
    file_path,
    number,
    run_main,
)
from engine.registry import load
from engine.runs.lock import DirectoryLock, is_locked
from options import import_asked, train_parser
from tools.sweep.plan import MAX_TRIALS, Plan, by_name, extreme_settings, grid_settings, parse_grid, parse_search
from tools.sweep.report import report
from tools.sweep.runner import Runner
from tools.sweep.study import Study
from tools.task_program import command_of, load_class
from trainer import TrainerBase
from utils.earlystopper import direction
from utils.errors import UserError
from utils.timestamp import make_timestamped_dir

COMMAND = "command.txt"  # in the directory of a sweep: the command that resumes it
OF_SEARCH = ("trials", "prune", "prune_after", "search_seed")
# Options of the trainer that a sweep sets itself, or that a run of a sweep cannot have.
RESERVED = {
    "output_dir": "each run has a directory in that of the sweep",
    "resume": "--resume of the sweep continues all runs",
    "seed": "--seeds says how many",
    "print_config": "it trains nothing",
    "requeue": "a scheduler restarts the sweep, not its runs",
}
# Options that all runs may share, but that cannot be swept.
SHARED = {
    "config": "give the sweep a file instead",
    "gpu_devices": "--devices says which",
    "monitor": "all runs are compared by one metric; give it after --",
    "monitor_mode": "all runs are compared by one metric; give it after --",
    "logger": "the sweep reads metrics.csv of each run",
}


def build_parser() -> OptionParser:
    """Return the parser of the sweep's own options."""
    parser = OptionParser(
        prog="sweep.py",
        description=__doc__.split("\n")[0],
        usage="python sweep.py TRAINER (--grid NAME=V,V ... | --search NAME=SPACE ...) [options] [-- of the trainer]",
    )
    count = number(int, low=1, high=MAX_TRIALS)
    add = parser.add_argument
    add("--trainer", type=file_path, default=None, metavar="PROGRAM",
        help="trainer_vanilla.py, or a module such as examples.own_task; also as the first argument")
    add("--grid", nargs="+", action="extend", default=None, metavar="NAME=V,V",
        help="options and their values, also as optim_args.eps; all combinations are run")
    add("--search", nargs="+", action="extend", default=None, metavar="NAME=SPACE",
        help="options with LOW..HIGH, log:LOW..HIGH, int:LOW..HIGH, or a list of values; Optuna proposes")
    add("--trials", type=count, default=20, metavar="N", help="number of trials of a search")
    add("--seeds", type=number(int, low=1, high=1000), default=1, metavar="N",
        help="run each setting with the seeds 0 to N-1")
    add("--options", nargs="+", action="extend", default=None, metavar="NAME=VALUE",
        help="options of the trainer, the same for all runs; they may also stand after --")
    add("--devices", type=device_ids, default=None, metavar="IDS", help="GPU ids, such as 0,1,2: a run on each")
    add("--jobs", type=number(int, low=1, high=256), default=1, metavar="N", help="number of runs side by side")
    add("--prune", action=BoolAction, default=True,
        help="stop a trial of a search whose metric is worse than the median of the others after as many epochs")
    add("--prune_after", type=number(int, low=0, high=MAX_TRIALS), default=5, metavar="N",
        help="finished trials before one may be pruned")
    add("--search_seed", type=number(int, low=0, high=2**31), default=0, metavar="N", help="seed of the proposals")
    add("--storage", type=file_path, default=None, metavar="WHERE",
        help="where Optuna keeps the study: a file, or a URL such as sqlite:///sweep.db; for several machines, one "
        "that all see (default: a file in the directory of the sweep)")
    add("--study", type=file_name, default="sweep", metavar="NAME", help="name of the study in the storage")
    add("--output_dir", type=file_path, default="./Results/Sweep/", metavar="DIR",
        help="a sweep goes to DIR/TIMESTAMP")
    add("--config", type=file_path, action="extend", nargs="+", default=None, metavar="FILE",
        help="option files, JSON or YAML; later ones win")
    add("--resume", type=file_path, default=None, metavar="DIR",
        help="a sweep to continue, with the rest of its command repeated; finished runs stay")
    return parser


# ---- options ---------------------------------------------------------------------------------------------------------
def parse(argv: Sequence[str]) -> Options:
    """Return the options of the sweep, with those of the trainer for all runs as `opt.flags`.

    Raises:
        UserError: when something is missing or contradicts something else.
    """
    own, flags = split_at_dashes(argv)
    if own and not own[0].startswith("-"):
        own[0] = f"--trainer={own[0]}"
    parser = build_parser()
    given = parser.parse_given(own)
    opt = parser.resolve(own)
    lists = {name: given.get(name) or getattr(opt, name) or [] for name in ("grid", "search", "options")}
    opt = Options(**vars(opt) | lists)  # a list of a file is replaced by that of the command line, not extended
    if not opt.trainer:
        raise UserError("Say which trainer: python sweep.py trainer_vanilla.py --grid lr=1e-3,3e-4")
    if bool(opt.grid) == bool(opt.search):
        hint = f" To resume a sweep, repeat its command: it is in {Path(opt.resume, COMMAND)}." if opt.resume else ""
        raise UserError(f"Give either --grid or --search: the options to try.{hint}")
    for name in OF_SEARCH:
        if opt.grid and name in given:
            raise UserError(f"--{name} is for --search; a grid runs all of its combinations.")
    if opt.devices and opt.jobs > 1:
        raise UserError("--devices says how many runs go on side by side: one on each. Leave --jobs out.")
    return changed(opt, flags=[*flags_of(by_name(opt.options, "--options")), *flags])


def split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words before and after the first --."""
    end = argv.index("--") if "--" in argv else len(argv)
    return [*argv[:end]], [*argv[end + 1 :]]


def flags_of(options: Mapping[str, str]) -> list[str]:
    """Return options as flags; an argument of a class, whose name has dots, as one of --set."""
    return [f"--set={name}={value}" if "." in name else f"--{name}={value}" for name, value in options.items()]


def make_plan(opt: Options) -> Plan:
    """Return what the sweep tries, checked by the trainer's own parser, which ends the program at an error.

    Raises:
        UserError: for a value that cannot be read, and an option that cannot be swept or changes nothing.
    """
    spaces = parse_grid(opt.grid) if opt.grid else parse_search(opt.search)
    command_of(opt.trainer)  # an error now, and not for each run
    trainer_class = load_class(opt.trainer, TrainerBase, "trainer")
    import_asked(opt.flags)
    refuse_reserved(train_parser(trainer_class).parse_given(opt.flags), spaces)
    settings = grid_settings(spaces) if opt.grid else extreme_settings(spaces)
    runs = [parse_run(trainer_class, opt.flags, each) for each in settings]
    for name in spaces:
        if not any(name in effective for _, effective in runs):
            raise UserError(f"--{name} is swept, and has no effect in any of the runs. Leave it out.")
    first, _ = runs[0]
    if "csv" not in first.logger:
        raise UserError("A sweep reads metrics.csv: --logger needs csv among its names.")
    if not all(run.val_every for run, _ in runs):
        raise UserError("A sweep compares by a metric of the validation: --val_every 0 leaves nothing to compare.")
    different = {str(vars(run)): effective for run, effective in runs}  # the same run twice would say nothing
    return Plan(
        task=trainer_class.__name__,
        metric=first.monitor,
        mode=direction(first.monitor, first.monitor_mode),
        spaces=spaces,
        grid=list(different.values()) if opt.grid else [],
        effective=lambda settings: parse_run(trainer_class, opt.flags, settings)[1],
    )


def refuse_reserved(given: Mapping[str, Any], swept: Collection[str]) -> None:
    """Raise UserError for an option that is not to be given to all runs, or not to be swept, or is both.

    Args:
        given: the options of all runs.
        swept: the names of those that differ.
    """
    common = [*given, *[name for name, _ in given.get("set") or []]]
    reasons = {**dict.fromkeys(common, RESERVED), **dict.fromkeys(swept, RESERVED | SHARED)}
    for name, reserved in reasons.items():
        head = name.split(".")[0]
        if head in reserved:
            raise UserError(f"--{head} is not for a run of a sweep: {reserved[head]}.")
        if name in common and name in swept:
            raise UserError(f"--{name} is swept, and has one value for all runs as well. Leave one out.")


def parse_run(
    trainer_class: type[TrainerBase], flags: Sequence[str], settings: Mapping[str, str]
) -> tuple[Namespace, Mapping[str, str]]:
    """Return the options of a run, and its settings without those that have no effect beside the others.

    So optim=adamW,sgd and momentum=0.8,0.9 can be swept together, though adamW has no momentum.
    """
    without_effect = load("extras.without_effect:WithoutEffect", "grid")
    try:
        return trainer_class.parse_options([*flags, "--seed=0", *flags_of(settings)]), settings
    except without_effect as error:
        effective = {name: text for name, text in settings.items() if name.split(".")[0] != error.option}
        if len(effective) == len(settings):  # an option of all runs
            raise
        return parse_run(trainer_class, flags, effective)


# ---- the sweep -------------------------------------------------------------------------------------------------------
def open_directory(opt: Options, argv: Sequence[str]) -> tuple[Path, DirectoryLock]:
    """Return the directory of the sweep and its lock: a new one, with the command that resumes it, or an old one."""
    if opt.resume and not Path(opt.resume, COMMAND).is_file():
        raise UserError(f"--resume {opt.resume} is not the directory of a sweep.")
    root = Path(opt.resume) if opt.resume else make_timestamped_dir(opt.output_dir)
    lock = DirectoryLock(root, "sweep")
    if not opt.resume:
        own, flags = split_at_dashes(argv)
        command = shlex.join(["python", "sweep.py", *own, f"--resume={root}", *(["--", *flags] if flags else [])])
        (root / COMMAND).write_text(f"{command}\n", encoding="utf-8")
    for path in root.glob("runs/*/*/"):
        if is_locked(path):
            raise UserError(f"{path} is still running. Wait for its end, or stop it.")
    return root, lock


def make_command(opt: Options, settings: Mapping[str, str], seed: int, directory: Path, slot: int) -> list[str]:
    """Return the command of a run."""
    options = {**settings, "seed": str(seed), "output_dir": str(directory), "resume": "auto"}
    if opt.devices:
        options["gpu_devices"] = opt.devices.replace(" ", "").split(",")[slot]
    return [*command_of(opt.trainer), *opt.flags, *flags_of(options)]


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    opt = parse(argv)
    plan = make_plan(opt)
    num_slots = len(opt.devices.split(",")) if opt.devices else opt.jobs
    root, lock = open_directory(opt, argv)
    with lock:
        study = Study(opt, root, plan)
        print(f"Sweep directory: {root}", flush=True)
        try:
            Runner(root, study, partial(make_command, opt), num_slots).run()
        except (KeyboardInterrupt, SystemExit):
            print(f"Stopped. To go on: {(root / COMMAND).read_text(encoding='utf-8')}", end="", flush=True)
            raise
        finally:
            is_complete = report(root, study)
    if not is_complete:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
