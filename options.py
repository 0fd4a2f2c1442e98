"""Every option that all tasks share, with its default and its help, and how the options of a run are resolved.

A task adds its own options in `add_options` and changes defaults in `defaults`. Durations are in epochs and may be
fractions, unless an option says otherwise. Nothing here imports torch before the parser has answered: --help and a
wrong option should not wait for it.
"""

import argparse
import sys
from argparse import ArgumentError, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from engine import registry
from engine.devices.job import place
from engine.options.parser import (
    BoolAction,
    ListAction,
    OneOrMoreAction,
    OptionParser,
    Options,
    class_name,
    device_ids,
    duration,
    end_at_once_on_ctrl_c,
    file_name,
    file_path,
    flag_or_path,
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
    text_like,
    weighted,
)
from utils.errors import UserError

DEBUG_BATCHES = 3  # of each part, with --debug
MAX_EPOCHS = 10**6

# Types of many options.
COUNT = number(int, low=1)
COUNT_OR_ZERO = number(int, low=0)
COUNT_OR_AUTO = number(int, low=1, words=["auto"])
WORKERS = number(int, low=0, high=1000, words=["auto"])
POSITIVE = number(float, above=0)
NOT_NEGATIVE = number(float, low=0)
EPOCHS = number(float, above=0, high=MAX_EPOCHS)
SEED = number(int, low=0, high=2**63 - 1)

# Options that were renamed. The old names are taken, too, in option files and checkpoints as well.
OLD_NAMES = {"lr_decay_steps": "lr_decay_every", "save_every_steps": "save_every_updates"}

# Programs in tools/, which are given the task's program and its options. They were options, as --find_lr_range.
MOVED = ("doctor", "find_lr", "kill", "replay", "trace", "verify_resume")

# Options of the machine, which an evaluation does not take from a checkpoint.
OF_THE_LAUNCH = ("model_path", "gpu_devices", "data_device", "debug", "limit_batches", "save_path", "nproc")

# Options that may change when a run is resumed. All others make it what it is, those of a task included.
MAY_CHANGE = (
    "n_epoch", "patience", "description", "output_dir", "data_dir", "data_device", "pretrained", "model_path",
    "micro_batch_size", "eval_batch_size", "num_workers", "worker_timeout", "skip_bad_samples", "gpu_devices",
    "parallel", "compile", "channels_last", "deterministic", "log_every", "save_every", "save_every_updates", "keep",
    "max_time", "nan_policy", "max_skips", "cache", "cache_dir", "shard_cache_dir", "shard_cache_gb", "nproc",
    "dist_timeout", "max_restarts", "activation_checkpointing", "checkpoint_format", "metrics", "logger", "save_code",
    "metric_args", "callbacks", "import", "max_updates", "stop_below", "find_unused", "data_picture",
)  # fmt: skip

# Options that have an effect beside any other: for these, nothing is looked up in extras/without_effect.py.
ALWAYS_COUNT = (
    "set", "resume", "seed", "n_epoch", "batch_size", "limit_batches", "save_every_updates", "output_dir", "save_path",
    "model_path", "gpu_devices", "debug",
)  # fmt: skip


