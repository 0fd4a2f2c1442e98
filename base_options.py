"""Every option that all tasks share, by group. A task adds its own in `add_options`.

Durations are in epochs and may be fractions, unless an option says otherwise.
"""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.data_entry import DEBUG_BATCHES, data_types
from data.shard_store import is_url
from loss.loss_entry import loss_types
from model.model_entry import NETWORK_OPTIONS, model_types
from utils.checkpoint import options_of
from utils.checkpointer import Checkpointer
from utils.errors import UserError
from utils.optimizer import OPTIMIZERS
from utils.options import (
    BoolAction,
    ExtendAction,
    ListAction,
    OptionParser,
    device_ids,
    file_name,
    file_path,
    list_of,
    number,
    one_of,
    read_options,
)
from utils.replay import load_replay
from utils.run_dir import is_run_dir, unfinished_runs
from utils.scheduler import SCHEDULERS
from utils.seed import draw_seed
from utils.signals import duration_text
from utils.update_guard import POLICIES

MAX_EPOCHS = 10**6  # of any duration

# What an evaluation does not take from a checkpoint.
OF_THE_LAUNCH = ("model_path", "gpu_devices", "data_device", "debug", "limit_batches", "save_path")

# All that a resumed run may have otherwise than before. Everything else makes it what it is, a task's own options too.
MAY_CHANGE = (
    "n_epoch", "patience", "description", "output_dir", "data_dir", "data_device", "pretrained", "model_path",
    "micro_batch_size", "eval_batch_size", "num_workers", "worker_timeout", "skip_bad_samples", "gpu_devices",
    "parallel", "compile", "channels_last", "deterministic", "log_every", "save_every", "save_every_steps", "keep",
    "max_time", "nan_policy", "max_skips", "cache", "cache_dir", "shard_cache_dir", "shard_cache_gb",
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
    if options["pretrained"] and not options["model_path"]:
        raise UserError("--pretrained needs --model_path: the file to start from.")
    if options["model_path"] and not options["pretrained"]:
        raise UserError("--model_path is what --pretrained starts from: add --pretrained, or leave --model_path out.")


def check_network(options: Mapping[str, Any], trained: Mapping[str, Any], model_path: str) -> None:
    """Raise UserError when an option asks for another network than that of the checkpoint, made with `trained`."""
    for name in NETWORK_OPTIONS:
        if options.get(name) != trained.get(name):
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
    parser = OptionParser(description=trainer_class.__doc__)
    add_train_options(parser)
    add_common_options(parser, trainer_class.evaluator_class.task)
    trainer_class.evaluator_class.add_options(parser)
    trainer_class.add_options(parser)
    parser.apply(trainer_class.defaults, f"defaults of {trainer_class.__name__}")

    given, notes = parser.parse_given(argv), []
    if given.get("resume") and given.get("replay"):
        raise UserError("--resume goes on with a run, and --replay looks at one update of it: give one of them.")
    resumes = bool(given.get("resume"))
    if given.get("resume") == "auto":
        given["resume"] = find_automatically(parser, given, notes)
    resume, layers = None, []
    if given.get("replay"):
        layers = [(options_of(load_replay(given["replay"]), given["replay"]), given["replay"])]
    elif given.get("resume"):
        path, state = Checkpointer.find(given["resume"], notes.append)
        resume, layers = str(path), [(harmless_options(options_of(state, path), path), str(path))]
    opt = parser.resolve(argv, layers)
    check_options(vars(opt), layers[0][0] if layers else {}, resumes)
    opt.resume, opt.resume_notes = resume, notes
    opt.seed = draw_seed() if opt.seed is None else opt.seed
    if opt.debug:
        opt.n_epoch, opt.limit_batches = 1, DEBUG_BATCHES
    return opt


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
    return {name: value for name, value in options.items() if name not in left_out}


def trained_options(state: dict[str, Any], path: str) -> dict[str, Any]:
    """The options of a checkpoint that an evaluation starts from."""
    options = harmless_options(options_of(state, path), path)
    return {name: value for name, value in options.items() if name not in OF_THE_LAUNCH}


def find_automatically(parser: OptionParser, given: Mapping[str, Any], notes: list[str]) -> str | None:
    """What --resume auto stands for: the newest unfinished run of this project with these options; None without one."""
    asked_for = {}
    for values in (*map(read_options, given.get("config") or []), given):
        asked_for |= values
    names = {name: str(asked_for.get(name, parser.get_default(name))) for name in ("output_dir", "proj_name")}
    for path, options in unfinished_runs(**names):
        kept = asked_for.keys() & options.keys() - set(MAY_CHANGE)
        if others := [name for name in sorted(kept) if str(asked_for[name]) != str(options[name])]:
            notes.append(f"--resume auto: passes over {path}, which has another --{' --'.join(others)}.")
            continue
        notes.append(f"--resume auto: goes on with {path}.")
        return str(path)
    where = f"of {names['proj_name']} in {names['output_dir']}"
    notes.append(f"--resume auto: no unfinished run {where}; a new one begins.")
    return None


def number_or_auto(kind: Callable[[str], int]) -> Callable[[str], int | str]:
    """Return an argparse type that takes what `kind` takes, or the word auto."""

    def convert(text: str) -> int | str:
        try:
            return text if text == "auto" else kind(text)
        except ArgumentTypeError as error:
            raise ArgumentTypeError(f"{error}, and not auto") from None

    return convert


def add_common_options(parser: OptionParser, task: str | None) -> None:
    """Add what training and evaluation share; `task` narrows the choice of data, model and loss."""
    add_data_options(parser, task)
    add_model_options(parser, task)
    add_machine_options(parser)


def add_data_options(parser: OptionParser, task: str | None) -> None:
    """Add the options of the data."""
    group = parser.add_argument_group("data")
    add = group.add_argument
    types = data_types(task)
    add("--data_type", type=one_of(types), default=types[0], metavar="NAME", help=f"one of {', '.join(types)}")
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
    types = model_types(task)
    add("--model_type", type=one_of(types), default=types[0], metavar="NAME", help=f"one of {', '.join(types)}")
    add("--n_channels", type=number(int, low=1, high=4096), default=1, metavar="N", help="channels of an image")
    add("--n_classes", type=number(int, low=1, high=10**6), default=10, metavar="N", help="number of classes")
    losses = loss_types(task)
    add("--loss_type", type=one_of(losses), default=losses[0], metavar="NAME", help=f"one of {', '.join(losses)}")
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
    add("--config", type=file_path, action=ExtendAction, nargs="+", default=None, metavar="FILE",
        help="option files, JSON or YAML; later ones win")
    add("--split", type=one_of(("test", "val", "train")), default="test", metavar="PART", help="test, val or train")
    add("--save_path", type=file_path, default="./test_viz/", metavar="DIR", help="results go to DIR/TIMESTAMP")
    add("--viz", action=BoolAction, default=True, help="save pictures")
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
    epochs = number(float, above=0, high=MAX_EPOCHS)

    add = parser.add_argument_group("run").add_argument
    add("--proj_name", type=file_name, default="Plainloop", metavar="NAME", help="name of the run's files")
    add("--description", default="", metavar="TEXT", help="a note that is saved with the options")
    add("--output_dir", type=file_path, default="./Results/", metavar="DIR", help="a run goes to DIR/TIMESTAMP")
    add("--config", type=file_path, action=ExtendAction, nargs="+", default=None, metavar="FILE",
        help="option files, JSON or YAML; later ones win")
    add("--resume", type=file_path, default=None, metavar="PATH",
        help="a run directory or checkpoint to continue, in its directory; auto: the newest unfinished, or a new one")
    add("--pretrained", action=BoolAction, default=False, help="start from the matching weights of --model_path")
    add("--parallel", type=one_of(("none", "dp"), {"True": "dp", "False": "none"}), default="none", metavar="MODE",
        help="none, or dp: DataParallel over --gpu_devices")

    add = parser.add_argument_group("training").add_argument
    add("--n_epoch", type=number(int, low=1, high=MAX_EPOCHS), default=10, metavar="N", help="epochs")
    add("--batch_size", type=whole, default=64, metavar="N", help="samples of one optimizer update")
    add("--micro_batch_size", type=whole, default=None, metavar="N",
        help="samples that go through the network at once (default: all of the update). Changes memory, not results")
    optimizers = tuple(OPTIMIZERS)
    add("--optim", type=one_of(optimizers), default="adamW", metavar="NAME", help=f"one of {', '.join(optimizers)}")
    add("--lr", type=positive, default=1e-3, metavar="X", help="learning rate")
    add("--weight_decay", type=not_negative, default=0.01, metavar="X", help="weight decay")
    add("--momentum", type=share, default=0.9, metavar="X", help="momentum of sgd and nesterov")
    add("--clip", type=not_negative, default=0.0, metavar="X", help="gradient clipping; 0 for none")
    add("--clip_type", type=one_of(("norm", "value")), default="norm", metavar="TYPE",
        help="clip the norm of all gradients together (norm) or each element (value)")

    add = parser.add_argument_group("learning-rate schedule").add_argument
    add("--lr_scheduler", type=one_of(tuple(SCHEDULERS)), default="cosine", metavar="NAME",
        help=f"one of {', '.join(SCHEDULERS)}")
    add("--lr_min", type=not_negative, default=0.0, metavar="X",
        help="lowest learning rate after warm-up, where cosine and linear end")
    add("--warmup_epoch", type=number(float, low=0, high=MAX_EPOCHS), default=0.0, metavar="E",
        help="epochs of linear warm-up")
    add("--warmup_multiplier", type=number(float, low=1), default=100.0, metavar="X", help="warm-up starts at lr / X")
    add("--lr_decay_epochs", type=list_of(epochs), action=ListAction, nargs="+", default=None, metavar="E",
        help="step: decay at these epochs")
    add("--lr_decay_steps", type=epochs, default=None, metavar="E", help="step: decay every E epochs")
    add("--lr_decay_rate", type=number(float, above=0, high=1), default=0.1, metavar="X",
        help="step, exponential: factor of a decay")

    add_stop_options(parser)
    add_safety_options(parser)


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

    add = parser.add_argument_group("how often").add_argument
    add("--log_every", type=whole, default=50, metavar="N", help="updates between two entries of the log")
    add("--val_every", type=whole, default=1, metavar="E", help="whole epochs between two validations")
    add("--save_every", type=number(float, above=0, high=MAX_EPOCHS), default=1.0, metavar="E",
        help="epochs between two checkpoints")
    add("--save_every_steps", type=whole, default=None, metavar="N", help="updates between two checkpoints, instead")
    add("--keep", type=whole, default=2, metavar="N", help="how many of the last checkpoints to keep")


def add_safety_options(parser: OptionParser) -> None:
    """Add the options of what to do when training cannot simply go on, and of how to prove that it did."""
    not_negative_int, whole = number(int, low=0), number(int, low=1)
    add = parser.add_argument_group("when to stop, and what to do when it goes wrong").add_argument
    add("--max_time", type=duration_text, default=None, metavar="H:MM",
        help="save and stop before so much time has passed since the start, with status 75")
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
