"""Train a task under Lightning's Trainer.

    python train_pl.py trainer_vanilla.py --n_epoch 2
    python train_pl.py trainer_vanilla.py --n_epoch 2 --pl_args accelerator=cpu devices=2 strategy=ddp

The options are the task's; docs/lightning.md says which of them Lightning takes over, and how.
"""

import contextlib
import importlib.util
import inspect
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from callbacks.callback import Callback
from engine.devices.setup import select_devices
from engine.options.files import argument
from engine.options.parser import OptionParser, file_path, plain_text, run_main, setting
from engine.registry import call, is_reference, load, short_name
from trainer import TrainerBase
from utils.errors import UserError, nearest, shown

# Arguments of Lightning's Trainer that an option of the task stands for.
NOT_TO_BE_GIVEN = {
    "max_epochs": "--n_epoch", "callbacks": "--pl_callbacks", "logger": "--pl_loggers", "plugins": "precision=",
    "check_val_every_n_epoch": "--val_every", "val_check_interval": "--val_every", "max_steps": "--max_updates",
    "accumulate_grad_batches": "--micro_batch_size", "gradient_clip_val": "--clip", "deterministic": "--deterministic",
    "gradient_clip_algorithm": "--clip_type", "benchmark": "--deterministic", "limit_train_batches": "--limit_batches",
    "limit_val_batches": "--limit_batches", "overfit_batches": "--limit_batches", "fast_dev_run": "--debug",
    "enable_checkpointing": "--pl_callbacks", "sync_batchnorm": "--sync_bn", "limit_test_batches": "eval_*.py",
    "limit_predict_batches": "eval_*.py", "use_distributed_sampler": "--seed, which is the order of the data",
    "reload_dataloaders_every_n_epochs": "--seed, which is the order of the data",
}  # fmt: skip
# Callbacks of Lightning's that need a step of Lightning's.
INSTEAD = {
    "BatchSizeFinder": "--micro_batch_size", "GradientAccumulationScheduler": "--micro_batch_size",
    "LearningRateFinder": "python -m tools.find_lr", "StochasticWeightAveraging": "--swa_start",
    "WeightAveraging": "--swa_start", "EMAWeightAveraging": "--ema", "BackboneFinetuning": "--freeze, and two runs",
}  # fmt: skip
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
PRECISIONS = {  # Lightning's names, and ours
    "32-true": "no", "32": "no", "bf16-mixed": "bf16", "bf16": "bf16", "16-mixed": "fp16", "16": "fp16",
}  # fmt: skip


# ---- options ---------------------------------------------------------------------------------------------------------
def build_parser() -> OptionParser:
    """Return the parser of this program's own options."""
    parser = OptionParser(
        prog="train_pl.py",
        description=__doc__.split("\n")[0],
        add_help=False,
        usage="python train_pl.py TASK [options of the task] [--pl_args NAME=VALUE ...] [--pl_callbacks NAME ...]",
    )
    add = parser.add_argument_group("Lightning").add_argument
    add("--task", type=file_path, default=None, metavar="PROGRAM",
        help="trainer_vanilla.py, a module such as examples.own_task, or MODULE:CLASS; also as the first argument")
    add("--pl_args", type=setting, nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="arguments of lightning.Trainer, as devices=2 strategy=ddp; and of the classes of --pl_callbacks and "
        "--pl_loggers, as LearningRateMonitor.logging_interval=step")
    add("--pl_callbacks", type=plain_text, nargs="+", action="extend", default=[], metavar="NAME",
        help="classes of lightning.pytorch.callbacks, or MODULE:NAME of your own")
    add("--pl_loggers", type=plain_text, nargs="+", action="extend", default=[], metavar="NAME",
        help="classes of lightning.pytorch.loggers, or MODULE:NAME of your own")
    return parser


