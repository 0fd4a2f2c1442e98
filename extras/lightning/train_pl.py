"""Train a task under Lightning's Trainer instead of our loop.

    python train_pl.py trainer_vanilla.py --n_epoch 2
    python train_pl.py trainer_vanilla.py --n_epoch 2 --pl_args accelerator=cpu devices=2 strategy=ddp

The options are the task's; docs/lightning.md says which of them Lightning takes over, and how.
"""

import importlib.util
import inspect
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from base_options import check_options, check_own_code, harmless_options, train_parser
from callbacks.callback import Callback
from engine.devices.device import select_devices
from engine.options.arguments import call
from engine.options.files import read_options
from engine.options.mappings import argument, setting
from engine.options.parser import ExtendAction, OptionParser, file_path, plain_text, run_main
from engine.options.plugins import is_reference, load, short_name
from engine.options.task_program import load_class
from extras.lightning.checkpoint import BEST, LAST, export_run, newest_of
from option_list import add_common_options, add_train_options
from trainer import TrainerBase
from utils.earlystopper import direction
from utils.errors import UserError, nearest, shown

# What becomes of each option that all tasks share; what a task adds is its own, and stays.
TAKEN_OVER = {
    "n_epoch": "max_epochs", "val_every": "check_val_every_n_epoch", "log_every": "log_every_n_steps",
    "amp": "precision", "deterministic": "deterministic, benchmark", "gpu_devices": "accelerator, devices",
    "nproc": "accelerator, devices, strategy", "parallel": "devices, strategy: none or ddp",
    "monitor": "ModelCheckpoint, EarlyStopping", "monitor_mode": "ModelCheckpoint, EarlyStopping",
    "patience": "EarlyStopping", "min_delta": "EarlyStopping", "save_every": "ModelCheckpoint, in whole epochs",
    "save_every_updates": "ModelCheckpoint", "keep": "ModelCheckpoint", "logger": "Lightning's loggers",
    "max_updates": "an early stop, with a validation", "resume": "ckpt_path: a run directory, or a .ckpt in it",
}  # fmt: skip
STAYS = {
    "config", "set", "import", "print_config", "data_type", "data_args", "data_dir", "train_val_sample_rate",
    "test_sample_rate", "val_split", "split_seed", "num_workers", "data_device", "eval_batch_size", "worker_timeout",
    "limit_batches", "skip_bad_samples", "model_type", "model_args", "n_channels", "n_classes", "loss_type",
    "loss_args", "model_path", "pretrained", "compile", "channels_last", "seed", "debug", "proj_name", "description",
    "output_dir", "save_code", "batch_size", "micro_batch_size", "init", "optim", "optim_args", "lr", "weight_decay",
    "momentum", "clip", "clip_type", "lr_scheduler", "scheduler_args", "scheduler_step", "lr_min", "warmup_epoch",
    "warmup_multiplier", "lr_decay_epochs", "lr_decay_every", "lr_decay_rate", "freeze", "train_only", "param_lr",
    "param_clip", "no_decay", "ema", "swa_start", "sync_bn", "activation_checkpointing", "callbacks", "nan_policy",
    "max_skips", "stop_below", "trace", "kill_at", "profile",
}  # fmt: skip
WITH_THE_TASK = "it does not train; give it to the task's own program"
REFUSED = {
    "dist_timeout": "Lightning's processes wait for each other as its strategy says",
    "max_restarts": "torchrun --max_restarts starts processes again",
    "checkpoint_format": "Lightning writes one file",
    "max_time": "Lightning ends an epoch early, where we stop between two updates and go on there. If that will do: "
    "--pl_args max_time=DD:HH:MM:SS",
    "requeue": "under SLURM Lightning puts a job back in the queue by itself, after SIGUSR1",
    **dict.fromkeys(("replay", "verify_resume", "doctor", "find_lr", "find_lr_range", "find_lr_values",
                     "find_lr_updates", "find_lr_runs"), WITH_THE_TASK),
}  # fmt: skip
# Arguments of Lightning's Trainer that an option stands for, or that the loader of the updates does not allow.
NOT_TO_BE_GIVEN = {
    "max_epochs": "--n_epoch", "logger": "--logger", "callbacks": "--pl_callbacks", "plugins": "precision=",
    "check_val_every_n_epoch": "--val_every", "log_every_n_steps": "--log_every", "default_root_dir": "--output_dir",
    "accumulate_grad_batches": "--micro_batch_size", "gradient_clip_val": "--clip", "deterministic": "--deterministic",
    "gradient_clip_algorithm": "--clip_type", "benchmark": "--deterministic", "limit_train_batches": "--limit_batches",
    "limit_val_batches": "--limit_batches", "overfit_batches": "--limit_batches", "fast_dev_run": "--debug",
    "enable_checkpointing": "--save_every", "sync_batchnorm": "--sync_bn", "limit_test_batches": "eval_*.py",
    "limit_predict_batches": "eval_*.py", "use_distributed_sampler": "--seed, which is the order of the data",
    "reload_dataloaders_every_n_epochs": "--seed, which is the order of the data", "barebones": "--logger none",
}  # fmt: skip
INSTEAD = {  # of callbacks of Lightning's that need its own step
    "BatchSizeFinder": "--micro_batch_size", "GradientAccumulationScheduler": "--micro_batch_size",
    "LearningRateFinder": "--find_lr to the task's own program", "StochasticWeightAveraging": "--swa_start",
    "WeightAveraging": "--swa_start", "EMAWeightAveraging": "--ema", "BackboneFinetuning": "--freeze, and two runs",
}  # fmt: skip
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
PRECISIONS = {  # Lightning's names, and ours
    "32-true": "no", "32": "no", "bf16-mixed": "bf16", "bf16": "bf16", "16-mixed": "fp16", "16": "fp16",
}  # fmt: skip


