"""Train one task many times: over a grid of options, or where a search leads.

    python sweep.py trainer_vanilla.py --grid lr=1e-3,3e-4 optim=adamW,sgd --seeds 3 -- --n_epoch 5
    python sweep.py trainer_vanilla.py --search lr=log:1e-5..1e-1 batch_size=int:16..128 --trials 20
    python sweep.py trainer_vanilla.py --grid optim_args.eps=1e-8,1e-6 "optim_args.betas=[0.9,0.95],[0.9,0.999]"

docs/sweeps.md explains it. What comes after -- goes to the trainer.
"""

import socket
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from base_options import import_asked, train_parser
from engine.options.files import read_options
from engine.options.parser import (
    BoolAction,
    ExtendAction,
    OptionParser,
    device_ids,
    file_name,
    file_path,
    number,
    run_main,
)
from engine.options.plugins import KINDS, is_reference, names_code
from engine.options.task_program import load_class
from engine.runs.lock import DirectoryLock, is_locked
from parts import try_out
from tools.sweep.plan import MAX_TRIALS, Choice, Range, by_name, combinations, parse_grid, parse_search
from tools.sweep.record import FINISHED, PRUNED, Run, Trial, load_trials, save_trials
from tools.sweep.report import failures, plot, table, write_csv
from tools.sweep.runner import NoMore, Runner, python_command
from trainer import TrainerBase
from utils.earlystopper import direction
from utils.errors import UserError, shown
from utils.files import write_json
from utils.timestamp import make_timestamped_dir

PLAN, RECORD = "sweep.json", "trials.json"  # in the directory of a sweep
OF_SEARCH = ("trials", "prune", "prune_after", "search_seed", "storage", "study")
OF_THE_PLAN = ("grid", "search", "seeds", "options", "flags")  # makes a sweep what it is, and cannot change on a resume
# What the sweep itself gives to a run, or what a run must not do.
OWN = {
    "output_dir": "each has a directory in that of the sweep", "resume": "the sweep's --resume goes on with all",
    "seed": "--seeds says how many", "replay": "it trains nothing", "verify_resume": "it is no training",
    "print_config": "it trains nothing",
    "requeue": "the sweep is what a scheduler starts again", "config": "the sweep's --config has another meaning",
    "gpu_devices": "--devices says which", "monitor": "all are compared by one metric; give it after --",
    "monitor_mode": "all are compared by one metric; give it after --", "logger": "each needs metrics.csv",
}  # fmt: skip
COMMON = ("gpu_devices", "monitor", "monitor_mode", "logger", "config")  # those that may have one value for all runs
MADE_BY = [name for names in KINDS.values() for name in names if name]  # what selects a class, or gives it arguments


def build_parser() -> OptionParser:
    """The parser of the sweep's own options."""
    parser = OptionParser(
        prog="sweep.py", description=__doc__.split("\n")[0],
        usage="python sweep.py TRAINER (--grid NAME=V,V ... | --search NAME=SPACE ...) [options] [-- of the trainer]",
    )  # fmt: skip
    count = number(int, low=1, high=MAX_TRIALS)
    add = parser.add_argument
    add("--trainer", type=file_path, default=None, metavar="PROGRAM",
        help="trainer_vanilla.py, or a module such as examples.own_task; also as the first argument")
    add("--grid", nargs="+", action=ExtendAction, default=None, metavar="NAME=V,V",
        help="options with the values that each is to take, also as optim_args.eps; all combinations are run")
    add("--search", nargs="+", action=ExtendAction, default=None, metavar="NAME=SPACE",
        help="options with LOW..HIGH, log:LOW..HIGH, int:LOW..HIGH, or a list of values; Optuna proposes")
    add("--trials", type=count, default=20, metavar="N", help="how many trials a search makes")
    add("--seeds", type=number(int, low=1, high=1000), default=1, metavar="N",
        help="run each setting with the seeds 0 to N-1")
    add("--options", nargs="+", action=ExtendAction, default=None, metavar="NAME=VALUE",
        help="options of the trainer, the same for all runs, as they may also stand after --")
    add("--devices", type=device_ids, default=None, metavar="IDS", help="GPU ids, such as 0,1,2: a run on each")
    add("--jobs", type=number(int, low=1, high=256), default=1, metavar="N", help="so many runs side by side")
    add("--prune", action=BoolAction, default=True,
        help="stop a trial of a search whose metric is worse than the median of the others after as many epochs")
    add("--prune_after", type=number(int, low=0, high=MAX_TRIALS), default=5, metavar="N",
        help="finished trials before one may be pruned")
    add("--search_seed", type=number(int, low=0, high=2**31), default=0, metavar="N", help="of what Optuna proposes")
    add("--storage", type=file_path, default=None, metavar="WHERE",
        help="where Optuna keeps the study: a file, or a URL such as sqlite:///sweep.db; for several machines, one "
        "that all see (default: a file in the directory of the sweep)")
    add("--study", type=file_name, default="sweep", metavar="NAME", help="name of the study in the storage")
    add("--output_dir", type=file_path, default="./Results/Sweep/", metavar="DIR",
        help="a sweep goes to DIR/TIMESTAMP")
    add("--config", type=file_path, action=ExtendAction, nargs="+", default=None, metavar="FILE",
        help="option files, JSON or YAML; later ones win")
    add("--resume", type=file_path, default=None, metavar="DIR", help="a sweep to go on with; finished runs stay")
    return parser


