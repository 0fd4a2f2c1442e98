"""The options that all tasks share, by group. A task adds its own in `add_options`.

Durations are in epochs and may be fractions, unless an option says otherwise.
"""

from argparse import Action, ArgumentTypeError
from collections.abc import Callable

from data.data_entry import DEBUG_BATCHES
from engine.devices.wrap import MODES
from engine.nan_guard import POLICIES
from engine.options.mappings import mapping, setting
from engine.options.parser import (
    BoolAction,
    ExtendAction,
    ListAction,
    OptionParser,
    device_ids,
    duration,
    file_name,
    file_path,
    list_of,
    number,
    one_of,
    plain_text,
)
from engine.registry import module_name, name_type, names
from loss.loss_entry import loss_term
from utils.errors import UserError, shown
from utils.initialize import INITS
from utils.param_groups import parse_rate

MAX_EPOCHS = 10**6  # of any duration
OLD_NAMES = {"lr_decay_steps": "lr_decay_every", "save_every_steps": "save_every_updates"}  # taken, not listed


def number_or_auto(kind: Callable[[str], int]) -> Callable[[str], int | str]:
    """Return an argparse type that takes what `kind` takes, or the word auto."""

    def convert(text: str) -> int | str:
        try:
            return text if text == "auto" else kind(text)
        except ArgumentTypeError as error:
            raise ArgumentTypeError(f"{error}, and not auto") from None

    return convert


def pattern(text: str) -> str:
    """An argparse type for a pattern on the names of parameters."""
    if not plain_text(text).strip():
        raise ArgumentTypeError(f"{shown(text)} is not a pattern on names, such as 'layers.0.*'")
    return text


def pattern_and_rate(text: str) -> str:
    """An argparse type for PATTERN=RATE, where the rate may be a multiple of --lr."""
    try:
        parse_rate(plain_text(text))
    except UserError as error:
        raise ArgumentTypeError(f"{shown(text)}: {error}" if shown(text) not in str(error) else str(error)) from None
    return text


def pattern_and_norm(text: str) -> str:
    """An argparse type for PATTERN=NORM."""
    named, _, norm = plain_text(text).rpartition("=")
    if not named.strip():
        raise ArgumentTypeError(f"{shown(text)} is not PATTERN=NORM, such as 'layers.0.*=0.5'")
    try:
        number(float, above=0)(norm)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{shown(text)}: {error}") from None
    return text


def logger(text: str) -> str:
    """An argparse type for the name of a logger, or none."""
    return text if text == "none" else name_type("logger")(text)


def decay(text: str) -> float:
    """An argparse type for what an average keeps of itself, from 0 to below 1."""
    value = number(float, low=0, high=1)(text)
    if value == 1:
        raise ArgumentTypeError(f"{shown(text)} is not below 1, so the average would never move")
    return value
