"""Train one task many times: over a grid of options, or where a search leads.

    python sweep.py trainer_vanilla.py --grid lr=1e-3,3e-4 optim=adamW,sgd --seeds 3 -- --n_epoch 5
    python sweep.py trainer_vanilla.py --search lr=log:1e-5..1e-1 batch_size=int:16..128 --trials 20
    python sweep.py trainer_vanilla.py --grid optim_args.eps=1e-8,1e-6 "optim_args.betas=[0.9,0.95],[0.9,0.999]"

docs/sweeps.md explains it. The options after -- go to the trainer.
"""

import re
import socket
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

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
from engine.registry import is_reference, reference_in
from engine.runs.lock import DirectoryLock, is_locked
from options import import_asked, train_parser
from tools.sweep.plan import (
    MAX_TRIALS,
    by_name,
    extreme_settings,
    grid_settings,
    import_optuna,
    parse_grid,
    parse_search,
)
from tools.sweep.report import failures, importance, plot, table, write_csv
from tools.sweep.runner import Runner, python_command
from tools.sweep.study import FINISHED, PRUNED, Study, open_storage
from tools.task_program import load_class
from trainer import TrainerBase
from utils.earlystopper import direction
from utils.errors import UserError, shown
from utils.files import write_json
from utils.timestamp import make_timestamped_dir

