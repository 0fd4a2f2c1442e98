"""Every option that all tasks share, with its default and its help, and how the options of a run are resolved.

A task adds its own options in `add_options` and changes defaults in `defaults`. Durations are in epochs and may be
fractions, unless an option says otherwise. Nothing here imports torch before the parser has answered: --help and a
wrong option should not wait for it.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import registry
from engine.options.early import Trainer, UnclearError, read_main_class
from engine.options.parser import (
    BoolAction,
    ExtendAction,
    ListAction,
    OneOrMoreAction,
    OptionParser,
    Options,
    device_ids,
    duration,
    file_name,
    file_path,
    list_of,
    mapping,
    named_value,
    number,
    one_of,
    option_files,
    pattern,
    plain_text,
    run_main,
    setting,
    weighted,
)
from utils.errors import UserError

DEBUG_BATCHES = 3  # of each part, with --debug
MAX_EPOCHS = 10**6

# Types of many options.
COUNT = number(int, low=1)
COUNT_OR_ZERO = number(int, low=0)
POSITIVE = number(float, above=0)
NOT_NEGATIVE = number(float, low=0)
EPOCHS = number(float, above=0, high=MAX_EPOCHS)
SEED = number(int, low=0, high=2**63 - 1)

# Options that were renamed. The old names are taken, too, in option files and checkpoints as well.
OLD_NAMES = {"lr_decay_steps": "lr_decay_every", "save_every_steps": "save_every_updates"}

# Options that have become programs, which are given the task's program and its options.
MOVED = {
    "doctor": "python -m tools.doctor",
    "find_lr": "python -m tools.find_lr",
    "find_lr_range": "python -m tools.find_lr --range LOW HIGH",
    "find_lr_values": "python -m tools.find_lr --values N",
    "find_lr_updates": "python -m tools.find_lr --updates N",
    "find_lr_runs": "python -m tools.find_lr --runs N",
    "kill_at": "python -m tools.kill --at N",
    "replay": "python -m tools.replay RUN",
    "trace": "python -m tools.trace --file FILE",
    "verify_resume": "python -m tools.verify_resume",
}

# Options of the machine, which an evaluation does not take from a checkpoint.
OF_THE_LAUNCH = ("model_path", "gpu_devices", "data_device", "debug", "limit_batches", "save_path")

# Options that may change when a run is resumed. All others make it what it is, those of a task included.
MAY_CHANGE = (
    "n_epoch", "patience", "description", "output_dir", "data_dir", "data_device", "pretrained", "model_path",
    "micro_batch_size", "eval_batch_size", "num_workers", "worker_timeout", "skip_bad_samples", "gpu_devices",
    "parallel", "compile", "channels_last", "deterministic", "log_every", "save_every", "save_every_updates", "keep",
    "max_time", "nan_policy", "max_skips", "cache", "cache_dir", "shard_cache_dir", "shard_cache_gb", "nproc",
    "dist_timeout", "max_restarts", "activation_checkpointing", "checkpoint_format", "metrics", "logger", "save_code",
    "metric_args", "callbacks", "import", "max_updates", "stop_below",
)  # fmt: skip


# ---- training and evaluation -----------------------------------------------------------------------------------------
def add_common_options(parser: OptionParser, task: str | None) -> None:
    """Add the options that training and evaluation share; `task` narrows the choice of data, model and loss."""
    add_file_options(parser)
    add_data_options(parser, task)
    add_model_options(parser, task)
    add_machine_options(parser)


def add_file_options(parser: OptionParser) -> None:
    """Add the options that name other sources of options, see docs/options.md."""
    add = group(parser, "where options come from")
    add("--config", file_path, None, "FILE", action=ExtendAction, nargs="+",
        help="option files, JSON or YAML; later ones win, and the command line wins over all")
    add("--set", setting, None, "NAME=VALUE", action=ExtendAction, nargs="+",
        help="single values, also inside of a mapping: model_args.width=64; these win over the flags")
    add("--import", registry.module_name, None, "MODULE", nargs="+",
        help="modules of your own to import first, for the names that they register")
    add("--print_config", bool, False, "BOOL", "print all options, each with its source, and stop")


def add_data_options(parser: OptionParser, task: str | None) -> None:
    """Add the options of the data."""
    add = group(parser, "data")
    data_types = registry.names("data", task)
    add("--data_type", registry.name_type("data", task), first(data_types), "NAME",
        f"{one_of_text(data_types)}MODULE:NAME of your own")
    add_arguments(add, "--data_args", "the data")
    add("--data_dir", file_path, "./Dataset", "DIR", "the directory of the data, also for a download")
    add("--train_val_sample_rate", POSITIVE, 1.0, "X",
        "how much to train and validate on: a fraction of all but the test part, or a count above 1")
    add("--test_sample_rate", POSITIVE, 1.0, "X", "how much to test on: a fraction, or a count above 1")
    add("--val_split", POSITIVE, 0.15, "X",
        "how much of the training and validation samples is for validation: a fraction, or a count above 1")
    add("--split_seed", SEED, 0, "N", "seed of the split; another --seed trains on the same split")
    add("--num_workers", number(int, low=0, high=1000, words=["auto"]), 0, "N",
        "processes that load data; 0 loads in the main process; auto measures the fastest number, which takes some "
        "seconds. Changes speed, not results")
    add("--data_device", one_of(("auto", "cpu", "cuda")), "auto", "WHERE",
        "device of data in memory: auto is the GPU that trains, if a quarter of its free memory is enough")
    add("--eval_batch_size", COUNT, None, "N",
        "samples per batch in validation and test (default: that of training). Changes speed, not results")
    add("--worker_timeout", NOT_NEGATIVE, 300.0, "S",
        "seconds to wait for a batch of the loading processes before they count as hanging; 0 for ever")
    add("--limit_batches", COUNT, None, "N", "at most N batches of each part in an epoch, for a trial run")
    add("--skip_bad_samples", COUNT_OR_ZERO, 0, "N",
        "skip samples that cannot be loaded, up to N different ones of each part")


def add_model_options(parser: OptionParser, task: str | None) -> None:
    """Add the options of the network and its loss."""
    add = group(parser, "model")
    of_library = "; torchvision:NAME or timm:NAME, a classifier of one of these libraries"
    models, losses = registry.names("model", task), registry.names("loss", task)
    add("--model_type", registry.name_type("model", task), first(models), "NAME",
        f"{one_of_text(models, of_library if task == 'classification' else '')}MODULE:NAME of your own")
    add_arguments(add, "--model_args", "the network's class, or of several networks a mapping for each, by its name")
    add("--n_channels", number(int, low=1, high=4096), 1, "N", "channels of an image")
    add("--n_classes", number(int, low=1, high=10**6), 10, "N", "number of classes")
    loss_name = weighted(registry.name_type("loss", task))
    add("--loss_type", loss_name, first(losses), "NAME", action=OneOrMoreAction, nargs="+",
        help=f"{one_of_text(losses)}MODULE:NAME of your own; or a weighted sum of several, as NAME:1.0 NAME:0.5")
    add_arguments(add, "--loss_args", "the loss, or of several losses a mapping for each, by its name")
    add("--model_path", file_path, None, "FILE", "the checkpoint to evaluate, or to start --pretrained from")


def add_machine_options(parser: OptionParser) -> None:
    """Add the options of the devices and the arithmetic."""
    add = group(parser, "machine")
    add("--gpu_devices", device_ids, "0", "IDS", "GPU ids as 0 or 0,1, among the visible ones; or cpu")
    add("--amp", one_of(("no", "bf16", "fp16")), "no", "TYPE", "mixed precision: no, bf16 or fp16")
    add("--compile", bool, False, "BOOL", "compile the networks with torch.compile")
    add("--channels_last", bool, False, "BOOL", "networks in channels-last memory order")
    add("--deterministic", bool, False, "BOOL", "only algorithms that repeat bit for bit on GPUs")
    add("--seed", SEED, None, "N", "seed of everything random; drawn, logged and saved when not given")
    add("--debug", bool, False, "BOOL", f"{DEBUG_BATCHES} batches of each part, one epoch", short="-d")


def group(parser: OptionParser, title: str) -> Callable:
    """Return a function that adds options to a new group of the help text; those of type bool are a `BoolAction`."""
    group = parser.add_argument_group(title)

    def add(name: str, kind: Callable, default: Any, metavar: str, help: str, short: str = "", **more: Any) -> None:
        names = [short, name] if short else [name]
        if kind is bool:
            group.add_argument(*names, action=BoolAction, default=default, help=help)
        else:
            group.add_argument(*names, type=kind, default=default, metavar=metavar, help=help, **more)

    return add


def add_arguments(add: Callable, name: str, owner: str) -> None:
    add(name, mapping, {}, "JSON", f"further arguments of {owner}, as '{{\"name\": value}}'")


def one_of_text(names: Sequence[str], more: str = "") -> str:
    """Return the begin of a help text; a task of a new name has no names yet."""
    return f"one of {', '.join(names)}{more}; or " if names else ""


def first(names: Sequence[str]) -> str | None:
    return names[0] if names else None


# ---- evaluation ------------------------------------------------------------------------------------------------------
def add_test_options(parser: OptionParser) -> None:
    """Add the options that only an evaluation has."""
    add = group(parser, "evaluation")
    add("--proj_name", file_name, "Evaluation", "NAME", "name of the project")
    add("--split", one_of(("test", "val", "train")), "test", "PART", "test, val or train")
    add("--save_path", file_path, "./test_viz/", "DIR", "results go to DIR/TIMESTAMP")
    add("--viz", bool, True, "BOOL", "save pictures")
    add("--use_average", bool, True, "BOOL",
        "evaluate the average of the weights, if the run has made one (--ema, --swa_start)")
    add("--allow_seen", bool, False, "BOOL", "evaluate even on data that the run has seen")


# ---- training --------------------------------------------------------------------------------------------------------
def add_train_options(parser: OptionParser) -> None:
    """Add the options that only training has."""
    add_run_options(parser)
    add_optimizer_options(parser)
    add_schedule_options(parser)
    add_finetuning_options(parser)
    add_process_options(parser)
    add_stop_options(parser)
    add_safety_options(parser)


def add_run_options(parser: OptionParser) -> None:
    """Add the options of the run directory and of the beginning."""
    add = group(parser, "run")
    loggers = registry.names("logger")
    add("--proj_name", file_name, "Plainloop", "NAME", "name of the run's files")
    add("--description", plain_text, "", "TEXT", "a note that is saved with the options")
    add("--output_dir", file_path, "./Results/", "DIR", "a run goes to DIR/TIMESTAMP")
    add("--resume", file_path, None, "PATH",
        "a run directory or checkpoint to continue, in its directory; auto: the newest unfinished, or a new one")
    add("--pretrained", bool, False, "BOOL", "start from the matching weights of --model_path")
    add("--logger", list_of(logger_name), ["tensorboard", "csv"], "NAME", action=ListAction, nargs="+",
        help=f"where the curves go: some of {', '.join(loggers)}; MODULE:NAME of your own; or none. wandb is offline "
        "unless WANDB_MODE is set")
    add("--save_code", bool, False, "BOOL", "keep a copy of this project's code in the run directory")


def logger_name(text: str) -> str:
    """An argparse type for the name of a logger, or none."""
    return text if text == "none" else registry.name_type("logger")(text)


def add_optimizer_options(parser: OptionParser) -> None:
    """Add the options of an update."""
    add = group(parser, "training")
    optimizers = registry.names("optimizer")
    add("--n_epoch", number(int, low=1, high=MAX_EPOCHS), 10, "N", "epochs")
    add("--max_updates", COUNT, None, "N",
        "end after N updates, if the epochs are not over before; the epoch that is cut short counts as one")
    add("--batch_size", COUNT, 64, "N", "samples of one optimizer update")
    add("--micro_batch_size", number(int, low=1, words=["auto"]), None, "N",
        "samples that go through the network at once (default: all of the update); auto: as many as the memory of the "
        "GPU holds. Changes memory, not results")
    add("--init", one_of(("default", "kaiming", "xavier", "xavier_normal", "orthogonal", "normal")), "default", "NAME",
        "initial weights of linear layers and convolutions: default, kaiming, xavier, xavier_normal, orthogonal or "
        "normal")
    add("--optim", registry.name_type("optimizer"), "adamW", "NAME",
        f"one of {', '.join(optimizers)}; a class of torch.optim, such as Adamax; or MODULE:NAME of your own")
    add_arguments(add, "--optim_args", "the optimizer's class")
    add("--lr", POSITIVE, 1e-3, "X", "learning rate")
    add("--weight_decay", NOT_NEGATIVE, 0.01, "X", "weight decay")
    add("--momentum", number(float, low=0, high=1), 0.9, "X", "momentum of sgd and nesterov")
    add("--clip", NOT_NEGATIVE, 0.0, "X", "gradient clipping; 0 for none")
    add("--clip_type", one_of(("norm", "value")), "norm", "TYPE",
        "clip the norm of all gradients together (norm) or each element (value)")


def add_schedule_options(parser: OptionParser) -> None:
    """Add the options of the learning rate over a run."""
    add = group(parser, "learning-rate schedule")
    schedulers = registry.names("scheduler")
    add("--lr_scheduler", registry.name_type("scheduler"), "cosine", "NAME",
        f"one of {', '.join(schedulers)}; a class of torch.optim.lr_scheduler, such as OneCycleLR; or MODULE:NAME "
        "of your own")
    add_arguments(add, "--scheduler_args", "a scheduler's class")
    add("--scheduler_step", one_of(("update", "epoch")), "update", "WHEN",
        "the learning rate changes after each update, or after each epoch")
    add("--lr_min", NOT_NEGATIVE, 0.0, "X", "lowest learning rate after warm-up, where cosine and linear end")
    add("--warmup_epoch", number(float, low=0, high=MAX_EPOCHS), 0.0, "E", "epochs of linear warm-up")
    add("--warmup_multiplier", number(float, low=1), 100.0, "X", "warm-up starts at lr / X")
    add("--lr_decay_epochs", list_of(EPOCHS), None, "E", "step: decay at these epochs", action=ListAction, nargs="+")
    add("--lr_decay_every", EPOCHS, None, "E", "step: decay every E epochs")
    add("--lr_decay_rate", number(float, above=0, high=1), 0.1, "X", "step, exponential: factor of a decay")


def add_finetuning_options(parser: OptionParser) -> None:
    """Add the options of single parameters, and of averages."""
    add = group(parser, "fine-tuning: patterns on the names of parameters, as 'layers.0.*'")
    rate = named_value(POSITIVE, "head.weight=1e-3 or 'layers.0.*=0.1x'", suffix="x")
    add("--freeze", pattern, None, "PATTERN", nargs="+",
        help="do not train these; frozen batch normalization keeps its statistics, too")
    add("--train_only", pattern, None, "PATTERN", "train these and freeze the rest", nargs="+")
    add("--param_lr", rate, None, "PATTERN=LR", nargs="+",
        help="other learning rates, as head.weight=1e-3, or multiples of --lr, as 'layers.0.*=0.1x'; of several that "
        "match the last counts, and the schedule is that of all")
    add("--param_clip", named_value(POSITIVE, "'layers.0.*=0.5'"), None, "PATTERN=NORM", nargs="+",
        help="limits for the norm of the gradients of all that match, as 'layers.0.*=0.5'; before --clip")
    add("--no_decay", pattern, None, "PATTERN", nargs="+",
        help="no weight decay of these: patterns, bias (all of that name), norm (those of normalization layers), 1d "
        "(those with one dimension)")

    add = group(parser, "averages of the weights, which are then measured")
    add("--ema", number(float, low=0, below=1), None, "X",
        "exponential moving average over the updates, which keeps the part X of itself in each, such as 0.999")
    add("--swa_start", number(int, low=1, high=MAX_EPOCHS), None, "E",
        "mean over the ends of the epochs from epoch E on")


def add_process_options(parser: OptionParser) -> None:
    """Add the options of several devices and processes, and of memory."""
    add = group(parser, "many devices, and memory")
    modes = one_of(("none", "dp", "ddp", "fsdp"), {"True": "dp", "False": "none"})
    add("--parallel", modes, "none", "MODE",
        "none; dp: DataParallel over --gpu_devices; ddp: a process for each of --gpu_devices, with the whole network; "
        "fsdp: with a part of it. Processes that torchrun starts are ddp unless they are fsdp")
    add("--nproc", number(int, low=1, high=256), 1, "N", "start N processes, on CPUs. For GPUs see --parallel")
    add("--sync_bn", bool, False, "BOOL", "batch normalization over the samples of all processes; on GPUs")
    add("--dist_timeout", number(float, above=0, high=86400), 600.0, "S", "seconds that processes wait for each other")
    add("--max_restarts", number(int, low=0, high=1000), 0, "N",
        "start the processes again, from the last checkpoint, up to N times when one dies")
    add("--activation_checkpointing", bool, False, "BOOL",
        "keep less for the backward pass and compute it again: less memory, up to half more time, the same bits")
    add("--checkpoint_format", one_of(("file", "sharded")), "file", "FORMAT",
        "file: one file; sharded: each process writes its part, while training goes on")


def add_stop_options(parser: OptionParser) -> None:
    """Add the options of the best checkpoint, of early stopping, and of intervals."""
    add = group(parser, "best checkpoint and early stop")
    add("--monitor", plain_text, "loss", "NAME", "the metric of the validation that decides")
    add("--monitor_mode", one_of(("auto", "min", "max")), "auto", "MODE",
        "the best is the min or the max; auto is min for a loss and max for anything else")
    add("--patience", COUNT_OR_ZERO, 10, "N", "stop after N validations without a better one; 0 for never")
    add("--min_delta", NOT_NEGATIVE, 0.0, "X", "better means better by more than X")
    add("--stop_below", number(float), None, "X", "stop after an epoch whose mean training loss is below X")

    add = group(parser, "how often")
    callbacks = registry.names("callback")
    add("--callbacks", registry.name_type("callback"), None, "NAME", nargs="+",
        help=f"further callbacks: {', '.join([*callbacks, ''])}MODULE:NAME of your own")
    add("--log_every", COUNT, 50, "N", "updates between two entries of the log")
    add("--val_every", COUNT_OR_ZERO, 1, "E",
        "whole epochs between two validations; 0 for none at all: then no checkpoint is the best")
    add("--save_every", EPOCHS, 1.0, "E", "epochs between two checkpoints")
    add("--save_every_updates", COUNT, None, "N", "updates between two checkpoints, instead")
    add("--keep", COUNT, 2, "N", "number of last checkpoints to keep")


def add_safety_options(parser: OptionParser) -> None:
    """Add the options of an end before the end, and of the profiler."""
    add = group(parser, "limits, errors and profiling")
    add("--max_time", duration, None, "TIME",
        "save and stop before so much time has passed since the start, such as 3h50m, with status 75")
    add("--requeue", bool, False, "BOOL",
        "under SLURM, put the job back in the queue after SIGUSR1 or --max_time; needs --resume auto")
    add("--nan_policy", one_of(("stop", "skip")), "stop", "NAME",
        "when a loss or gradient is not finite: stop, or skip the update")
    add("--max_skips", COUNT_OR_ZERO, 10, "N", "updates that --nan_policy skip may skip")
    add("--profile", number(int, low=1, high=1000), None, "N",
        "after a few updates, record the time of each operation for N updates of one epoch, in RUN/profile; training "
        "goes on")


# ---- the parsers -----------------------------------------------------------------------------------------------------
def task_parser(task: type) -> OptionParser:
    """Return a parser without options that knows what other options have become."""
    parser = OptionParser(description=task.__doc__)
    parser.old_names = OLD_NAMES
    parser.moved = MOVED
    return parser


def train_parser(trainer_class: type) -> OptionParser:
    """Return the parser of a task's trainer, with the task's defaults."""
    parser = task_parser(trainer_class)
    add_train_options(parser)
    add_common_options(parser, trainer_class.evaluator_class.task)
    trainer_class.evaluator_class.add_options(parser)
    trainer_class.add_options(parser)
    parser.apply(trainer_class.defaults, f"defaults of {trainer_class.__name__}")
    return parser


def test_parser(evaluator_class: type) -> OptionParser:
    """Return the parser of a task's evaluator."""
    parser = task_parser(evaluator_class)
    add_test_options(parser)
    add_common_options(parser, evaluator_class.task)
    evaluator_class.add_options(parser)
    evaluator_class.add_test_options(parser)
    of_training = OptionParser()
    add_train_options(of_training)
    parser.passed_over = set(of_training.known)  # so that the option file of a run can be given
    return parser