# ---- training and evaluation -----------------------------------------------------------------------------------------
def add_common_options(parser: OptionParser, task: str | None) -> None:
    """Add the options that training and evaluation share; `task` narrows the choice of data, model and loss."""
    add_file_options(parser)

    add = group(parser, "data")
    add_choice(add, "data", task)
    add("--data_dir", file_path, "./Dataset", "DIR", "the directory of the data, also for a download")
    add("--train_val_sample_rate", POSITIVE, 1.0, "X", "use less of the training data: a fraction, or a count above 1")
    add("--test_sample_rate", POSITIVE, None, "X", "of the test data, or cut for it where there is none: as above")
    add("--val_split", POSITIVE, 0.15, "X", "samples for validation: a fraction of those of training, or a count")
    add("--fold", fold, None, "I/K", "validate on part I of K, and train on the others; the test part stays as it is")
    add("--split_seed", SEED, 0, "N", "seed of the split; another --seed trains on the same split")
    add("--num_workers", WORKERS, 0, "N", "processes that load data; auto: the fastest number. Changes no result")
    add("--data_device", one_of(("auto", "cpu", "cuda")), "auto", "WHERE", "of data in memory: auto, cpu or cuda")
    add("--eval_batch_size", COUNT, None, "N", "samples per batch of validation and test. Changes no result")
    add("--worker_timeout", NOT_NEGATIVE, 300.0, "S", "seconds to wait for a loading process; 0 for ever")
    add("--limit_batches", COUNT, None, "N", "at most N batches of each part in an epoch, for a trial run")
    add("--skip_bad_samples", COUNT_OR_ZERO, 0, "N", "skip up to N samples of each part that cannot be loaded")

    add = group(parser, "model")
    add_choice(add, "model", task)
    add("--n_channels", number(int, low=1, high=4096), None, "N", "channels of an image (default: the data's)")
    add("--n_classes", number(int, low=1, high=10**6), None, "N", "number of classes (default: the data's)")
    add("--class_names", class_name, None, "NAME", "of the classes, in their order (default: the data's)", nargs="+")
    add("--input_mean", list_of(number(float)), None, "X", "of each channel, subtracted", action=ListAction, nargs="+")
    add("--input_std", list_of(POSITIVE), None, "X", "of each channel, divided by", action=ListAction, nargs="+")
    losses = registry.names("loss", task)
    add("--loss_type", weighted(registry.name_type("loss", task)), next(iter(losses), None), "NAME",
        f"{registry.listed('loss', task)}; or a weighted sum, as NAME:1.0 NAME:0.5", action=OneOrMoreAction, nargs="+")
    add_arguments(add, "loss")
    ways = list_of(number(float, low=0, words=["balanced", "sqrt"]))
    add("--class_weights", ways, None, "W", "of the classes in the loss: balanced or sqrt, or a number for each",
        action=ListAction, nargs="+")
    add("--model_path", file_path, None, "FILE", "the checkpoint to evaluate, or to start --pretrained from")

    add = group(parser, "machine")
    add("--gpu_devices", device_ids, "0", "IDS", "GPU ids as 0 or 0,1, among the visible ones; or cpu")
    add("--amp", one_of(("no", "bf16", "fp16")), "no", "TYPE", "mixed precision: no, bf16 or fp16")
    add("--compile", bool, False, "BOOL", "compile the networks with torch.compile")
    add("--channels_last", bool, False, "BOOL", "networks in channels-last memory order")
    add("--deterministic", bool, False, "BOOL", "only algorithms that repeat bit for bit on GPUs")
    add("--seed", SEED, None, "N", "seed of everything random; drawn, logged and saved when not given")
    add("--debug", bool, False, "BOOL", f"{DEBUG_BATCHES} batches of each part, one epoch", short="-d")


def add_file_options(parser: OptionParser) -> None:
    """Add the options that name other sources of options, see docs/options.md."""
    add = group(parser, "files: where options come from")
    several = {"action": "extend", "nargs": "+"}
    add("--config", file_path, None, "FILE", "option files, JSON or YAML; later ones win", **several)
    add("--set", setting, None, "NAME=VALUE", "single values, which win, also inside of a mapping: a.b=64", **several)
    add("--import", registry.module_name, None, "MODULE", "import modules that register names", nargs="+")
    add("--print_config", bool, False, "BOOL", "print all options, each with its source, and stop")


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


def add_choice(add: Callable, kind: str, task: str | None = None, default: str | None = None) -> None:
    """Add the option that selects a component, by default the first one, and the option with its arguments."""
    option, _ = registry.KINDS[kind]
    default = default or next(iter(registry.names(kind, task)), None)  # a task of a new name has no names yet
    name = registry.name_type(kind, task)
    name = by_network(name) if kind in ("optimizer", "scheduler") else name
    add(f"--{option}", name, default, "NAME", registry.listed(kind, task))
    add_arguments(add, kind)


def by_network(kind: Callable) -> Callable:
    """Return an argparse type for a value of `kind`, or for a JSON object with one for each network."""
    of_networks = partial(registry.load, "extras.by_network:parsed", "lr")
    return lambda text: of_networks()(kind, text) if text.startswith("{") else kind(text)