def parse(argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """Return this program's options, and the rest of the command line, for the task."""
    argv = [*argv]
    if argv and not argv[0].startswith("-"):
        argv[0] = f"--task={argv[0]}"
    parser = build_parser()
    own, rest = parser.parse_known_args(argv)
    for text in rest:
        if text.startswith("--pl_"):
            name = text.split("=")[0]
            hint = nearest(name[:60], ("--pl_args", "--pl_callbacks", "--pl_loggers"))
            parser.error(f"unknown option {shown(name)}{hint}")
    if {"-h", "--help"} & set(rest):
        print(parser.format_help())
        if not own.task:
            sys.exit(0)
    if not own.task:
        raise UserError("Say which task: python train_pl.py trainer_vanilla.py --n_epoch 2")
    return own, rest


def options_of_task(trainer_class: type[TrainerBase], own: Namespace, rest: Sequence[str]) -> Namespace:
    """Return the resolved options of the task.

    Raises:
        UserError: Lightning does not support one of them, or one contradicts --pl_args.
    """
    precision = dict(own.pl_args).get("precision")
    if precision is not None:
        if precision not in PRECISIONS:
            raise UserError(
                f"--pl_args precision={precision} is not one of {', '.join(PRECISIONS)}"
                f"{nearest(precision, PRECISIONS)}; the task's step has weights of float32."
            )
        rest = [f"--amp={PRECISIONS[precision]}", *rest]
    with as_one_process():
        opt = trainer_class.parse_options(rest)
    if precision is not None and opt.amp != PRECISIONS[precision]:
        raise UserError(f"--amp {opt.amp} and --pl_args precision={precision} contradict each other: give one of them.")
    if opt.parallel in ("dp", "fsdp"):
        raise UserError(f"--parallel {opt.parallel} does not go with Lightning here: give none or ddp.")
    if opt.micro_batch_size == "auto":
        raise UserError("--micro_batch_size auto does not go with Lightning: give a number, or leave it out.")
    if opt.max_restarts:
        raise UserError("--max_restarts does not go with Lightning: torchrun --max_restarts starts processes again.")
    if opt.checkpoint_format != "file":
        raise UserError(f"--checkpoint_format {opt.checkpoint_format} does not go with Lightning: give file.")
    return opt


@contextlib.contextmanager
def as_one_process() -> Iterator[None]:
    """Hide in the block that Lightning has started this process, since it says only later which one of them it is."""
    is_lightnings = "WORLD_SIZE" in os.environ and "RANK" not in os.environ
    size = os.environ.pop("WORLD_SIZE") if is_lightnings else None
    try:
        yield
    finally:
        if size is not None:
            os.environ["WORLD_SIZE"] = size


# ---- Lightning's settings --------------------------------------------------------------------------------------------
def read_arguments(pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> tuple[dict, dict[str, dict]]:
    """Return the arguments of lightning.Trainer, and those of each class of --pl_callbacks and --pl_loggers.

    Raises:
        UserError: a name is not one of the arguments, or an option of the task stands for it.
    """
    import lightning

    known = set(inspect.signature(lightning.Trainer).parameters)
    of_trainer: dict[str, Any] = {}
    of_classes: dict[str, dict[str, Any]] = {short_name(name): {} for name in classes}
    for name, text in pairs:
        head, _, inner = name.partition(".")
        try:
            value = argument(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"--pl_args {name}={shown(text)}: {error}") from None
        if inner and head in of_classes:
            of_classes[head][inner] = value
        elif inner:
            hint = nearest(head, of_classes)
            raise UserError(f"--pl_args {name}: {head} is not one of --pl_callbacks or --pl_loggers{hint}.")
        elif name not in known:
            names = ", ".join(sorted(known - NOT_TO_BE_GIVEN.keys()))
            hint = nearest(name[:60], known)
            raise UserError(f"--pl_args: lightning.Trainer takes no argument {shown(name)}{hint}; it takes {names}.")
        elif name in NOT_TO_BE_GIVEN:
            raise UserError(f"--pl_args {name}: give {NOT_TO_BE_GIVEN[name]} instead.")
        else:
            of_trainer[name] = value
    return of_trainer, of_classes


def make_named(option: str, names: Sequence[str], opt: Namespace, arguments: Mapping[str, Mapping[str, Any]]) -> list:
    """Make the callbacks or loggers of Lightning's that an option names.

    Args:
        option: pl_callbacks or pl_loggers.
        names: the classes.
        opt: options of the task; a logger writes to its --output_dir.
        arguments: those of --pl_args, by the name of the class.

    Raises:
        UserError: there is no such class, or it does not take its arguments.
    """
    from lightning.pytorch import callbacks, loggers
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    module, base = (callbacks, callbacks.Callback) if option == "pl_callbacks" else (loggers, loggers.Logger)
    known = [name for name in module.__all__ if name != base.__name__]
    made = []
    for name in names:
        if name in INSTEAD:
            raise UserError(f"--{option} {name} changes the step, which is the task's: give {INSTEAD[name]}.")
        if not is_reference(name) and name not in known:
            raise UserError(
                f"--{option} {shown(name)} is not one of {module.__name__}{nearest(name[:60], known)}, and not "
                f"MODULE:NAME; these are {', '.join(known)}."
            )
        make = load(name, option) if is_reference(name) else getattr(module, name)
        if isinstance(make, type) and issubclass(make, Callback):
            raise UserError(f"--{option} {name} is a callback of this template: give it by --callbacks.")
        offered = {"save_dir": opt.output_dir} if "save_dir" in inspect.signature(make).parameters else {}
        try:
            built = call(make, offered, arguments[short_name(name)], f"--pl_args {short_name(name)}.NAME=VALUE")
        except (MisconfigurationException, ModuleNotFoundError) as error:
            raise UserError(f"--{option} {name}: {' '.join(str(error).split())[:300]}") from None
        if not isinstance(built, base):
            raise UserError(f"--{option} {name} does not make a {base.__module__}.{base.__name__}.")
        made.append(built)
    return made


def choose_devices(opt: Namespace, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that say where Lightning computes: those of --pl_args, or as the options of the task say."""
    named = sorted({"accelerator", "devices", "strategy", "num_nodes"} & arguments.keys())
    strategy = str(arguments.get("strategy", "auto"))
    if strategy not in STRATEGIES:
        raise UserError(
            f"--pl_args strategy={strategy} is not one of {', '.join(STRATEGIES)}{nearest(strategy, STRATEGIES)}; "
            f"others shard the weights, or start processes in a way that the task's step does not allow for."
        )
    if named:
        for name, default in (("gpu_devices", "0"), ("nproc", 1)):
            if getattr(opt, name) != default:
                raise UserError(f"--{name} and --pl_args {named[0]} both say where to compute: give one of them.")
        return {name: arguments[name] for name in named}
    if opt.nproc > 1:
        return {"accelerator": "cpu", "devices": opt.nproc, "strategy": "ddp"}
    devices, _ = select_devices(opt.gpu_devices)
    if devices[0].type != "cuda":
        return {"accelerator": devices[0].type, "devices": 1}
    if opt.parallel == "ddp" and len(devices) > 1:
        return {"accelerator": "gpu", "devices": [device.index for device in devices], "strategy": "ddp"}
    return {"accelerator": "gpu", "devices": [devices[0].index]}


def choose_precision(opt: Namespace, accelerator: str) -> dict[str, Any]:
    """Return the argument of lightning.Trainer for --amp."""
    if opt.amp != "fp16":
        return {"precision": "bf16-mixed" if opt.amp == "bf16" else "32-true"}
    import torch

    from extras.lightning.module import Float16

    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    kind = "mps" if accelerator == "mps" else "cpu"
    return {"plugins": [Float16("cuda" if on_gpu else kind)]}


def make_trainer(opt: Namespace, own: Namespace):
    """Return Lightning's Trainer, as the options ask for; UserError for an argument that it does not take."""
    import lightning
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    arguments, of_classes = read_arguments(own.pl_args, [*own.pl_callbacks, *own.pl_loggers])
    arguments.pop("precision", None)
    callbacks = make_named("pl_callbacks", own.pl_callbacks, opt, of_classes)
    devices = choose_devices(opt, arguments)
    settings = {
        "max_epochs": opt.n_epoch,
        "log_every_n_steps": opt.log_every,
        "deterministic": opt.deterministic,
        "benchmark": not opt.deterministic,
        "default_root_dir": opt.output_dir,
        "callbacks": callbacks,
        "logger": make_named("pl_loggers", own.pl_loggers, opt, of_classes),
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": False,  # the task has its own
        "use_distributed_sampler": False,  # each process gets its share of an update from the task
        **choose_precision(opt, str(devices.get("accelerator", "auto"))),
    }
    try:
        return lightning.Trainer(**settings | devices | arguments)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"Lightning does not take these --pl_args: {' '.join(str(error).split())[:300]}") from None


# ---- run -------------------------------------------------------------------------------------------------------------
def train(own: Namespace, rest: Sequence[str]):
    """Train as the options say, and return the module."""
    if importlib.util.find_spec("lightning") is None:
        raise UserError("This needs Lightning, which is not installed: pip install lightning")
    trainer_class = load("tools.task_program:load_class", "task")(own.task, TrainerBase, "task")
    opt = options_of_task(trainer_class, own, rest)
    from extras.lightning.module import TaskModule

    trainer = make_trainer(opt, own)
    module = TaskModule(trainer_class, opt)
    try:
        trainer.fit(module)
    except BaseException as error:
        if module.stopped_by is not None and module.stopped_by is not error:
            raise module.stopped_by from None  # Lightning turns Ctrl-C into SystemExit
        raise
    return module


def main(argv: Sequence[str] | None = None) -> None:
    train(*parse(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    run_main(main)