def answer_early(program: str) -> None:
    """End the process if the command line of a program asks for help or has a wrong option; otherwise return.

    A program calls it above its imports, because torch takes seconds to import. Without the call, it gives the same
    answers after the imports.

    Args:
        program: the file that is running.
    """
    run_main(lambda: check_early(program, sys.argv[1:]))


def check_early(program: str | Path, argv: Sequence[str]) -> None:
    """Parse the command line of a program, if the text of the program shows all of its options."""
    file_parser = OptionParser(add_help=False)
    add_file_options(file_parser)
    named, _ = file_parser.parse_known_args(argv)
    if named.config or getattr(named, "import"):
        return  # modules may register further names for options
    try:
        task = read_main_class(program)
        parser = train_parser(task) if issubclass(task, Trainer) else test_parser(task)
    except (UnclearError, NameError):
        return
    parser.parse_args(argv)


# ---- resolve ---------------------------------------------------------------------------------------------------------
def parse_train_options(trainer_class: type, argv: Sequence[str] | None) -> Options:
    """Resolve the options of training: the defaults, a resumed run's, --config files, `argv`; later ones win.

    Args:
        trainer_class: the task's; it and its evaluator add options to the base ones, and its defaults replace theirs.
        argv: the command line; None for this process's.

    Raises:
        UserError: when options contradict each other, or the run that is resumed, or when that cannot be found.
        DamagedError: when the checkpoints of the run that is to be resumed are all damaged.
    """
    import_asked(argv)
    parser = train_parser(trainer_class)
    given = parser.parse_given(argv)

    # Imported here, because these import torch.
    from engine.checkpoints.checkpointer import Checkpointer
    from engine.checkpoints.file import options_of
    from engine.devices.job import place
    from utils.seed import draw_seed

    notes: list[str] = []
    resume = given.get("resume")
    earlier: dict[str, Any] = {}  # run of this job, whose processes were started again
    if place().size > 1:
        from engine.devices.store import earlier_run

        earlier = earlier_run()
    if earlier and Checkpointer.candidates(Path(earlier["run_dir"])):
        resume = earlier["run_dir"]
        notes.append(f"The processes were started again: they go on with {resume}.")
    if resume == "auto":
        resume = find_automatically(train_parser(trainer_class), argv, notes)
    saved: dict[str, Any] = {}
    if resume:
        path, state = Checkpointer.find(resume, notes.append)
        resume = str(path)
        saved = harmless_options(options_of(state, path), path)
        check_own_code(saved, path, train_parser(trainer_class), argv)

    opt = parser.resolve(argv, [(saved, resume or "")])
    check_options(vars(opt), saved, bool(given.get("resume")))
    if opt.seed is None:
        opt.seed = earlier.get("seed", draw_seed())
        parser.note_source("seed", "drawn")
    opt.resume = resume
    opt.resume_notes = notes
    return completed(parser, opt)