# ---- what is asked for -----------------------------------------------------------------------------------------------
def build_parser() -> OptionParser:
    """The parser of what this program takes besides the options of the task."""
    parser = OptionParser(
        prog="train_pl.py", description=__doc__.split("\n")[0], add_help=False,
        usage="python train_pl.py TASK [options of the task] [--pl_args NAME=VALUE ...] [--pl_callbacks NAME ...]",
    )  # fmt: skip
    add = parser.add_argument_group("Lightning").add_argument
    add("--task", type=file_path, default=None, metavar="PROGRAM",
        help="trainer_vanilla.py, a module such as examples.own_task, or MODULE:CLASS; also as the first argument")
    add("--pl_args", type=setting, nargs="+", action=ExtendAction, default=None, metavar="NAME=VALUE",
        help="arguments of lightning.Trainer, as devices=2 strategy=ddp; and of the classes of --pl_callbacks, as "
        "LearningRateMonitor.logging_interval=step")
    add("--pl_callbacks", type=plain_text, nargs="+", action=ExtendAction, default=None, metavar="NAME",
        help="classes of lightning.pytorch.callbacks, or MODULE:NAME of your own")
    add("--resume", type=file_path, default=None, metavar="PATH",
        help="a run directory of this program to go on with, from its newest .ckpt; or one of these")
    return parser


def parse(argv: Sequence[str]) -> tuple[Namespace, list[str]]:
    """This program's options, and what is left for the task."""
    argv = [*argv]
    if argv and not argv[0].startswith("-"):
        argv[0] = f"--task={argv[0]}"
    parser = build_parser()
    own, rest = parser.parse_known_args(argv)
    unknown = next((text.split("=")[0] for text in rest if text.startswith("--pl_")), None)
    if unknown:
        parser.error(f"unknown option {shown(unknown)}{nearest(unknown[:60], ('--pl_args', '--pl_callbacks'))}")
    if {"-h", "--help"} & set(rest):
        print(parser.format_help())
        if not own.task:
            sys.exit(0)
    if not own.task:
        raise UserError("Say which task: python train_pl.py trainer_vanilla.py --n_epoch 2")
    return own, rest