def add_arguments(add: Callable, kind: str) -> None:
    selecting, option = registry.KINDS[kind]
    add(f"--{option}", mapping, {}, "JSON", f"further arguments of --{selecting}, as '{{\"name\": value}}'")


# ---- evaluation ------------------------------------------------------------------------------------------------------
def add_test_options(parser: OptionParser) -> None:
    """Add the options that only an evaluation has."""
    add = group(parser, "evaluation")
    what = "what to evaluate: a checkpoint, the directory of a run, or latest"
    add("run", file_path, argparse.SUPPRESS, "RUN", what, nargs="?")
    add("--proj_name", file_name, "Evaluation", "NAME", "name of the project")
    add("--split", one_of(("test", "val", "train", "all")), "test", "PART", "test, val, train or all")
    add("--nproc", number(int, low=1, high=256), 1, "N", "share the samples among N processes. Changes no result")
    add("--save_path", file_path, "./test_viz/", "DIR", "results go to DIR/TIMESTAMP")
    add("--viz", bool, True, "BOOL", "save pictures")
    add("--use_average", bool, True, "BOOL", "evaluate the average of the weights, if there is one")
    add("--allow_seen", bool, False, "BOOL", "evaluate even on data that the run has seen")


# ---- training --------------------------------------------------------------------------------------------------------
def add_train_options(parser: OptionParser) -> None:
    """Add the options that only training has."""
    add = group(parser, "run")
    add("--proj_name", file_name, "Plainloop", "NAME", "name of the run's files")
    add("--description", plain_text, "", "TEXT", "a note that is saved with the options")
    add("--output_dir", file_path, "./Results/", "DIR", "a run goes to DIR/TIMESTAMP")
    add("--resume", file_path, None, "PATH", "a run or checkpoint to continue; auto: the newest that is unfinished")
    add("--pretrained", flag_or_path, False, "FROM", action=BoolAction,
        help="start from the weights of a FILE, torchvision, timm or hf:OWNER/NAME, as far as they fit")
    add("--logger", list_of(logger_name), ["tensorboard", "csv"], "NAME", action=ListAction, nargs="+",
        help=f"where the curves go: {registry.listed('logger')}; or none")
    add("--save_code", bool, False, "BOOL", "keep a copy of this project's code in the run directory")
    add("--data_picture", bool, False, "BOOL", "save the samples of the first update as data.png")
    add("--allow_shared", bool, False, "BOOL", "train even if parts of the data share groups, such as copies of a file")

    add = group(parser, "training")
    add("--n_epoch", number(int, low=1, high=MAX_EPOCHS), 10, "N", "epochs")
    add("--max_updates", COUNT, None, "N", "end after N updates; the epoch that is cut short counts as one")
    add("--batch_size", COUNT, 64, "N", "samples of one optimizer update")
    add("--augment", augmentation, False, "NAME", action=BoolAction,
        help=f"change training images: alone as the data does; or {registry.listed('augmentation')}; or none")
    add("--sampler", one_of(("balanced",)), None, "NAME", "balanced: each class equally often in an epoch")
    add("--mixup", POSITIVE, None, "A", "mix pairs of training images, by shares of a Beta(A, A) distribution")
    add("--cutmix", POSITIVE, None, "A", "put a piece of one training image into another, as large as for --mixup")
    add("--drop_last", bool, False, "BOOL", "leave out the last update of an epoch if it has fewer samples")
    add("--micro_batch_size", COUNT_OR_AUTO, None, "N", "samples in memory at once; auto: what fits. Changes no result")
    inits = ("default", "kaiming", "xavier", "xavier_normal", "orthogonal", "normal")
    add("--init", one_of(inits), "default", "NAME", f"initial weights: {', '.join(inits)}")
    add_choice(add, "optimizer", default="adamW")
    add("--lr", by_network(POSITIVE), 1e-3, "X", "learning rate; of several networks also one each, as JSON by name")
    add("--weight_decay", NOT_NEGATIVE, 0.01, "X", "weight decay")
    add("--momentum", number(float, low=0, below=1), 0.9, "X", "momentum of sgd and nesterov")
    add("--clip", NOT_NEGATIVE, 0.0, "X", "gradient clipping; 0 for none")
    add("--clip_type", one_of(("norm", "value")), "norm", "TYPE", "norm: of all gradients together; value: of each")

    add = group(parser, "schedule of the learning rate")
    add_choice(add, "scheduler", default="cosine")
    add("--scheduler_step", one_of(("update", "epoch")), "update", "WHEN", "change the rate each update, or each epoch")
    add("--lr_min", NOT_NEGATIVE, 0.0, "X",
        "lowest learning rate after warm-up, that of the last update with cosine and linear: with 0 it changes nothing")
    add("--warmup_epoch", number(float, low=0, high=MAX_EPOCHS), 0.0, "E", "epochs of linear warm-up")
    add("--warmup_multiplier", number(float, low=1), 100.0, "X", "warm-up starts at lr / X")
    add("--lr_decay_epochs", list_of(EPOCHS), None, "E", "step: decay at these epochs", action=ListAction, nargs="+")
    add("--lr_decay_every", EPOCHS, None, "E", "step: decay every E epochs")
    add("--lr_decay_rate", number(float, above=0, high=1), 0.1, "X", "step, exponential: factor of a decay")

    add_finer_options(parser)