def parse_test_options(evaluator_class: type, argv: Sequence[str] | None) -> Options:
    """Resolve the options of an evaluation: those of the checkpoint, --config files, `argv`; later ones win.

    Args:
        evaluator_class: the task's, which adds options to the base ones.
        argv: the command line; None for this process's.

    Raises:
        UserError: when options contradict the checkpoint, or it cannot be opened.
    """
    import_asked(argv)
    parser = test_parser(evaluator_class)
    model_path = parser.parse_given(argv).get("model_path")
    if not model_path:
        parser.error("--model_path is needed: the checkpoint to evaluate, Results/.../..._best_ckpt.pth")

    # Imported here, because these import torch.
    from engine.checkpoints.file import load_checkpoint, options_of
    from engine.devices.job import place

    if place().size > 1:
        raise UserError("An evaluation is made by one process: start it without torchrun.")
    saved = options_of(load_checkpoint(model_path, tensors_of=()), model_path)
    trained = {name: value for name, value in harmless_options(saved, model_path).items() if name not in OF_THE_LAUNCH}
    known = {name: value for name, value in trained.items() if name in parser.known}
    check_own_code(known, model_path, test_parser(evaluator_class), argv)
    opt = parser.resolve(argv, [(trained, model_path)])
    check_network(vars(opt), trained, model_path)
    return completed(parser, opt)


