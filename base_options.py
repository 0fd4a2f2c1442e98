"""How options are resolved: which of them win, and which contradict each other. They are listed in option_list.py."""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from callbacks.callback_entry import check_loggers, own_class
from data.data_entry import DEBUG_BATCHES
from engine.checkpoints.checkpointer import Checkpointer
from engine.checkpoints.file import load_checkpoint, options_of
from engine.devices.job import earlier_run, place
from engine.options.files import read_with_bases
from engine.options.parser import OptionParser
from engine.options.show import as_text
from engine.registry import import_module, load_all, refuse_unrepeated, unrepeated
from engine.runs.run_dir import is_run_dir, unfinished_runs
from extras.shards.store import is_url
from model.model_entry import NETWORK_OPTIONS
from option_list import (
    OLD_NAMES,
    add_common_options,
    add_file_options,
    add_test_options,
    add_train_options,
    train_option_names,
)
from utils.errors import UserError
from utils.seed import draw_seed

# What an evaluation does not take from a checkpoint.
OF_THE_LAUNCH = ("model_path", "gpu_devices", "data_device", "debug", "limit_batches", "save_path")

# All that a resumed run may have otherwise than before. Everything else makes it what it is, a task's own options too.
MAY_CHANGE = (
    "n_epoch", "patience", "description", "output_dir", "data_dir", "data_device", "pretrained", "model_path",
    "micro_batch_size", "eval_batch_size", "num_workers", "worker_timeout", "skip_bad_samples", "gpu_devices",
    "parallel", "compile", "channels_last", "deterministic", "log_every", "save_every", "save_every_updates", "keep",
    "max_time", "nan_policy", "max_skips", "cache", "cache_dir", "shard_cache_dir", "shard_cache_gb", "nproc",
    "dist_timeout", "max_restarts", "activation_checkpointing", "checkpoint_format", "metrics", "logger", "save_code",
    "metric_args", "callbacks", "import", "max_updates", "stop_below",
)  # fmt: skip


def check_options(options: Mapping[str, Any], saved: Mapping[str, Any], resumes: bool = False) -> None:
    """Raise UserError when options of training contradict each other, or those `saved` by a run that is resumed."""
    for name in saved.keys() & options.keys() - set(MAY_CHANGE):
        if options[name] != saved[name]:
            raise UserError(
                f"--{name} {options.get(name)} contradicts the run that is resumed, which has {saved[name]}.\n"
                f"Leave it out, or start a new run from the weights: --pretrained --model_path CHECKPOINT"
            )
    if options["requeue"] and not resumes:
        raise UserError("--requeue needs --resume auto: without it, the job would begin anew each time.")
    if options["ema"] is not None and options["swa_start"] is not None:
        raise UserError("--ema and --swa_start are two averages of the same weights: give one of them.")
    if (options["swa_start"] or 0) > options["n_epoch"]:
        raise UserError(f"--swa_start {options['swa_start']} is after the last epoch, --n_epoch {options['n_epoch']}.")
    check_loggers(options["logger"])
    if options["pretrained"] and not options["model_path"]:
        raise UserError("--pretrained needs --model_path: the file to start from.")
    if options["model_path"] and not options["pretrained"]:
        raise UserError("--model_path is what --pretrained starts from: add --pretrained, or leave --model_path out.")


def check_network(options: Mapping[str, Any], trained: Mapping[str, Any], model_path: str) -> None:
    """Raise UserError when an option asks for another network than that of the checkpoint, made with `trained`."""
    for name in NETWORK_OPTIONS:
        if options.get(name) != trained.get(name, {} if name == "model_args" else None):
            raise UserError(
                f"--{name} {options.get(name)} contradicts the checkpoint {model_path}, "
                f"whose network has {name} {trained.get(name)}; leave the flag out."
            )


def parse_train_options(trainer_class, argv: Sequence[str] | None) -> Namespace:
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
    given, notes = parser.parse_given(argv), []
    resumes = bool(given.get("resume"))
    before = earlier_run()  # of this job, whose processes were started again
    if before and Checkpointer.candidates(Path(before["run_dir"])):
        given["resume"] = before["run_dir"]
        notes.append(f"The processes were started again: they go on with {before['run_dir']}.")
    if given.get("resume") == "auto":
        given["resume"] = find_automatically(train_parser(trainer_class), argv, notes)
    resume, layers = None, []
    if given.get("resume"):
        path, state = Checkpointer.find(given["resume"], notes.append)
        resume, layers = str(path), [(harmless_options(options_of(state, path), path), str(path))]
    for options, path in layers:
        check_own_code(options, path, train_parser(trainer_class), argv)
    opt = parser.resolve(argv, layers)
    check_options(vars(opt), layers[0][0] if layers else {}, resumes)
    opt.resume, opt.resume_notes = resume, notes
    if opt.seed is None:
        opt.seed = before.get("seed", draw_seed())
        parser.note_source("seed", "drawn")
    if opt.debug:
        opt.n_epoch, opt.limit_batches = 1, DEBUG_BATCHES
        parser.sources |= dict.fromkeys(("n_epoch", "limit_batches"), "--debug")
    load_own_code(opt)
    return print_or_go_on(parser, opt)


def train_parser(trainer_class, kind: type[OptionParser] = OptionParser) -> OptionParser:
    """The parser of a task's trainer, with the task's defaults."""
    parser = kind(description=trainer_class.__doc__)
    parser.old_names = OLD_NAMES
    add_train_options(parser)
    add_common_options(parser, trainer_class.evaluator_class.task)
    trainer_class.evaluator_class.add_options(parser)
    trainer_class.add_options(parser)
    parser.apply(trainer_class.defaults, f"defaults of {trainer_class.__name__}")
    return parser