def add_finer_options(parser: OptionParser) -> None:
    """Add the options of training that a first run does not need."""
    add = group(parser, "fine-tuning: patterns on the names of parameters, as 'layers.0.*'")
    rate = named_value(POSITIVE, "head.weight=1e-3 or 'layers.0.*=0.1x'", suffix="x")
    epoch = named_value(number(int, low=2, high=MAX_EPOCHS), "'encoder.*=5'")
    limit = named_value(POSITIVE, "'layers.0.*=0.5'")
    add("--freeze", pattern, None, "PATTERN", "do not train these, and keep their statistics", nargs="+")
    add("--unfreeze", epoch, None, "PATTERN=EPOCH", "train these from that epoch on, and freeze them before", nargs="+")
    add("--train_only", pattern, None, "PATTERN", "train these and freeze the rest", nargs="+")
    add("--param_lr", rate, None, "PATTERN=LR", "other learning rates, or multiples of --lr as 0.1x", nargs="+")
    add("--param_clip", limit, None, "PATTERN=NORM", "limits for the norm of their gradients, before --clip", nargs="+")
    add("--no_decay", pattern, None, "PATTERN", "no weight decay of these; also bias, norm, 1d", nargs="+")

    add = group(parser, "averages of the weights, which are then measured")
    add("--ema", number(float, low=0, below=1), None, "X", "exponential moving average over updates, with decay X")
    add("--swa_start", number(int, low=1, high=MAX_EPOCHS), None, "E", "mean over the ends of epochs, from epoch E on")

    add = group(parser, "devices: many of them, and memory")
    modes = one_of(("none", "dp", "ddp", "fsdp"), {"True": "dp", "False": "none"})
    add("--parallel", modes, "none", "MODE",
        "none; dp: DataParallel; ddp: a process for each of --gpu_devices; fsdp: and the network divided among them")
    add("--nproc", number(int, low=1, high=256), 1, "N", "start N processes, on CPUs. For GPUs see --parallel")
    add("--sync_bn", bool, False, "BOOL", "batch normalization over the samples of all processes; on GPUs")
    add("--find_unused", bool, False, "BOOL", "ddp: the loss reaches other parameters in each update, which is slower")
    add("--dist_timeout", number(float, above=0, high=86400), 600.0, "S", "seconds that processes wait for each other")
    add("--max_restarts", number(int, low=0, high=1000), 0, "N", "start the processes again up to N times if one dies")
    add("--activation_checkpointing", bool, False, "BOOL", "less memory, up to half more time, the same bits")
    add("--checkpoint_format", one_of(("file", "sharded")), "file", "FORMAT", "file, or sharded: one file a process")

    add = group(parser, "best checkpoint and early stop")
    add("--monitor", plain_text, "loss", "NAME", "the metric of the validation that decides")
    add("--monitor_mode", one_of(("auto", "min", "max")), "auto", "MODE",
        "the best is the min or the max; auto: min if a word of its name says so, such as loss or mae, else max")
    add("--patience", COUNT_OR_ZERO, 10, "N", "stop after N validations without a better one; 0 for never")
    add("--min_delta", NOT_NEGATIVE, 0.0, "X", "better means better by more than X")
    add("--stop_below", number(float), None, "X", "stop after an epoch whose mean training loss is below X")

    add = group(parser, "intervals")
    callbacks = f"further callbacks: {registry.listed('callback')}"
    add("--callbacks", registry.name_type("callback"), None, "NAME", callbacks, nargs="+")
    add("--log_every", COUNT, 50, "N", "updates between two entries of the log")
    add("--val_every", COUNT_OR_ZERO, 1, "E", "epochs between two validations; 0 for none, and no best checkpoint")
    add("--save_every", EPOCHS, 1.0, "E", "epochs between two checkpoints")
    add("--save_every_updates", COUNT, None, "N", "updates between two checkpoints, instead")
    add("--keep", COUNT, 2, "N", "number of last checkpoints to keep")

    add = group(parser, "limits, errors and profiling")
    add("--max_time", duration, None, "TIME", "save and stop before so much time has passed, as 3h50m, with status 75")
    add("--requeue", bool, False, "BOOL", "under SLURM, requeue the job after SIGUSR1 or --max_time")
    add("--nan_policy", one_of(("stop", "skip")), "stop", "NAME", "if not finite: stop, or skip the update")
    add("--max_skips", COUNT_OR_ZERO, 10, "N", "updates that --nan_policy skip may skip")
    add("--profile", number(int, low=1, high=1000), None, "N", "record the time of each operation for N updates")