def find_automatically(parser: OptionParser, argv: Sequence[str] | None, notes: list[str]) -> str | None:
    """Return the run of --resume auto: the newest unfinished one of this project with these options; or None."""
    from engine.runs.run_dir import unfinished_runs

    now = vars(parser.resolve(argv))
    for path, saved in unfinished_runs(now["output_dir"], now["proj_name"]):
        options = with_new_names(saved)
        fixed = parser.asked & options.keys() - set(MAY_CHANGE)
        if others := [name for name in sorted(fixed) if now[name] != options[name]]:
            notes.append(f"--resume auto: passes over {path}, which has another --{' --'.join(others)}.")
            continue
        notes.append(f"--resume auto: goes on with {path}.")
        return str(path)
    where = f"of {now['proj_name']} in {now['output_dir']}"
    notes.append(f"--resume auto: no unfinished run {where}; a new one begins.")
    return None


def completed(parser: OptionParser, opt: Namespace) -> Options:
    """Apply --debug, import what the options name, and return them read-only; --print_config ends here."""
    if opt.debug:
        opt.limit_batches = DEBUG_BATCHES
        parser.note_source("limit_batches", "--debug")
    if opt.debug and "n_epoch" in opt:
        opt.n_epoch = 1
        parser.note_source("n_epoch", "--debug")
    load_own_code(opt)
    if opt.print_config:
        from engine.devices.job import place

        if place().rank == 0:
            print(registry.load("tools.show_options:as_text", "print_config")(parser, vars(opt)))
        sys.exit(0)
    return Options(**vars(opt))