# ---- what is asked for -----------------------------------------------------------------------------------------------
def parse(argv: Sequence[str]) -> tuple[Namespace, dict[str, Any]]:
    """The options of the sweep, with the trainer's for all runs as `opt.flags`; and those a resumed sweep began with.

    Raises:
        UserError: when something is missing or contradicts something else.
    """
    place = argv.index("--") if "--" in argv else len(argv)
    own, flags = [*argv[:place]], [*argv[place + 1 :]]
    if own and not own[0].startswith("-"):
        own[0] = f"--trainer={own[0]}"
    parser = build_parser()
    given, saved, layers = parser.parse_given(own), {}, []
    if given.get("resume"):
        path = Path(given["resume"]) / PLAN
        saved = read_options(path)
        layers = [({name: value for name, value in saved.items() if name not in ("trainer", "flags")}, str(path))]
    opt = parser.resolve(own, layers)
    for name in ("grid", "search", "options"):
        setattr(opt, name, given.get(name) or getattr(opt, name) or [])  # those of a file are replaced, not extended
    if not opt.trainer:  # nor does a sweep's directory name the program that is run
        raise UserError("Say which trainer: python sweep.py trainer_vanilla.py --grid lr=1e-3,3e-4")
    if bool(opt.grid) == bool(opt.search):
        raise UserError("Give --grid or --search, and not both: what is to be tried.")
    if opt.grid and (idle := [name for name in OF_SEARCH if getattr(opt, name) != build_parser().get_default(name)]):
        raise UserError(f"--{idle[0]} is for --search; a grid runs all of its combinations.")
    if opt.devices and opt.jobs > 1:
        raise UserError("--devices says how many runs go on side by side: one on each. Leave --jobs out.")
    opt.flags = flags or saved.get("flags") or []
    if saved and (named := set(names_code([*opt.flags, *opt.grid, *opt.search, *opt.options])) - set(argv)):
        raise UserError(
            f"{path} names code of somebody's own, or a file that may ({shown(' '.join(sorted(named)))}), which is "
            f"imported only when you name it. If you trust it, repeat the flags behind --, and --grid or --search."
        )
    for name in OF_THE_PLAN if saved else ():
        if getattr(opt, name) != saved.get(name, []):
            given, before = shown(getattr(opt, name)), shown(saved.get(name, []))
            raise UserError(f"{name} {given} contradicts the sweep {opt.resume}, with {before}. Begin a new one.")
    return opt, saved


def load_trainer(program: str) -> type[TrainerBase]:
    """The trainer that a program defines; UserError when there is none, or more than one."""
    if is_reference(program):
        raise UserError(f"--trainer {program} is no program: give its file, or a module such as examples.own_task.")
    return load_class(program, TrainerBase, "trainer")


def flags_of(options: Mapping[str, str]) -> list[str]:
    """Options as flags; an argument of a class, whose name has dots, as one of --set."""
    return [f"--set={name}={value}" if "." in name else f"--{name}={value}" for name, value in options.items()]


def check(trainer_class: type[TrainerBase], opt: Namespace, spaces: Mapping[str, Range | Choice]) -> Namespace:
    """Let the trainer check everything that the sweep will give to it; it ends the program with what it would refuse.

    Returns:
        The options of a first run.

    Raises:
        UserError: for an option that is not to be swept.
    """
    options = by_name(opt.options, "--options")
    swept = parse_grid(opt.grid) if opt.grid else {name: space.ends() for name, space in spaces.items()}
    import_asked(opt.flags)
    given = train_parser(trainer_class).parse_given(opt.flags)
    named = [*given, *(name for name, _ in given.get("set") or [])]
    for name in (*swept, *options, *named):
        head = name.split(".")[0]
        if head in OWN and (name in swept or head not in COMMON):
            raise UserError(f"--{head} is not to be given to a run of a sweep: {OWN[head]}.")
    if twice := sorted(swept.keys() & {*options, *named}):
        raise UserError(f"--{twice[0]} is to be swept, and has one value for all runs as well. Leave one out.")
    common, first = [*opt.flags, *flags_of(options), "--seed=0"], {name: values[0] for name, values in swept.items()}
    tried = combinations(swept) if opt.grid else [first | {name: end} for name, ends in swept.items() for end in ends]
    parsed = [trainer_class.parse_options([*common, *flags_of(settings)]) for settings in tried]
    if "csv" not in parsed[0].logger:
        raise UserError("A sweep reads metrics.csv: --logger needs csv among its names.")
    if any(not opt.val_every for opt in parsed):
        raise UserError("A sweep compares by a metric of the validation: --val_every 0 leaves nothing to compare.")
    if heads := {name.split(".")[0] for name in swept} & set(MADE_BY):
        different = {str([getattr(each, name, None) for name in MADE_BY]): each for each in parsed}
        for each in different.values():
            try_out(trainer_class, each, with_data=bool(heads & set(KINDS["data"])))
    return parsed[0]