class OneOrMoreAction(Action):
    """Takes ``--name a`` for the text a, and ``--name a b`` for the list of both."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values[0] if len(values) == 1 else values)


def add_common_options(parser: OptionParser, task: str | None) -> None:
    """Add what training and evaluation share; `task` narrows the choice of data, model and loss."""
    add_file_options(parser)
    add_data_options(parser, task)
    add_model_options(parser, task)
    add_machine_options(parser)


def add_file_options(parser: OptionParser) -> None:
    """Add the options of where options come from, see docs/options.md."""
    add = parser.add_argument_group("where options come from").add_argument
    add("--config", type=file_path, action=ExtendAction, nargs="+", default=None, metavar="FILE",
        help="option files, JSON or YAML; later ones win, and the command line wins over all")
    add("--set", type=setting, action=ExtendAction, nargs="+", default=None, metavar="NAME=VALUE",
        help="single values, also inside of a mapping: model_args.width=64; these win over the flags")
    add("--import", type=module_name, nargs="+", default=None, metavar="MODULE",
        help="modules of your own to import first, for the names that they register")
    add("--print_config", action=BoolAction, default=False,
        help="print all options with where each came from, and stop")


def one_of_text(names: list[str], more: str = "") -> str:
    """How the help of an option begins, before what is always possible; a task of a new name has no names yet."""
    return f"one of {', '.join(names)}{more}; or " if names else ""


def add_mapping(add: Callable, name: str, of: str) -> None:
    add(name, type=mapping, default={}, metavar="JSON", help=f"further arguments of {of}, as '{{\"name\": value}}'")


def add_data_options(parser: OptionParser, task: str | None) -> None:
    """Add the options of the data."""
    group = parser.add_argument_group("data")
    add = group.add_argument
    types = names("data", task)
    add("--data_type", type=name_type("data", task), default=types[0] if types else None, metavar="NAME",
        help=f"{one_of_text(types)}MODULE:NAME of your own")
    add_mapping(add, "--data_args", "the data")
    add("--data_dir", type=file_path, default="./Dataset", metavar="DIR", help="where the data is, or is downloaded to")
    amount = number(float, above=0)
    add("--train_val_sample_rate", type=amount, default=1.0, metavar="X",
        help="how much to train and validate on: a fraction of what the test part leaves, or a count above 1")
    add("--test_sample_rate", type=amount, default=1.0, metavar="X",
        help="how much to test on: a fraction, or a count above 1")
    add("--val_split", type=amount, default=0.15, metavar="X",
        help="how much of the training and validation samples is for validation: a fraction, or a count above 1")
    add("--split_seed", type=number(int, low=0, high=2**63 - 1), default=0, metavar="N",
        help="seed of the split; another --seed trains on the same split")
    add("--num_workers", type=number_or_auto(number(int, low=0, high=1000)), default=0, metavar="N",
        help="processes that load data; 0 loads in the main process; auto measures for some seconds which number is "
        "fastest. Changes speed, not results")
    add("--data_device", type=one_of(("auto", "cpu", "cuda")), default="auto", metavar="WHERE",
        help="where data in memory is held: auto is on the GPU that trains, if a quarter of its free memory is enough")
    add("--eval_batch_size", type=number(int, low=1), default=None, metavar="N",
        help="samples per batch in validation and test (default: that of training). Changes speed, not results")
    add("--worker_timeout", type=number(float, low=0), default=300.0, metavar="S",
        help="seconds to wait for a batch of the loading processes before they count as hanging; 0 for ever")
    add("--limit_batches", type=number(int, low=1), default=None, metavar="N",
        help="at most N batches of each part in an epoch, to try something out")
    add("--skip_bad_samples", type=number(int, low=0), default=0, metavar="N",
        help="go on without samples that cannot be loaded, up to N different ones of each part")


def add_model_options(parser: OptionParser, task: str | None) -> None:
    """Add the options of the network and its loss."""
    add = parser.add_argument_group("model").add_argument
    types, more = names("model", task), ""
    if task == "classification":
        more = "; or torchvision:NAME or timm:NAME, a classifier of one of these libraries"
    add("--model_type", type=name_type("model", task), default=types[0] if types else None, metavar="NAME",
        help=f"{one_of_text(types, more)}MODULE:NAME of your own")
    add_mapping(add, "--model_args", "the network's class, or of several networks a mapping for each, by its name")
    add("--n_channels", type=number(int, low=1, high=4096), default=1, metavar="N", help="channels of an image")
    add("--n_classes", type=number(int, low=1, high=10**6), default=10, metavar="N", help="number of classes")
    losses = names("loss", task)
    add("--loss_type", type=loss_term(name_type("loss", task)), action=OneOrMoreAction, nargs="+",
        default=losses[0] if losses else None, metavar="NAME",
        help=f"{one_of_text(losses)}MODULE:NAME of your own; or a weighted sum of several, as NAME:1.0 NAME:0.5")
    add_mapping(add, "--loss_args", "the loss, or of several losses a mapping for each, by its name")
    add("--model_path", type=file_path, default=None, metavar="FILE",
        help="the checkpoint to evaluate, or to start --pretrained from")


def add_machine_options(parser: OptionParser) -> None:
    """Add the options of how to compute, which training and evaluation share."""
    add = parser.add_argument_group("machine").add_argument
    add("--gpu_devices", type=device_ids, default="0", metavar="IDS",
        help="GPU ids as 0 or 0,1, among the visible ones; or cpu")
    add("--amp", type=one_of(("no", "bf16", "fp16")), default="no", metavar="TYPE",
        help="mixed precision: no, bf16 or fp16")
    add("--compile", action=BoolAction, default=False, help="compile the networks with torch.compile")
    add("--channels_last", action=BoolAction, default=False, help="networks in channels-last memory order")
    add("--deterministic", action=BoolAction, default=False, help="only algorithms that repeat bit for bit on GPUs")
    add("--seed", type=number(int, low=0, high=2**63 - 1), default=None, metavar="N",
        help="seed of everything random; drawn, logged and saved when not given")
    add("-d", "--debug", action=BoolAction, default=False, help=f"{DEBUG_BATCHES} batches of each part, one epoch")


def add_test_options(parser: OptionParser) -> None:
    """Add the options of the evaluation as a program."""
    add = parser.add_argument_group("evaluation").add_argument
    add("--proj_name", type=file_name, default="Evaluation", metavar="NAME", help="name of the project")
    add("--split", type=one_of(("test", "val", "train")), default="test", metavar="PART", help="test, val or train")
    add("--save_path", type=file_path, default="./test_viz/", metavar="DIR", help="results go to DIR/TIMESTAMP")
    add("--viz", action=BoolAction, default=True, help="save pictures")
    add("--use_average", action=BoolAction, default=True,
        help="evaluate the average of the weights, if the run has made one (--ema, --swa_start)")
    add("--allow_seen", action=BoolAction, default=False, help="evaluate even on data that the run has seen")


def train_option_names() -> set[str]:
    """The options that only training has."""
    parser = OptionParser()
    add_train_options(parser)
    return set(parser.known)


def add_train_options(parser: OptionParser) -> None:
    """Add the base options of training."""
    positive, share = number(float, above=0), number(float, low=0, high=1)
    not_negative, whole = number(float, low=0), number(int, low=1)

    add = parser.add_argument_group("run").add_argument
    add("--proj_name", type=file_name, default="Plainloop", metavar="NAME", help="name of the run's files")
    add("--description", default="", metavar="TEXT", help="a note that is saved with the options")
    add("--output_dir", type=file_path, default="./Results/", metavar="DIR", help="a run goes to DIR/TIMESTAMP")
    add("--resume", type=file_path, default=None, metavar="PATH",
        help="a run directory or checkpoint to continue, in its directory; auto: the newest unfinished, or a new one")
    add("--pretrained", action=BoolAction, default=False, help="start from the matching weights of --model_path")
    add("--logger", type=list_of(logger), action=ListAction, nargs="+", metavar="NAME",
        default=["tensorboard", "csv"],
        help=f"where the curves go: some of {', '.join(names('logger'))}; MODULE:NAME of your own; or none. wandb is "
        "offline unless WANDB_MODE is set")
    add("--save_code", action=BoolAction, default=False,
        help="keep a copy of this project's code in the run directory")

    add = parser.add_argument_group("training").add_argument
    add("--n_epoch", type=number(int, low=1, high=MAX_EPOCHS), default=10, metavar="N", help="epochs")
    add("--max_updates", type=whole, default=None, metavar="N",
        help="end after N updates, if the epochs are not over before; the epoch that is cut short counts as one")
    add("--batch_size", type=whole, default=64, metavar="N", help="samples of one optimizer update")
    add("--micro_batch_size", type=number_or_auto(whole), default=None, metavar="N",
        help="samples that go through the network at once (default: all of the update); auto: as many as the memory "
        "of the GPU holds, fewer when it runs out. Changes memory, not results")
    add("--init", type=one_of(tuple(INITS)), default="default", metavar="NAME",
        help=f"how the weights of linear layers and convolutions begin: {', '.join(INITS)}")
    optimizers = names("optimizer")
    add("--optim", type=name_type("optimizer"), default="adamW",
        metavar="NAME",
        help=f"one of {', '.join(optimizers)}; a class of torch.optim, such as Adamax; or MODULE:NAME of your own")
    add_mapping(add, "--optim_args", "the optimizer's class")
    add("--lr", type=positive, default=1e-3, metavar="X", help="learning rate")
    add("--weight_decay", type=not_negative, default=0.01, metavar="X", help="weight decay")
    add("--momentum", type=share, default=0.9, metavar="X", help="momentum of sgd and nesterov")
    add("--clip", type=not_negative, default=0.0, metavar="X", help="gradient clipping; 0 for none")
    add("--clip_type", type=one_of(("norm", "value")), default="norm", metavar="TYPE",
        help="clip the norm of all gradients together (norm) or each element (value)")

    add_schedule_options(parser)
    add_finetuning_options(parser)
    add_process_options(parser)
    add_stop_options(parser)
    add_safety_options(parser)
    add_finding_options(parser)


def add_schedule_options(parser: OptionParser) -> None:
    """Add the options of how the learning rate goes."""
    not_negative, epochs = number(float, low=0), number(float, above=0, high=MAX_EPOCHS)
    add = parser.add_argument_group("learning-rate schedule").add_argument
    schedulers = names("scheduler")
    add("--lr_scheduler", type=name_type("scheduler"), default="cosine",
        metavar="NAME", help=f"one of {', '.join(schedulers)}; a class of torch.optim.lr_scheduler, such as "
        "OneCycleLR; or MODULE:NAME of your own")
    add_mapping(add, "--scheduler_args", "a scheduler's class")
    add("--scheduler_step", type=one_of(("update", "epoch")), default="update", metavar="WHEN",
        help="the learning rate changes after each update, or after each epoch")
    add("--lr_min", type=not_negative, default=0.0, metavar="X",
        help="lowest learning rate after warm-up, where cosine and linear end")
    add("--warmup_epoch", type=number(float, low=0, high=MAX_EPOCHS), default=0.0, metavar="E",
        help="epochs of linear warm-up")
    add("--warmup_multiplier", type=number(float, low=1), default=100.0, metavar="X", help="warm-up starts at lr / X")
    add("--lr_decay_epochs", type=list_of(epochs), action=ListAction, nargs="+", default=None, metavar="E",
        help="step: decay at these epochs")
    add("--lr_decay_every", type=epochs, default=None, metavar="E", help="step: decay every E epochs")
    add("--lr_decay_rate", type=number(float, above=0, high=1), default=0.1, metavar="X",
        help="step, exponential: factor of a decay")


def add_finetuning_options(parser: OptionParser) -> None:
    """Add the options of what is trained, how fast, and what is averaged."""
    add = parser.add_argument_group("fine-tuning: patterns on the names of parameters, as 'layers.0.*'").add_argument
    add("--freeze", type=pattern, nargs="+", default=None, metavar="PATTERN",
        help="do not train these; frozen batch normalization keeps its statistics, too")
    add("--train_only", type=pattern, nargs="+", default=None, metavar="PATTERN",
        help="train these and freeze the rest")
    add("--param_lr", type=pattern_and_rate, nargs="+", default=None, metavar="PATTERN=LR",
        help="learning rates of their own, as head.weight=1e-3, or multiples of --lr, as 'layers.0.*=0.1x'; of several "
        "that match the last counts, and the schedule is that of all")
    add("--param_clip", type=pattern_and_norm, nargs="+", default=None, metavar="PATTERN=NORM",
        help="limits of their own for the norm of the gradients of all that match, as 'layers.0.*=0.5'; before --clip")
    add("--no_decay", type=pattern, nargs="+", default=None, metavar="PATTERN",
        help="no weight decay of these: patterns, bias (all of that name), norm (those of normalization layers), 1d "
        "(those with one dimension)")

    add = parser.add_argument_group("averages of the weights, which are then measured").add_argument
    add("--ema", type=decay, default=None, metavar="X",
        help="exponential moving average over the updates, which keeps the part X of itself in each, such as 0.999")
    add("--swa_start", type=number(int, low=1, high=MAX_EPOCHS), default=None, metavar="E",
        help="mean over the ends of the epochs from epoch E on")


def add_process_options(parser: OptionParser) -> None:
    """Add the options of several devices and processes, and of what saves memory."""
    add = parser.add_argument_group("many devices, and memory").add_argument
    add("--parallel", type=one_of(MODES, {"True": "dp", "False": "none"}), default="none", metavar="MODE",
        help="none; dp: DataParallel over --gpu_devices; ddp: a process for each of --gpu_devices, with the whole "
        "network; fsdp: with a part of it. Processes that torchrun starts are ddp unless they are fsdp")
    add("--nproc", type=number(int, low=1, high=256), default=1, metavar="N",
        help="start N processes, on CPUs. For GPUs see --parallel")
    add("--sync_bn", action=BoolAction, default=False,
        help="batch normalization over the samples of all processes; on GPUs")
    add("--dist_timeout", type=number(float, above=0, high=86400), default=600.0, metavar="S",
        help="seconds that processes wait for each other")
    add("--max_restarts", type=number(int, low=0, high=1000), default=0, metavar="N",
        help="start the processes again, from the last checkpoint, up to N times when one dies")
    add("--activation_checkpointing", action=BoolAction, default=False,
        help="keep less for the backward pass and compute it again: less memory, up to half more time, the same bits")
    add("--checkpoint_format", type=one_of(("file", "sharded")), default="file", metavar="FORMAT",
        help="file: one file; sharded: each process writes its part, while training goes on")


def add_stop_options(parser: OptionParser) -> None:
    """Add the options of what is best, when to stop, and how often to do what."""
    not_negative, whole = number(float, low=0), number(int, low=1)
    add = parser.add_argument_group("best checkpoint and early stop").add_argument
    add("--monitor", default="loss", metavar="NAME", help="the metric of the validation that decides")
    add("--monitor_mode", type=one_of(("auto", "min", "max")), default="auto", metavar="MODE",
        help="what is best: min, max, or auto, which is min for a loss and max for anything else")
    add("--patience", type=number(int, low=0), default=10, metavar="N",
        help="stop after N validations without a better one; 0 for never")
    add("--min_delta", type=not_negative, default=0.0, metavar="X", help="better means better by more than X")
    add("--stop_below", type=number(float), default=None, metavar="X",
        help="stop after an epoch whose mean training loss is below X")

    add = parser.add_argument_group("how often").add_argument
    add("--callbacks", type=name_type("callback"), nargs="+", default=None, metavar="NAME",
        help=f"what else watches: {', '.join([*names('callback'), ''])}MODULE:NAME of your own")
    add("--log_every", type=whole, default=50, metavar="N", help="updates between two entries of the log")
    add("--val_every", type=number(int, low=0), default=1, metavar="E",
        help="whole epochs between two validations; 0 for none at all: then no checkpoint is the best")
    add("--save_every", type=number(float, above=0, high=MAX_EPOCHS), default=1.0, metavar="E",
        help="epochs between two checkpoints")
    add("--save_every_updates", type=whole, default=None, metavar="N", help="updates between two checkpoints, instead")
    add("--keep", type=whole, default=2, metavar="N", help="how many of the last checkpoints to keep")


def add_safety_options(parser: OptionParser) -> None:
    """Add the options of what to do when training cannot simply go on, and of how to prove that it did."""
    not_negative_int, whole = number(int, low=0), number(int, low=1)
    add = parser.add_argument_group("when to stop, and what to do when it goes wrong").add_argument
    add("--max_time", type=duration, default=None, metavar="TIME",
        help="save and stop before so much time has passed since the start, such as 3h50m, with status 75")
    add("--requeue", action=BoolAction, default=False,
        help="under SLURM, put the job back in the queue after SIGUSR1 or --max_time; needs --resume auto")
    add("--nan_policy", type=one_of(POLICIES), default="stop", metavar="NAME",
        help="when a loss or gradient is not finite: stop, or skip the update")
    add("--max_skips", type=not_negative_int, default=10, metavar="N", help="updates that --nan_policy skip may skip")
    add("--replay", type=file_path, default=None, metavar="FILE",
        help="make one update that was not finite again, and look into it")

    add = parser.add_argument_group("proofs").add_argument
    add("--verify_resume", type=not_negative_int, default=0, metavar="N",
        help="instead of training: train briefly, kill that N times and resume, and compare the bits with an "
        "uninterrupted run")
    add("--trace", type=file_path, default=None, metavar="FILE",
        help="append a line per update: digests of its data and of the state")
    add("--kill_at", type=whole, default=None, metavar="N",
        help="kill this process after update N, to try out a resume")
    add("--profile", type=number(int, low=1, high=1000), default=None, metavar="N",
        help="after a few updates, record what N updates of one epoch spend their time on, in RUN/profile; training "
        "goes on")


def add_finding_options(parser: OptionParser) -> None:
    """Add the options of what finds settings and faults instead of training; see docs/finding_settings.md."""
    add = parser.add_argument_group("finding settings and faults").add_argument
    add("--doctor", action=BoolAction, default=False,
        help="instead of training: look for the faults that most often make a task learn badly; status 1 if any is "
        "found")
    add("--find_lr", action=BoolAction, default=False,
        help="instead of training: try learning rates from tiny to huge, and suggest one")
    add("--find_lr_range", type=list_of(number(float, above=0, high=1e6)), action=ListAction, nargs="+",
        default=[1e-7, 1.0], metavar="X", help="the lowest and the highest rate to try")
    add("--find_lr_values", type=number(int, low=10, high=10_000), default=50, metavar="N", help="rates to try")
    add("--find_lr_updates", type=number(int, low=1, high=1000), default=3, metavar="N", help="updates with each rate")
    add("--find_lr_runs", type=number(int, low=1, high=100), default=3, metavar="N",
        help="how often, each time from the same weights with other samples")