def find_run(resume: str) -> tuple[Path, Path]:
    """The checkpoint of Lightning's to go on with, and the options of its run; UserError when they are not there."""
    path = Path(resume)
    if resume == "auto":
        raise UserError("--resume auto is for our own loop. Give the directory of the run.")
    if not path.exists():
        raise UserError(f"--resume {resume}: there is no such run directory or checkpoint.")
    if path.is_dir():
        if not (newest := newest_of(path)):
            raise UserError(f"--resume {resume}: no {LAST}-UPDATE.ckpt of Lightning's is in this directory.")
        path = newest
    if path.suffix != ".ckpt":
        raise UserError(f"--resume {resume} is no .ckpt of Lightning's. Our own loop goes on with it, in the task's "
                        f"program; to begin with its weights here: --pretrained --model_path {resume}")  # fmt: skip
    configs = sorted(path.parent.glob("config_*.json"))
    if not configs:
        raise UserError(f"--resume {resume}: its run's options, config_NAME.json, do not stand beside it.")
    return path, configs[0]


def options_of_task(
    trainer_class: type[TrainerBase], own: Namespace, rest: Sequence[str]
) -> tuple[Namespace, set[str]]:
    """The resolved options of the task, those of a resumed run included, and the names of those on the command line.

    Raises:
        UserError: when one of them cannot be had under Lightning, or contradicts the run that is resumed.
    """
    given = set(train_parser(trainer_class).parse_given(rest)) if not {"-h", "--help"} & set(rest) else set()
    refuse(neutral_values(), given)
    path = config = None
    saved: dict[str, Any] = {}
    if own.resume:
        path, config = find_run(own.resume)
        saved = harmless_options(read_options(config), config)
        check_own_code(saved, config, train_parser(trainer_class), rest)
        rest = ["--config", str(config), *rest]
    opt = trainer_class.parse_options(rest)
    check_options(vars(opt), saved)
    opt.resume = str(path) if path else None
    refuse(vars(opt), set())
    return opt, given


def neutral_values() -> dict[str, Any]:
    """The defaults of the options that all tasks share."""
    parser = OptionParser()
    add_train_options(parser)
    add_common_options(parser, None)
    return {name: parser.get_default(name) for name in parser.known}


def refuse(options: Mapping[str, Any], given: set[str]) -> None:
    """Raise UserError for what is asked for and cannot be had: an option of `given`, or one with a value of its own."""
    neutral = neutral_values()
    for name, why in REFUSED.items():
        if name in given or options[name] != neutral[name]:
            raise UserError(f"--{name} does not go with Lightning: {why}.")
    if options["parallel"] in ("dp", "fsdp"):
        raise UserError(f"--parallel {options['parallel']} does not go with Lightning here: give none or ddp.")
    if options["micro_batch_size"] == "auto":
        raise UserError("--micro_batch_size auto does not go with Lightning: give a number, or leave it out.")
    if options["save_every_updates"] is None and options["save_every"] % 1:
        raise UserError(
            f"--save_every {options['save_every']:g}: Lightning counts whole epochs. Give updates instead: "
            f"--save_every_updates N"
        )
    if options["max_updates"] and options["val_every"] > 1:
        raise UserError("--max_updates goes with --val_every 1 or 0: Lightning would not validate after the last one.")
    if options["val_every"] and options["n_epoch"] % options["val_every"]:
        raise UserError(
            f"--val_every {options['val_every']}: Lightning would not validate after the last epoch. Give a divisor of "
            f"--n_epoch {options['n_epoch']}."
        )


# ---- Lightning's settings --------------------------------------------------------------------------------------------
def read_arguments(pairs: Sequence[tuple[str, str]], callbacks: Sequence[str]) -> tuple[dict, dict[str, dict]]:
    """The arguments of --pl_args: those of Lightning's Trainer, and by its name those of each callback.

    Raises:
        UserError: for a name that is none of its arguments, or that an option of ours stands for.
    """
    import lightning

    known = set(inspect.signature(lightning.Trainer).parameters)
    of_trainer, of_callbacks = {}, {short_name(name): {} for name in callbacks}
    for name, text in pairs:
        head, _, inner = name.partition(".")
        try:
            value = argument(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"--pl_args {name}={shown(text)}: {error}") from None
        if inner and head in of_callbacks:
            of_callbacks[head][inner] = value
        elif inner:
            raise UserError(f"--pl_args {name}: {head} is none of --pl_callbacks{nearest(head, of_callbacks)}.")
        elif name not in known:
            names = ", ".join(sorted(known - NOT_TO_BE_GIVEN.keys()))
            hint = nearest(name[:60], known)
            raise UserError(f"--pl_args: lightning.Trainer takes no argument {shown(name)}{hint}; it takes {names}.")
        elif name in NOT_TO_BE_GIVEN:
            raise UserError(f"--pl_args {name}: give {NOT_TO_BE_GIVEN[name]} instead.")
        else:
            of_trainer[name] = value
    return of_trainer, of_callbacks