# ---- the sweep -------------------------------------------------------------------------------------------------------
def begin(opt: Namespace, trials: list[Trial]) -> tuple[Path, DirectoryLock]:
    """Make the directory of a new sweep, with its plan and its first trials.

    Returns:
        The directory and its lock.
    """
    root, _ = make_timestamped_dir(opt.output_dir)
    lock = DirectoryLock(root, "sweep")
    kept = {name: value for name, value in vars(opt).items() if name not in ("config", "resume") and value != []}
    write_json(root / PLAN, kept)
    save_trials(root / RECORD, trials)
    return root, lock


def go_on(opt: Namespace) -> tuple[Path, DirectoryLock, list[Trial]]:
    """Return to a sweep that was broken off; UserError while one of its runs is still at work."""
    root = Path(opt.resume)
    lock, trials = DirectoryLock(root, "sweep"), load_trials(root / RECORD)
    if busy := [path for path in root.glob("runs/*/*/") if is_locked(path)]:
        raise UserError(f"{busy[0]} is still at work. Wait for its end, or stop it.")
    return root, lock, trials


def search(opt: Namespace, spaces: Mapping[str, Range | Choice], root: Path, first: Namespace):
    """Return the supply of trials of a search."""
    from tools.sweep.search import Search, open_storage

    plan = {name: getattr(opt, name) for name in ("trainer", *OF_THE_PLAN)} | {"metric": first.monitor}
    return Search(
        spaces, open_storage(opt.storage or str(root / "optuna.journal")), opt.study, plan,
        mode=direction(first.monitor, first.monitor_mode), num_trials=opt.trials, seeds=range(opt.seeds),
        prune_after=opt.prune_after if opt.prune else None, seed=opt.search_seed,
        owner=f"{socket.gethostname()} {root.resolve()}",
    )  # fmt: skip


def report(root: Path, trials: list[Trial], metric: str, mode: str) -> None:
    """Print the table, and save it and the picture."""
    write_csv(root / "table.csv", trials, metric, mode)
    print(f"\n{table(trials, metric, mode)}")
    names = ["table.csv", *(["sweep.png"] if plot(root / "sweep.png", trials, metric, mode) else [])]
    print("\n".join(["", *failures(trials), f"Saved in {root}: {', '.join(names)}"]), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    opt, saved = parse(sys.argv[1:] if argv is None else argv)
    spaces = parse_search(opt.search)
    first = check(trainer_class := load_trainer(opt.trainer), opt, spaces)
    if saved and saved.get("class") != trainer_class.__name__:
        raise UserError(f"{opt.resume} is a sweep of {saved.get('class')}, and not of {trainer_class.__name__}.")
    if opt.search:
        from tools.sweep.search import import_optuna

        import_optuna()  # before anything is written
    opt.__dict__["class"] = trainer_class.__name__
    settings = combinations(parse_grid(opt.grid)) if opt.grid else []
    trials = [Trial(number, each, [Run(seed) for seed in range(opt.seeds)]) for number, each in enumerate(settings)]
    if opt.resume:
        root, lock, trials = go_on(opt)
    else:
        root, lock = begin(opt, trials)
    slots = opt.devices.replace(" ", "").split(",") if opt.devices else [None] * opt.jobs
    metric, mode = first.monitor, direction(first.monitor, first.monitor_mode)

    def command(settings: dict[str, str], seed: int, directory: Path, slot: int) -> list[str]:
        of_run = {"seed": str(seed), "output_dir": str(directory), "resume": "auto"}
        of_run |= {} if slots[slot] is None else {"gpu_devices": slots[slot]}
        flags = [*opt.flags, *flags_of(by_name(opt.options, "--options") | settings | of_run)]
        return python_command(opt.trainer, flags)

    with lock:
        supply = search(opt, spaces, root, first) if opt.search else NoMore()
        if opt.search:
            supply.take_back(trials)
        print(f"Sweep directory: {root}", flush=True)
        try:
            Runner(root, trials, supply, command, len(slots), metric, mode, say=partial(print, flush=True)).run()
        except (KeyboardInterrupt, SystemExit):
            print(f"Stopped. To go on: python sweep.py {opt.trainer} --resume {root}", flush=True)
            raise
        finally:
            report(root, trials, metric, mode)
        if opt.search and (line := supply.summary()):
            print(line)
    if any(run.state != FINISHED for trial in trials for run in trial.runs if run.state != PRUNED):
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