def fold(text: str) -> str:
    """An argparse type for part I of K, as 1/5."""
    wanted = "I/K, such as 1/5: I from 1 to K, and K from 2 to 1000"
    number, _, count = text_like("[0-9]{1,4}/[0-9]{1,4}", wanted)(text).partition("/")
    if not (1 <= int(number) <= int(count) and 2 <= int(count) <= 1000):
        raise ArgumentTypeError(f"{text!r} is not {wanted}")
    return text


def augmentation(text: str) -> bool | str:
    """An argparse type for True, False, none, which is False, or the name of an augmentation."""
    flags = {"true": True, "false": False, "none": False}
    return flags[text.lower()] if text.lower() in flags else registry.name_type("augmentation")(text)


def logger_name(text: str) -> str:
    """An argparse type for the name of a logger, or none."""
    return text if text == "none" else registry.name_type("logger")(text)


# ---- the parsers -----------------------------------------------------------------------------------------------------
def train_parser(trainer_class: type) -> OptionParser:
    """Return the parser of a task's trainer, with the task's defaults."""
    parser = OptionParser(description=trainer_class.__doc__, moved=MOVED)
    add_train_options(parser)
    add_common_options(parser, trainer_class.evaluator_class.task)
    trainer_class.evaluator_class.add_options(parser)
    trainer_class.add_options(parser)
    parser.rename(OLD_NAMES)
    parser.apply(trainer_class.defaults, f"defaults of {trainer_class.__name__}")
    return parser


def test_parser(evaluator_class: type) -> OptionParser:
    """Return the parser of a task's evaluator."""
    parser = OptionParser(description=evaluator_class.__doc__, moved=MOVED)
    add_test_options(parser)
    add_common_options(parser, evaluator_class.task)
    evaluator_class.add_options(parser)
    evaluator_class.add_test_options(parser)
    parser.rename(OLD_NAMES)
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
    end_at_once_on_ctrl_c()


def check_early(program: str | Path, argv: Sequence[str]) -> None:
    """Parse the command line of a program, if the text of the program shows all of its options."""
    if Path(program).name.startswith("trainer") and fits_every_task(argv):
        return
    from engine.options.early import Trainer, UnclearError, read_main_class  # here, as few command lines need it

    given = options_of_files(argv)
    if given.config or getattr(given, "import"):
        return  # modules may register further names for options
    try:
        task = read_main_class(program)
        parser = train_parser(task) if issubclass(task, Trainer) else test_parser(task)
    except (UnclearError, NameError):
        return
    parser.parse_args(argv)