def make_callbacks(names: Sequence[str], arguments: Mapping[str, Mapping[str, Any]]) -> list:
    """The callbacks of --pl_callbacks; UserError for a name that is none, or arguments that it does not take."""
    from lightning.pytorch import Callback as LightningCallback
    from lightning.pytorch import callbacks
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    made = []
    for name in names:
        if name in INSTEAD:
            raise UserError(f"--pl_callbacks {name} changes the step, which is the task's: give {INSTEAD[name]}.")
        known = [each for each in callbacks.__all__ if each != "Callback"]
        if not is_reference(name) and name not in known:
            raise UserError(
                f"--pl_callbacks {shown(name)} is none of lightning.pytorch.callbacks{nearest(name[:60], known)}, and "
                f"not MODULE:NAME; these are {', '.join(known)}."
            )
        make = load(name, "pl_callbacks") if is_reference(name) else getattr(callbacks, name)
        if isinstance(make, type) and issubclass(make, Callback):
            raise UserError(f"--pl_callbacks {name} is a callback of this template: give it by --callbacks.")
        try:
            callback = call(make, {}, arguments[short_name(name)], f"--pl_args {short_name(name)}.NAME=VALUE")
        except MisconfigurationException as error:
            raise UserError(f"--pl_callbacks {name}: {' '.join(str(error).split())[:300]}") from None
        if not isinstance(callback, LightningCallback):
            raise UserError(f"--pl_callbacks {name} makes no lightning.pytorch.Callback.")
        made.append(callback)
    return made


def own_callbacks(opt: Namespace) -> list:
    """Lightning's callbacks that the options stand for: the best and the last checkpoints, and the early stop."""
    from lightning.pytorch.callbacks import EarlyStopping

    from extras.lightning.module import Checkpoint

    watch = {"monitor": f"val/{opt.monitor}", "mode": direction(opt.monitor, opt.monitor_mode)}
    plain = {"auto_insert_metric_name": False, "enable_version_counter": False}
    often = {"every_n_epochs": int(opt.save_every), "save_on_train_epoch_end": True}
    if opt.save_every_updates:
        often = {"every_n_train_steps": opt.save_every_updates}
    made = [Checkpoint(filename=f"{LAST}-{{step}}", monitor="step", mode="max", save_top_k=opt.keep, **plain, **often)]
    if opt.val_every:
        made.insert(0, Checkpoint(filename=BEST, **watch, **plain, save_on_train_epoch_end=True))
    if opt.patience and opt.val_every:
        made.append(EarlyStopping(**watch, patience=opt.patience, min_delta=opt.min_delta, check_finite=False,
                                  check_on_train_epoch_end=False))  # fmt: skip
    return made


def settle_device(opt: Namespace, given: set[str], arguments: dict[str, Any]) -> dict[str, Any]:
    """Where Lightning is to compute: as --pl_args says, or as --gpu_devices, --nproc and --parallel do."""
    named = sorted({"accelerator", "devices", "strategy", "num_nodes"} & arguments.keys())
    ours = sorted({"gpu_devices", "nproc", "parallel"} & given)
    if named and ours:
        raise UserError(f"--{ours[0]} and --pl_args {named[0]} both say where to compute: give one of them.")
    strategy = str(arguments.get("strategy", "auto"))
    if strategy not in STRATEGIES:
        raise UserError(
            f"--pl_args strategy={strategy} is not one of {', '.join(STRATEGIES)}{nearest(strategy, STRATEGIES)}; "
            f"others cut the weights up, or start processes in a way that the task's step does not allow for."
        )
    if named:
        return {}
    if opt.nproc > 1:
        return {"accelerator": "cpu", "devices": opt.nproc, "strategy": "ddp"}
    devices, _ = select_devices(opt.gpu_devices)
    several = opt.parallel == "ddp" and len(devices) > 1
    if devices[0].type != "cuda":
        return {"accelerator": devices[0].type, "devices": 1}
    ids = [device.index for device in (devices if several else devices[:1])]
    return {"accelerator": "gpu", "devices": ids, "strategy": "ddp" if several else "auto"}