PLAN = "sweep.json"  # in the directory of a sweep
OF_SEARCH = ("trials", "prune", "prune_after", "search_seed")
OF_THE_PLAN = ("grid", "search", "seeds", "options", "flags")  # they define a sweep, and stay when it is resumed
# Options of the trainer that a sweep sets itself, or that a run of a sweep cannot have.
RESERVED = {
    "output_dir": "each run has a directory in that of the sweep",
    "resume": "--resume of the sweep continues all runs",
    "seed": "--seeds says how many",
    "print_config": "it trains nothing",
    "requeue": "a scheduler restarts the sweep, not its runs",
    "config": "give the sweep a file instead",
    "gpu_devices": "--devices says which",
    "monitor": "all runs are compared by one metric; give it after --",
    "monitor_mode": "all runs are compared by one metric; give it after --",
    "logger": "the sweep reads metrics.csv of each run",
}
COMMON = ("gpu_devices", "monitor", "monitor_mode", "logger", "config")  # reserved ones that all runs may share


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
    add("--grid", nargs="+", action=ExtendAction, default=None, metavar="NAME=V,V",
        help="options and their values, also as optim_args.eps; all combinations are run")
    add("--search", nargs="+", action=ExtendAction, default=None, metavar="NAME=SPACE",
        help="options with LOW..HIGH, log:LOW..HIGH, int:LOW..HIGH, or a list of values; Optuna proposes")
    add("--trials", type=count, default=20, metavar="N", help="number of trials of a search")
    add("--seeds", type=number(int, low=1, high=1000), default=1, metavar="N",
        help="run each setting with the seeds 0 to N-1")
    add("--options", nargs="+", action=ExtendAction, default=None, metavar="NAME=VALUE",
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
    add("--config", type=file_path, action=ExtendAction, nargs="+", default=None, metavar="FILE",
        help="option files, JSON or YAML; later ones win")
    add("--resume", type=file_path, default=None, metavar="DIR", help="a sweep to continue; finished runs stay")
    return parser


# ---- options ---------------------------------------------------------------------------------------------------------
def parse(argv: Sequence[str]) -> Namespace:
    """Return the options of the sweep, with the trainer's for all runs as `opt.flags`.

    Raises:
        UserError: when something is missing or contradicts something else.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    own = [*argv[:end]]
    flags = [*argv[end + 1 :]]
    if own and not own[0].startswith("-"):
        own[0] = f"--trainer={own[0]}"
    parser = build_parser()
    given = parser.parse_given(own)
    saved = {}
    layers = []
    if given.get("resume"):
        path = Path(given["resume"]) / PLAN
        saved = read_options(path)
        layers = [({name: value for name, value in saved.items() if name != "flags"}, str(path))]
    opt = parser.resolve(own, layers)
    for name in ("grid", "search", "options"):
        setattr(opt, name, given.get(name) or getattr(opt, name) or [])  # those of a file are replaced, not extended
    opt.flags = flags or saved.get("flags") or []
    if not opt.trainer:  # the directory of a sweep does not say which program to run
        raise UserError("Say which trainer: python sweep.py trainer_vanilla.py --grid lr=1e-3,3e-4")
    if bool(opt.grid) == bool(opt.search):
        raise UserError("Give either --grid or --search: the options to try.")
    for name in OF_SEARCH if opt.grid else ():
        if name in given and given[name] != build_parser().get_default(name):  # resolve() has changed the defaults
            raise UserError(f"--{name} is for --search; a grid runs all of its combinations.")
    if opt.devices and opt.jobs > 1:
        raise UserError("--devices says how many runs go on side by side: one on each. Leave --jobs out.")
    if saved:
        refuse_code(path, [*opt.flags, *opt.grid, *opt.search, *opt.options], argv)
    return opt


def refuse_code(path: Path, texts: Iterable[str], argv: Sequence[str]) -> None:
    """Raise UserError when texts of a saved plan would import code, or read a file, that the user has not named."""
    imports = re.compile(r"(--)?(import|config|set)(=.*)?", re.DOTALL)
    for text in texts:
        names_code = imports.fullmatch(text) or any(map(reference_in, re.split(r"[=,\s\[\]\"']+", text)))
        if names_code and text not in argv:
            raise UserError(
                f"{path} names code of your own, or a file that may ({shown(text)}), which is imported only when you "
                f"name it. If you trust it, repeat the flags behind --, and --grid, --search or --options."
            )


def load_trainer(program: str) -> type[TrainerBase]:
    """Return the trainer that a program defines; UserError when there is none, or more than one."""
    if is_reference(program):
        raise UserError(f"--trainer {program} is not a program: give a file, or a module such as examples.own_task.")
    return load_class(program, TrainerBase, "trainer")


def flags_of(options: Mapping[str, str]) -> list[str]:
    """Return options as flags; an argument of a class, whose name has dots, as one of --set."""
    return [f"--set={name}={value}" if "." in name else f"--{name}={value}" for name, value in options.items()]


def check(trainer_class: type[TrainerBase], opt: Namespace, settings: Sequence[Mapping[str, str]]) -> Namespace:
    """Check the options of the runs with the trainer's own parser, which ends the program at an error.

    Args:
        trainer_class: the task's.
        opt: of the sweep.
        settings: the swept options of some runs, each value at least once.

    Returns:
        The options of a first run.

    Raises:
        UserError: for an option that is not to be swept.
    """
    swept = settings[0].keys()
    import_asked(opt.flags)
    given = train_parser(trainer_class).parse_given(opt.flags)
    common = [*given, *[name for name, _ in given.get("set") or []], *by_name(opt.options, "--options")]
    for name in (*swept, *common):
        head = name.split(".")[0]
        if head in RESERVED and (name in swept or head not in COMMON):
            raise UserError(f"--{head} is not for a run of a sweep: {RESERVED[head]}.")
    for name in swept:
        if name in common:
            raise UserError(f"--{name} is swept, and has one value for all runs as well. Leave one out.")
    flags = [*opt.flags, *flags_of(by_name(opt.options, "--options")), "--seed=0"]
    parsed = [trainer_class.parse_options([*flags, *flags_of(each)]) for each in settings]
    if "csv" not in parsed[0].logger:
        raise UserError("A sweep reads metrics.csv: --logger needs csv among its names.")
    if not all(each.val_every for each in parsed):
        raise UserError("A sweep compares by a metric of the validation: --val_every 0 leaves nothing to compare.")
    return parsed[0]


# ---- the sweep -------------------------------------------------------------------------------------------------------
def open_directory(opt: Namespace) -> tuple[Path, DirectoryLock]:
    """Return the directory of the sweep and its lock: of a new one, with its plan in it, or of one to continue."""
    if not opt.resume:
        root = make_timestamped_dir(opt.output_dir)
        lock = DirectoryLock(root, "sweep")
        left_out = ("trainer", "config", "resume")
        plan = {name: value for name, value in vars(opt).items() if name not in left_out and value != []}
        write_json(root / PLAN, plan)
        return root, lock
    root = Path(opt.resume)
    lock = DirectoryLock(root, "sweep")
    for path in root.glob("runs/*/*/"):
        if is_locked(path):
            raise UserError(f"{path} is still running. Wait for its end, or stop it.")
    return root, lock


def make_command(opt: Namespace, settings: dict[str, str], seed: int, directory: Path, slot: int) -> list[str]:
    """Return the command of a run."""
    options = by_name(opt.options, "--options") | settings
    options |= {"seed": str(seed), "output_dir": str(directory), "resume": "auto"}
    if opt.devices:
        options["gpu_devices"] = opt.devices.replace(" ", "").split(",")[slot]
    return python_command(opt.trainer, [*opt.flags, *flags_of(options)])


def report(root: Path, study: Study, metric: str, mode: str) -> bool:
    """Print the table, and save it and the picture; return whether every run has finished or was pruned."""
    trials = study.trials()
    num_finished = sum(trial.mean is not None for trial in trials)
    names = ["table.csv"]
    write_csv(root / "table.csv", trials, metric, mode)
    if num_finished:
        plot(root / "sweep.png", study, metric)
        names.append("sweep.png")
    saved = f"Saved in {root}: {', '.join(names)}"
    lines = [table(trials, metric, mode), "", *failures(trials), importance(study, num_finished), saved]
    print("\n" + "\n".join(line for number, line in enumerate(lines) if line or number == 1), flush=True)
    return all(run.state in (FINISHED, PRUNED) for trial in trials for run in trial.runs)


def main(argv: Sequence[str] | None = None) -> None:
    opt = parse(sys.argv[1:] if argv is None else argv)
    import_optuna()  # a missing package ends the program before anything is written
    spaces = parse_grid(opt.grid) if opt.grid else parse_search(opt.search)
    grid = grid_settings(spaces) if opt.grid else None
    trainer_class = load_trainer(opt.trainer)
    first = check(trainer_class, opt, grid or extreme_settings(spaces))
    metric = first.monitor
    mode = direction(metric, first.monitor_mode)
    num_slots = len(opt.devices.split(",")) if opt.devices else opt.jobs
    root, lock = open_directory(opt)
    plan = {name: getattr(opt, name) for name in OF_THE_PLAN} | {"task": trainer_class.__name__, "metric": metric}
    with lock:
        study = Study(
            open_storage(opt.storage or str(root / "optuna.journal")),
            opt.study,
            spaces,
            plan,
            mode=mode,
            seeds=range(opt.seeds),
            grid=grid,
            num_trials=opt.trials,
            prune_after=opt.prune_after if opt.search and opt.prune else None,
            search_seed=opt.search_seed,
            owner=f"{socket.gethostname()} {root.resolve()}" if opt.storage else "",
        )
        print(f"Sweep directory: {root}", flush=True)
        try:
            Runner(root, study, partial(make_command, opt), num_slots, metric, mode, partial(print, flush=True)).run()
        except (KeyboardInterrupt, SystemExit):
            print(f"Stopped. To go on: python sweep.py {opt.trainer} --resume {root}", flush=True)
            raise
        finally:
            is_complete = report(root, study, metric, mode)
    if not is_complete:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