def fits_every_task(argv: Sequence[str]) -> bool:
    """Return whether a command line of training has only options and values that all tasks take alike."""
    parser = OptionParser(add_help=False, exit_on_error=False)
    add_train_options(parser)
    add_common_options(parser, None)
    try:
        _, others = parser.parse_known_args(argv)
    except ArgumentError:
        return False
    of_tasks = {f"--{option}" for option, _ in registry.KINDS.values()}  # each task has names of its own for them
    return not others and of_tasks.isdisjoint(text.partition("=")[0] for text in argv)


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
    new_parser = partial(train_parser, trainer_class)
    parser = new_parser()
    given = parser.parse_given(argv)

    # Find the run that is resumed.
    notes: list[str] = []
    resume = given.get("resume")
    earlier: dict[str, Any] = {}  # run of this job, whose processes were started again
    if place().size > 1:
        from engine.checkpoints.checkpointer import Checkpointer

        earlier = registry.load("extras.job_store:earlier_run", "nproc")()
        if earlier and Checkpointer.candidates(Path(earlier["run_dir"])):
            resume = earlier["run_dir"]
            notes.append(f"The processes were started again: they go on with {resume}.")
    if resume == "auto":
        resume = registry.load("extras.auto_resume:find_automatically", "resume")(new_parser(), argv, notes)
    layers = []
    if resume:  # imported here, because these import torch
        from engine.checkpoints.file import options_of
        from engine.checkpoints.find import find_checkpoint
        from engine.options.foreign import harmless_options

        path, state = find_checkpoint(resume, notes.append)
        resume = str(path)
        saved = with_new_names(options_of(state, path))
        layers = [(harmless_options(saved, path, new_parser, argv, notes), resume)]
        parser = new_parser()  # now: the modules of --import may have registered more names
    opt = parser.resolve(argv, layers)
    if resume:
        for name in parser.asked & saved.keys() - set(MAY_CHANGE):
            refuse_change(name, vars(opt)[name], saved[name], "run that is resumed")

    # Check and complete.
    check_options(vars(opt), resumes=bool(resume or given.get("resume")))
    if opt.seed is None:
        from utils.seed import draw_seed

        opt.seed = earlier.get("seed", draw_seed())
        parser.note_source("seed", "drawn")
    opt.resume = resume
    opt.resume_notes = notes
    return completed(parser, opt, new_parser, trainer_class, trainer_class.evaluator_class)


def parse_test_options(evaluator_class: type, argv: Sequence[str] | None) -> Options:
    """Resolve the options of an evaluation: those of the checkpoint, --config files, `argv`; later ones win.

    Args:
        evaluator_class: the task's, which adds options to the base ones.
        argv: the command line; None for this process's.

    Raises:
        UserError: when options contradict the checkpoint, or it cannot be opened.
    """
    import_asked(argv)
    new_parser = partial(test_parser, evaluator_class)
    given = new_parser().parse_given(argv)
    names = [given[name] for name in ("run", "model_path") if name in given]
    if len(names) != 1:
        new_parser().error("name one thing to evaluate: a checkpoint, the directory of a run, or latest")

    # Imported here, because these import torch.
    from engine.checkpoints.file import load_checkpoint, options_of
    from engine.options.foreign import harmless_options
    from model.model_entry import NETWORK_OPTIONS

    checkpoint_of = registry.load("extras.named_run:checkpoint_of", "model_path")
    model_path = str(checkpoint_of(names[0], "./Results/", evaluator_class.__qualname__))
    saved = with_new_names(options_of(load_checkpoint(model_path, tensors_of=()), model_path))
    trained = {name: value for name, value in saved.items() if name not in OF_THE_LAUNCH}
    notes: list[str] = []
    layers = [(harmless_options(trained, model_path, new_parser, argv, notes), model_path)]
    parser = new_parser()  # now: the modules of --import may have registered more names
    opt = parser.resolve(argv, layers)
    opt.model_path = model_path
    opt.resume_notes = notes
    vars(opt).pop("run", None)
    for name in parser.asked & {*NETWORK_OPTIONS, "class_weights", "loss_args"}:
        refuse_change(name, vars(opt)[name], trained.get(name), f"checkpoint {model_path}")
    return completed(parser, opt, new_parser, evaluator_class)