def settle_precision(opt: Namespace, given: set[str], arguments: dict[str, Any], accelerator: Any) -> dict[str, Any]:
    """Lightning's precision for --amp; or --amp for Lightning's, since the options of a run are saved with it."""
    if "precision" in arguments:
        asked = str(arguments.pop("precision"))
        if asked not in PRECISIONS:
            raise UserError(
                f"--pl_args precision={asked} is not one of {', '.join(PRECISIONS)}{nearest(asked, PRECISIONS)}; "
                f"the task's step has weights of float32."
            )
        if "amp" in given and opt.amp != PRECISIONS[asked]:
            raise UserError(f"--amp {opt.amp} and --pl_args precision={asked} contradict each other: give one of them.")
        opt.amp = PRECISIONS[asked]
    if opt.amp != "fp16":
        return {"precision": "bf16-mixed" if opt.amp == "bf16" else "32-true"}
    import torch

    from extras.lightning.module import Float16

    on_gpu = accelerator in ("gpu", "cuda") or (accelerator in (None, "auto") and torch.cuda.is_available())
    return {"plugins": [Float16("cuda" if on_gpu else "cpu" if accelerator != "mps" else "mps")]}


def make_trainer(opt: Namespace, given: set[str], own: Namespace):
    """Lightning's Trainer, as the options ask for; UserError for what it does not take."""
    import lightning
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    names = own.pl_callbacks or []
    arguments, of_callbacks = read_arguments(own.pl_args or [], names)
    callbacks = [*own_callbacks(opt), *make_callbacks(names, of_callbacks)]
    settings = {
        "max_epochs": opt.n_epoch, "check_val_every_n_epoch": opt.val_every or 1, "log_every_n_steps": opt.log_every,
        "deterministic": opt.deterministic, "benchmark": not opt.deterministic, "default_root_dir": opt.output_dir,
        "limit_val_batches": 1 if opt.val_every else 0, "logger": False, "callbacks": callbacks,
        "use_distributed_sampler": False,
        # as in our loop, unless --pl_args says otherwise
        "num_sanity_val_steps": 0, "inference_mode": False, "enable_progress_bar": sys.stderr.isatty(),
        **settle_device(opt, given, arguments),
    }  # fmt: skip
    settings |= settle_precision(opt, given, arguments, arguments.get("accelerator", settings.get("accelerator")))
    try:
        return lightning.Trainer(**settings | arguments)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"Lightning does not take these --pl_args: {' '.join(str(error).split())[:300]}") from None


# ---- run -------------------------------------------------------------------------------------------------------------
def train(own: Namespace, rest: Sequence[str]):
    """Train as the options say, leave the best and the last weights as checkpoints of ours, and return the module."""
    if importlib.util.find_spec("lightning") is None:
        raise UserError("This needs Lightning, which is not installed: pip install lightning")
    trainer_class = load_class(own.task, TrainerBase, "task")
    opt, given = options_of_task(trainer_class, own, rest)
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from extras.lightning.module import TaskModule

    trainer, module = make_trainer(opt, given, own), TaskModule(trainer_class, opt, with_loggers=True)
    try:
        trainer.fit(module, ckpt_path=opt.resume, weights_only=True)
    except SystemExit:
        if isinstance(module.stopped_by, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        if isinstance(module.stopped_by, SIGTERMException):
            sys.exit(143)
        raise
    finally:
        if module.task and module.task.distributed.is_main:
            for line in export_run(module.task.run_dir.path, short_name(opt.model_type)):
                module.task.logger.info(line)
            if module.stopped_by and newest_of(module.task.run_dir.path):
                how = f"python train_pl.py {own.task} --resume {module.task.run_dir.path}"
                module.task.logger.info(f"To go on from there: {how}, and --pl_args as before")
    return module


def main(argv: Sequence[str] | None = None) -> None:
    train(*parse(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    run_main(main)