def test_parser(evaluator_class) -> OptionParser:
    """The parser of a task's evaluator."""
    parser = OptionParser(description=evaluator_class.__doc__)
    parser.old_names = OLD_NAMES
    add_test_options(parser)
    add_common_options(parser, evaluator_class.task)
    parser.passed_over = train_option_names()  # so that a run's own config file can be given
    evaluator_class.add_options(parser)
    evaluator_class.add_test_options(parser)
    return parser


def parse_test_options(evaluator_class, argv: Sequence[str] | None) -> Namespace:
    """Resolve the options of an evaluation: those of the checkpoint, --config files, `argv`; later ones win.

    Args:
        evaluator_class: the task's, which adds options to the base ones.
        argv: the command line; None for this process's.

    Raises:
        UserError: when options contradict the checkpoint, or it cannot be opened.
    """
    if place()[1] > 1:
        raise UserError("An evaluation is made by one process: start it without torchrun.")
    import_asked(argv)
    parser = test_parser(evaluator_class)
    model_path = parser.parse_given(argv).get("model_path")
    if not model_path:
        parser.error("--model_path is needed: the checkpoint to evaluate, Results/.../..._best_ckpt.pth")
    trained = trained_options(load_checkpoint(model_path, tensors_of=()), model_path)
    known = {name: value for name, value in trained.items() if name in parser.known}
    check_own_code(known, model_path, test_parser(evaluator_class), argv)
    opt = parser.resolve(argv, [(trained, model_path)])
    check_network(vars(opt), trained, model_path)
    load_own_code(opt)
    return print_or_go_on(parser, opt)


# ---- code of somebody's own ------------------------------------------------------------------------------------------
def import_asked(argv: Sequence[str] | None) -> None:
    """Import the modules of --import, before the parser is made: the names that they register become choices."""
    parser = OptionParser(add_help=False)
    add_file_options(parser)
    given, _ = parser.parse_known_args(argv)
    for path in given.config or []:
        for file in read_with_bases(path):
            modules = {name: value for name, value in file.values.items() if name == "import"}
            parser.apply(modules, file.path, lines=file.lines)
    for module in getattr(given, "import") or parser.get_default("import") or []:
        import_module(module, f"--import {module}")


def check_own_code(
    options: Mapping[str, Any], path: str | Path, parser: OptionParser, argv: Sequence[str] | None
) -> None:
    """Raise UserError when a checkpoint's options would import what the user has not named, see engine/registry.py."""
    own = vars(parser.resolve(argv))
    refuse_unrepeated(unrepeated(options, own, parser.asked, not is_run_dir(Path(path).parent)), path)


def load_own_code(opt: Namespace) -> None:
    """Import what the options name, so that what is missing is told before anything is made or written."""
    load_all(vars(opt))
    for name in getattr(opt, "callbacks", None) or []:
        own_class(name)


def print_or_go_on(parser: OptionParser, opt: Namespace) -> Namespace:
    """Return the options; with --print_config print them instead, and end with status 0."""
    if not opt.print_config:
        return opt
    if place()[0] == 0:
        print(as_text(parser, vars(opt)))
    sys.exit(0)


def harmless_options(options: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The options of a checkpoint without those that would make a program write where the file says.

    Args:
        options: of the checkpoint; those of a run directory may name it, and what the data is fetched from and to.
        path: where the checkpoint is.
    """
    is_own, data_dir = is_run_dir(Path(path).parent), str(options.get("data_dir", ""))
    left_out = () if is_own else ("output_dir", "cache_dir", "shard_cache_dir")
    if not Path(data_dir).is_dir() and not (is_own and is_url(data_dir)):
        left_out = (*left_out, "data_dir")  # it would be made
    harmless = {name: value for name, value in with_new_names(options).items() if name not in left_out}
    if isinstance(arguments := options.get("data_args"), dict) and not is_own:
        of_paths = (*left_out, "data_dir")
        harmless["data_args"] = {name: value for name, value in arguments.items() if name not in of_paths}
    return harmless


def with_new_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an older run by the names that they have now."""
    return {OLD_NAMES.get(name, name): value for name, value in options.items()}


def trained_options(state: dict[str, Any], path: str) -> dict[str, Any]:
    """The options of a checkpoint that an evaluation starts from."""
    options = harmless_options(options_of(state, path), path)
    return {name: value for name, value in options.items() if name not in OF_THE_LAUNCH}


def find_automatically(parser: OptionParser, argv: Sequence[str] | None, notes: list[str]) -> str | None:
    """What --resume auto stands for: the newest unfinished run of this project with these options; None without one."""
    options_now = vars(parser.resolve(argv))
    names = {name: options_now[name] for name in ("output_dir", "proj_name")}
    for path, options in unfinished_runs(**names):
        options = with_new_names(options)
        kept = parser.asked & options.keys() - set(MAY_CHANGE)
        if others := [name for name in sorted(kept) if options_now[name] != options[name]]:
            notes.append(f"--resume auto: passes over {path}, which has another --{' --'.join(others)}.")
            continue
        notes.append(f"--resume auto: goes on with {path}.")
        return str(path)
    where = f"of {names['proj_name']} in {names['output_dir']}"
    notes.append(f"--resume auto: no unfinished run {where}; a new one begins.")
    return None