def completed(parser: OptionParser, opt: Namespace, new_parser: Callable[[], OptionParser], *tasks: type) -> Options:
    """Apply --debug, check what the options need, and return them read-only; --print_config ends here."""
    if opt.debug:
        opt.limit_batches = DEBUG_BATCHES
        parser.note_source("limit_batches", "--debug")
        if "n_epoch" in opt:
            opt.n_epoch = 1
            parser.note_source("n_epoch", "--debug")
    check_gpus(vars(opt))
    opt.asked_to_cut = []
    if parser.asked.difference(ALWAYS_COUNT):
        refuse_without_effect = registry.load("extras.without_effect:refuse_without_effect", "set")
        opt.asked_to_cut = refuse_without_effect(parser, vars(opt), new_parser(), tasks)
    if opt.print_config:
        if place().rank == 0:
            print(registry.load("tools.show_options:as_text", "print_config")(parser, vars(opt)))
        sys.exit(0)
    return Options(**vars(opt))


# ---- check -----------------------------------------------------------------------------------------------------------
def refuse_change(name: str, value: Any, saved: Any, source: str) -> None:
    """Raise UserError when an option has another value than in the checkpoint that is read."""
    from engine.options.foreign import differ

    if differ(name, value, saved):
        raise UserError(
            f"--{name} {value} contradicts the {source}, which has {saved}.\n"
            f"Leave it out, or train a new run from the weights: --pretrained --model_path CHECKPOINT"
        )


def check_gpus(options: Mapping[str, Any]) -> None:
    """Raise UserError when several GPUs are named, of which this process would use the first one only."""
    if "," in options["gpu_devices"] and options.get("parallel", "none") == "none" and place().size == 1:
        remedy = "add --parallel ddp, fsdp or dp, or name" if "parallel" in options else "an evaluation uses one: name"
        raise UserError(f"--gpu_devices {options['gpu_devices']} names several GPUs: {remedy} one of them.")


def check_options(options: Mapping[str, Any], resumes: bool) -> None:
    """Raise UserError when options of training contradict each other."""
    if options["requeue"] and not resumes:
        raise UserError("--requeue needs --resume auto: without it, each job would begin a new run.")
    if options["ema"] is not None and options["swa_start"] is not None:
        raise UserError("--ema and --swa_start are two averages of the same weights: give one of them.")
    if (options["swa_start"] or 0) > options["n_epoch"]:
        raise UserError(f"--swa_start {options['swa_start']} is after the last epoch, --n_epoch {options['n_epoch']}.")
    if options["callbacks"] or not {"tensorboard", "csv"}.issuperset(options["logger"]):
        from callbacks.callback_entry import check_chosen  # it imports torch

        check_chosen(options["logger"], options["callbacks"] or ())  # now, before a run directory is made
    if options["pretrained"] or options["model_path"]:
        registry.load("extras.pretrained:check", "pretrained")(options, resumes)


# ---- other sources, and old names ------------------------------------------------------------------------------------
def options_of_files(argv: Sequence[str] | None) -> Namespace:
    """Return the options of a command line that name other sources of options."""
    parser = OptionParser(add_help=False)
    add_file_options(parser)
    return parser.parse_known_args(argv)[0]


def import_asked(argv: Sequence[str] | None) -> None:
    """Import the modules of --import, before the parser is made: the names that they register become choices."""
    argv = sys.argv[1:] if argv is None else argv
    if not any(text.startswith(("--config", "--import")) for text in argv):
        return
    given = options_of_files(argv)
    parser = OptionParser(add_help=False)
    add_file_options(parser)
    for path, values in option_files(given.config):
        parser.apply({name: value for name, value in values.items() if name == "import"}, path)
    for module in getattr(given, "import") or parser.get_default("import") or []:
        registry.import_module(module, f"--import {module}")


def with_new_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an older run by their present names."""
    return {OLD_NAMES.get(name, name): value for name, value in options.items()}