# ---- check -----------------------------------------------------------------------------------------------------------
def check_options(options: Mapping[str, Any], saved: Mapping[str, Any], resumes: bool = False) -> None:
    """Raise UserError when options of training contradict each other, or those `saved` by a run that is resumed."""
    from callbacks.callback_entry import check_loggers  # it imports torch

    for name in saved.keys() & options.keys() - set(MAY_CHANGE):
        if options[name] != saved[name]:
            raise UserError(
                f"--{name} {options.get(name)} contradicts the run that is resumed, which has {saved[name]}.\n"
                f"Leave it out, or start a new run from the weights: --pretrained --model_path CHECKPOINT"
            )
    if options["requeue"] and not resumes:
        raise UserError("--requeue needs --resume auto: without it, each job would begin a new run.")
    if options["ema"] is not None and options["swa_start"] is not None:
        raise UserError("--ema and --swa_start are two averages of the same weights: give one of them.")
    if (options["swa_start"] or 0) > options["n_epoch"]:
        raise UserError(f"--swa_start {options['swa_start']} is after the last epoch, --n_epoch {options['n_epoch']}.")
    check_loggers(options["logger"])
    if options["pretrained"] and not options["model_path"]:
        raise UserError("--pretrained needs --model_path: the file to start from.")
    if options["model_path"] and not options["pretrained"]:
        raise UserError("--model_path is the file that --pretrained starts from: add --pretrained, or leave it out.")


def check_network(options: Mapping[str, Any], trained: Mapping[str, Any], model_path: str) -> None:
    """Raise UserError when an option asks for another network than that of the checkpoint, made with `trained`."""
    from model.model_entry import NETWORK_OPTIONS

    for name in NETWORK_OPTIONS:
        if options.get(name) != trained.get(name, {} if name == "model_args" else None):
            raise UserError(
                f"--{name} {options.get(name)} contradicts the checkpoint {model_path}, "
                f"whose network has {name} {trained.get(name)}; leave the flag out."
            )


# ---- user code, and files of others ----------------------------------------------------------------------------------
def import_asked(argv: Sequence[str] | None) -> None:
    """Import the modules of --import, before the parser is made: the names that they register become choices."""
    parser = OptionParser(add_help=False)
    add_file_options(parser)
    given, _ = parser.parse_known_args(argv)
    for file in option_files(given.config):
        modules = {name: value for name, value in file.values.items() if name == "import"}
        parser.apply(modules, file.path, lines=file.lines)
    for module in getattr(given, "import") or parser.get_default("import") or []:
        registry.import_module(module, f"--import {module}")


def check_own_code(
    options: Mapping[str, Any], path: str | Path, parser: OptionParser, argv: Sequence[str] | None
) -> None:
    """Raise UserError when a checkpoint's options would import code that the user has not named."""
    own = vars(parser.resolve(argv))
    registry.refuse_unrepeated(registry.unrepeated(options, own, parser.asked, not is_in_run_dir(path)), path)


def load_own_code(opt: Namespace) -> None:
    """Import everything that the options name, so that an error comes before anything is made or written."""
    registry.load_all(vars(opt))
    if getattr(opt, "callbacks", None):
        from callbacks.callback_entry import own_class

        for name in opt.callbacks:
            own_class(name)


def harmless_options(options: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Return the options of a checkpoint without those that would make a program write to a path of the file.

    Args:
        options: of the checkpoint. In its own run directory, it may name that, and the source and cache of the data.
        path: of the checkpoint.
    """
    is_own, data_dir = is_in_run_dir(path), str(options.get("data_dir", ""))
    left_out = [] if is_own else ["output_dir", "cache_dir", "shard_cache_dir"]
    if not Path(data_dir).is_dir() and not (is_own and "://" in data_dir):
        left_out.append("data_dir")  # it would be made
    harmless = {name: value for name, value in with_new_names(options).items() if name not in left_out}
    if isinstance(arguments := options.get("data_args"), dict) and not is_own:
        of_paths = (*left_out, "data_dir")
        harmless["data_args"] = {name: value for name, value in arguments.items() if name not in of_paths}
    return harmless


def is_in_run_dir(path: str | Path) -> bool:
    return any(Path(path).parent.glob("config_*.json"))


def with_new_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an older run by their present names."""
    return {OLD_NAMES.get(name, name): value for name, value in options.items()}
