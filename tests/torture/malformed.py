"""Command lines and option files that are wrong by construction, and some that are right.

`wrong_examples(program)` is a hypothesis strategy of `Example`s: each holds one fault, among flags that are right.
`right_options(kinds)` is a strategy of options without a fault.

What an option takes is said here a second time, in `KINDS`, so that a limit that the parser loses is noticed.
"""

# ruff: noqa: RUF001 - letters that look like others are what is tried here

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import strategies as st

# ---- what each option takes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """An int or a float with low <= value <= high and value > above."""

    is_int: bool = False
    low: float | None = None
    high: float | None = None
    above: float | None = None
    is_list: bool = False
    words: tuple[str, ...] = ()  # that are taken as well


@dataclass(frozen=True)
class Choice:
    names: tuple[str, ...]
    is_list: bool = False  # one or more of them


@dataclass(frozen=True)
class Text:
    """One line of text that can be printed and written; `pattern` is what it must match."""

    pattern: str = r".*"
    good: tuple[str, ...] = ("", "a", "x y", "größe=日本", "--no 'quotes' \\", "true", "1e-3", "null")
    wrong: tuple[str, ...] = ()
    is_list: bool = False
    is_flag: bool = False  # taken without a value, too, as a BOOL is


BOOL = "bool"
ARGUMENTS = Text(  # of a class; more than none would have to fit it
    r"\{.*\}", ("{}",),
    (
        "", "{", "[]", "1", "null", "x", "{'a': 1}", '{"a": NaN}', '{"a": 1e999}', '{"a": 1, "a": 2}', '{"a b": 1}',
        '{"": 1}', '{"a": "\\u001b"}', "[" * 2000, '{"a":' * 2000,
    ),
)  # fmt: skip
MODULES = Text(
    r"\w+(\.\w+)*", ("json", "xml.sax"),
    ("", ".", "a.", ".a", "a-b", "a/b", "../a", "1a", "a:b", "no_such_module"), is_list=True,
)  # fmt: skip
OWN = Text(
    r"[\w.]+:\w+", ("callbacks.callback:Callback",),
    ("", ":", "a:", ":a", "a:b:c", "a.b", "no_such_module:Name", "os:no_such_name", "os:sep", "os:system", "../a:b"),
    is_list=True,
)  # fmt: skip
SETTING = Text(
    r"[\w.]+=.*", ("seed=3",),
    ("", "seed", "=3", "seed=x", "sed=3", "seed.x=3", "config=x", "import=json", "model_args=3", "model_args.x=[1"),
)  # fmt: skip
WHOLE, COUNT, SEED = Number(True, low=1), Number(True, low=0), Number(True, low=0, high=2**63 - 1)
POSITIVE, NOT_NEGATIVE, SHARE = Number(above=0), Number(low=0), Number(low=0, high=1)
LINE, PATH = Text(), Text(r".+", ("runs", "./runs/deep", "größe 日本", "a=b", "--x"), wrong=("", " ", "--", "a\nb",
"a\tb",
"x" * 256, "a/" * 2048))
NAME = Text(
    r"\w[\w.-]*", ("Name", "größe", "a.b-c_1", "1"),
    ("", ".", "..", "../x", "a/b", "/etc/passwd", "a b", "-", "~", ".hidden", "a\\b", "%s/", "a\n", "C:\\x"),
)  # fmt: skip
DEVICES = Text(
    r"cpu|\d+(,\d+)*", ("cpu", "0", "0,1"),
    ("", "first", "-1", "0,-1", "0,", ",", "0,,1", "0 1", "cuda:0", "cpu,0", "1.0", "٣", "0;1", "nan"),
)  # fmt: skip
DURATION = Text(
    r"(\d+d)?(\d+h)?(\d+m)?(\d+s)?", ("30m", "3h50m", "100h", "3h50m10s", "90s", "1d12h"),
    ("", "soon", "-1h", "1h-1m", "nan", "inf", "1e9h", "h", "٣h", "0s", "0h0m", "3", "1.5h", "3:50", "1m2h", "1h 30m"),
)  # fmt: skip
PATTERN = Text(r".*\S.*", ("layers.*", "layers.0.[wb]*", "model:*", "*", "a b"), ("", " ", "  "), is_list=True)
RATE = Text(
    r".+=.+", ("layers.*=0.1x", "layers.*=1e-3", "a=b=2", "model:*=.5x"),
    ("", "=", "x", "=1", "a=", "a=0", "a=-1", "a=nan", "a=inf", "a=1e999", "a=x", "a=1y", "a=1xx", " =1", "a=0x",
     "a=٣"), is_list=True,
)  # fmt: skip
NORM = Text(
    r".+=.+", ("layers.*=0.1", "layers.*=1e-3", "model:*=.5"),
    ("", "=", "x", "=1", "a=", "a=0", "a=-1", "a=nan", "a=inf", "a=1e999", "a=x", "a=1x", " =1", "a=٣"), is_list=True,
)  # fmt: skip
CLASSES = Text(r".*\S.*", ("a", "x y", "größe=日本", "true", "1e-3", "null"), ("", " ", "  "), is_list=True)
FOLD = Text(
    r"\d+/\d+", ("1/2", "5/5", "7/1000"),
    ("", "/", "1", "1/", "/5", "0/5", "6/5", "1/1", "1/1001", "-1/5", "1/5/5", "1 / 5", "1.0/5", "٣/٥",
     "1/" + "9" * 5000),
)  # fmt: skip
AUGMENTATION = Text(
    r".+", ("light", "trivial", "randaugment"),
    ("", " ", "lightt", "Light ", "no", "1", "trivial,light", "no_such_module:Name", "os:sep", "../a:b"), is_flag=True,
)  # fmt: skip
UNFREEZE = Text(
    r".+=\d+", ("layers.*=2", "a=b=3", "*=1000000"),
    ("", "=", "x", "=2", "a=", "a=0", "a=1", "a=-2", "a=2.0", "a=2x", "a=nan", "a=1000001", " =2", "a=٣"), is_list=True,
)  # fmt: skip
WEIGHTS = Text(
    r".+", ("vanilla.pth",), ("", " ", "a\nb", "a\tb", "x" * 256, "a/" * 2048, "1", "yes", "nowhere.pth"), is_flag=True
)

SHARED = {
    "data_dir": PATH, "train_val_sample_rate": POSITIVE, "test_sample_rate": POSITIVE, "val_split": POSITIVE,
    "split_seed": SEED, "num_workers": Number(True, low=0, high=1000, words=("auto",)), "eval_batch_size": WHOLE,
    "n_channels": Number(True, low=1, high=4096), "n_classes": Number(True, low=1, high=10**6), "gpu_devices": DEVICES,
    "compile": BOOL, "amp": Choice(("no", "bf16", "fp16")), "channels_last": BOOL, "deterministic": BOOL,
    "seed": SEED, "debug": BOOL, "worker_timeout": NOT_NEGATIVE, "data_device": Choice(("auto", "cpu", "cuda")),
    "skip_bad_samples": COUNT, "limit_batches": WHOLE, "model_path": PATH, "model_args": ARGUMENTS,
    "data_args": ARGUMENTS, "loss_args": ARGUMENTS, "import": MODULES, "class_names": CLASSES,
    "fold": FOLD, "input_mean": Number(is_list=True), "input_std": Number(above=0, is_list=True),
    "class_weights": Number(low=0, is_list=True, words=("balanced", "sqrt")),
}  # fmt: skip
EPOCHS = Number(above=0, high=1e6)
TRAIN = {
    "proj_name": NAME, "description": LINE, "output_dir": PATH, "pretrained": WEIGHTS,
    "parallel": Choice(("none", "dp", "ddp", "fsdp")), "nproc": Number(True, low=1, high=256), "sync_bn": BOOL,
    "dist_timeout": Number(above=0, high=86400), "find_unused": BOOL, "max_restarts": Number(True, low=0, high=1000),
    "activation_checkpointing": BOOL, "checkpoint_format": Choice(("file", "sharded")),
    "n_epoch": Number(True, low=1, high=10**6), "batch_size": WHOLE,
    "micro_batch_size": Number(True, low=1, words=("auto",)),
    "optim": Choice(("adam", "adamW", "nadam", "radam", "sgd", "nesterov", "rmsprop")),
    "lr": POSITIVE, "weight_decay": NOT_NEGATIVE, "momentum": Number(low=0, high=0.999999), "clip": NOT_NEGATIVE,
    "clip_type": Choice(("norm", "value")), "lr_min": NOT_NEGATIVE, "lr_decay_rate": Number(above=0, high=1),
    "lr_scheduler": Choice(("constant", "step", "cosine", "linear", "exponential")),
    "warmup_epoch": Number(low=0, high=1e6), "warmup_multiplier": Number(low=1), "lr_decay_every": EPOCHS,
    "lr_decay_epochs": Number(above=0, high=1e6, is_list=True), "monitor": LINE,
    "monitor_mode": Choice(("auto", "min", "max")), "patience": COUNT, "min_delta": NOT_NEGATIVE, "log_every": WHOLE,
    "val_every": COUNT, "max_updates": WHOLE, "stop_below": Number(), "save_every": EPOCHS,
    "save_every_updates": WHOLE, "keep": WHOLE, "max_time": DURATION,
    "requeue": BOOL, "nan_policy": Choice(("stop", "skip")), "max_skips": COUNT, "freeze": PATTERN,
    "train_only": PATTERN, "param_lr": RATE, "param_clip": NORM, "no_decay": PATTERN,
    "ema": Number(low=0, high=0.999999), "swa_start": Number(True, low=1, high=10**6),
    "init": Choice(("default", "kaiming", "xavier", "xavier_normal", "orthogonal", "normal")),
    "logger": Choice(("tensorboard", "csv"), is_list=True), "save_code": BOOL,  # wandb need not be installed
    "optim_args": ARGUMENTS, "scheduler_args": ARGUMENTS, "callbacks": OWN,
    "scheduler_step": Choice(("update", "epoch")), "allow_shared": BOOL, "data_picture": BOOL, "augment": AUGMENTATION,
    "sampler": Choice(("balanced",)), "mixup": POSITIVE, "cutmix": POSITIVE, "drop_last": BOOL, "unfreeze": UNFREEZE,
}  # fmt: skip
TEST = {
    "proj_name": NAME, "split": Choice(("test", "val", "train", "all")), "save_path": PATH, "viz": BOOL,
    "allow_seen": BOOL, "use_average": BOOL, "nproc": Number(True, low=1, high=256),
}  # fmt: skip
VANILLA = {
    "data_type": Choice(("FashionMNISTSample", "FashionMNIST")), "model_type": Choice(("Vanilla", "LeNet", "ResNet18")),
    "loss_type": Choice(("CE", "Focal", "Brier")), "label_smoothing": SHARE,
    "metrics": Choice(("accuracy", "precision", "recall", "f1"), is_list=True), "metric_args": ARGUMENTS,
    "image_size": Number(True, low=8, high=4096),
}  # fmt: skip
LEVELS = Number(True, low=0, high=65535, is_list=True)
SEG = {
    "data_type": Choice(("Carvana", "CarvanaShards")), "model_type": Choice(("UNet", "UNetpp")),
    "deep_supervision": BOOL, "loss_type": Choice(("CEDice", "PixelCE", "Dice")),
    "patch_size": Number(True, low=16, high=2**15), "crop": Number(True, low=16, high=2**15),
    "width": Number(True, low=1, high=4096),
    "mode": Choice(("direct", "padding")), "up": Choice(("bilinear", "transposed")), "cache": BOOL, "cache_dir": PATH,
    "shard_cache_dir": PATH, "shard_cache_gb": Number(above=0, high=1e6),
    "mask_values": LEVELS, "ignored_values": LEVELS,
    "metrics": Choice(("dice", "iou", "mean_image_dice"), is_list=True), "metric_args": ARGUMENTS,
}  # fmt: skip
GAN = {
    "data_type": Choice(("FashionMNISTSample", "FashionMNIST")), "model_type": Choice(("DCGAN",)),
    "loss_type": Choice(("BCE", "LeastSquares")), "latent": Number(True, low=1, high=4096),
    "width": Number(True, low=1, high=4096), "batch_norm": BOOL, "judge_type": Choice(("LeNet", "Vanilla")),
}  # fmt: skip
KINDS = {
    "trainer_vanilla": {**SHARED, **TRAIN, **VANILLA},
    "trainer_seg_on_carvana": {**SHARED, **TRAIN, **SEG, "shuffle_shards": Number(True, 1, 10**6)},
    "trainer_gan": {**SHARED, **TRAIN, **GAN, "beta1": Number(low=0, high=0.9999), "judge": PATH},
    "eval_vanilla": {**SHARED, **TEST, **VANILLA},
    "eval_seg_on_carvana": {**SHARED, **TEST, **SEG, "n_snap": WHOLE},
    "eval_gan": {**SHARED, **TEST, **GAN},
    "configcmp": {},
    "make_carvana_like": {
        "data_dir": PATH, "cars": Number(True, low=1, high=100_000), "views": Number(True, low=1, high=99),
        "size": Text(r"\d+x\d+", ("64x48",), ("", "64", "x", "64x", "0x0", "1e2x1e2", "-64x48", "31x64", "99999x64",
        "٦٤x٤٨")),
        "seed": SEED, "n_classes": Number(True, low=2, high=4),
    },
    "make_sample": {"source": PATH, "output": PATH, "train_per_class": WHOLE, "test_per_class": WHOLE, "seed": SEED},
    "plot_log": {"output": PATH},
    "accuracy": {"seeds": Number(True, low=2)},
}  # fmt: skip
# Options of a trainer that stand on the command line only.
OF_THE_LAUNCH = {"resume": PATH, "replay": PATH, "trace": PATH, "verify_resume": COUNT, "kill_at": WHOLE,
                 "profile": Number(True, low=1, high=1000), "find_lr": BOOL, "doctor": BOOL,
                 "find_lr_range": Number(above=0, high=1e6, is_list=True),
                 "find_lr_values": Number(True, low=10, high=10_000),
                 "find_lr_updates": Number(True, low=1, high=1000),
                 "find_lr_runs": Number(True, low=1, high=100)}  # fmt: skip
NEVER_NULL = ("gpu_devices", "amp", "val_split", "compile", "debug", "split_seed", "proj_name")
TASKS = ("trainer_vanilla", "trainer_seg_on_carvana", "trainer_gan", "eval_vanilla", "eval_seg_on_carvana", "eval_gan")

# The places that a command line can name; `fuzz_options.scenery` makes them, and they are where a program starts.
BASE = {
    "trainer_vanilla": ("--gpu_devices", "cpu", "--train_val_sample_rate", "60", "--output_dir", "runs"),
    "trainer_seg_on_carvana": (
        "--no-cache", "--gpu_devices", "cpu", "--data_dir", "cars", "--width", "2", "--patch_size", "16",
        "--output_dir", "runs",
        "--train_val_sample_rate", "1", "--test_sample_rate", "4", "--val_split", "4", "--num_workers", "0",
    ),
    "trainer_gan": (
        "--gpu_devices", "cpu", "--train_val_sample_rate", "60", "--output_dir", "runs", "--width", "2",
        "--judge_type", "Vanilla", "--judge", "vanilla.pth",
    ),
    "eval_vanilla": ("--model_path", "vanilla.pth", "--save_path", "test", "--gpu_devices", "cpu"),
    "eval_gan": ("--model_path", "gan.pth", "--save_path", "test", "--gpu_devices", "cpu"),
    "eval_seg_on_carvana": ("--no-cache", "--model_path", "seg.pth", "--save_path", "test", "--gpu_devices", "cpu"),
    "configcmp": ("good.json", "good.json"),
    "make_carvana_like": ("--data_dir", "new", "--cars", "1", "--views", "1", "--size", "64x48"),
    "make_sample": ("--source", "sample", "--output", "new"),
    "plot_log": ("curves",),
    "accuracy": ("vanilla",),
}  # fmt: skip


def flags_of(program: str) -> dict:
    """The kinds of values of a program's flags: its options, and those of the launch."""
    of_all = {"set": SETTING, "print_config": BOOL} if program in TASKS else {}
    return KINDS[program] | of_all | (OF_THE_LAUNCH if program.startswith("trainer") else {})


@dataclass(frozen=True)
class Example:
    """A command line, the files that it needs, and words of which one must stand in the error."""

    program: str
    argv: tuple[str, ...]
    names: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...] = ()
    fault: tuple[str, ...] = ()  # the part of the command line that is wrong


# ---- values ----------------------------------------------------------------------------------------------------------
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
INTEGER = re.compile(r"[+-]?[0-9]+")
NO_NUMBERS = (
    "", " ", "nan", "NaN", "-nan", "inf", "-inf", "Infinity", "1e999", "-1e999", "0x10", "0b1", "1_000", "１２", "٣",
    "²",
    "½", "1,5", "1e", "e5", "--", "-", "+", ".", "1..2", "1 2", " 1", "1\n", "\t1", "1\x00", "one", "None", "null",
    "true",
    "[1]", "1j", "1/2", "1%", "5GB", "1-1", "__import__('os')", "$(id)", "${HOME}", "lambda: 1", "\ud800", "1\u200b",
    "−1", "1。5", "9" * 5000 + "x", "-" * 300, "🙂", "{}", "'1'", '"1"', "1e1e1", "0.1.1", "∞", "*", "\\", "\x1b[31m1",
)  # fmt: skip
UNPRINTABLE = ("\r", "\x00", "\x1b[2J", "\x07", "\x7f", "\x85", "\u2028", "\ud800", "\udcff", "\x08")
any_text = st.text(max_size=20)


def needs_value(kind) -> bool:
    return kind != BOOL and not getattr(kind, "is_flag", False)


def not_numbers(kind: Number) -> st.SearchStrategy[str]:
    pattern = INTEGER if kind.is_int else NUMBER
    drawn = st.one_of(st.sampled_from(NO_NUMBERS), any_text, st.text("0123456789.-+eE_", max_size=8))
    fractions = st.sampled_from(("1.5", "1.0", "1e2", "-0.5", "1e-3")) if kind.is_int else st.nothing()
    drawn = drawn.filter(lambda text: not pattern.fullmatch(text.strip(" ") if kind.is_list else text))
    drawn = drawn.filter(lambda text: text not in kind.words)
    return drawn | fractions


def out_of_range(kind: Number) -> st.SearchStrategy[str]:
    """Numbers below or above what is allowed; infinite ones are among those that are not numbers."""
    integers = []
    if (least := kind.low if kind.low is not None else kind.above) is not None:
        most = int(least) - (kind.low is not None)
        integers += [st.integers(-(10**12), most), st.just(most), st.just(-(10**40))]
    if kind.high is not None:
        integers += [st.integers(int(kind.high) + 1, int(kind.high) + 10**12), st.just(10**40), st.just(10**300)]
    texts = st.one_of(*integers).map(str)
    return texts if kind.is_int else texts | st.sampled_from(["-1e-300", "-1e300", "-.5", "-1E5"])


def wrong_texts(kind) -> st.SearchStrategy[str]:
    """Texts that no option of this kind takes."""
    if kind == BOOL:
        drawn = st.sampled_from(("", "yes", "no", "1", "0", "on", "Truee", "T", "tru", " True", "None",
        "ｔｒｕｅ")) | any_text
        return drawn.filter(lambda text: text.lower() not in ("true", "false"))
    if isinstance(kind, Choice):
        near = [text for name in kind.names for text in (name + "x", name[:-1], name[::-1])]
        near += [] if kind.is_list else [text for n in kind.names for text in (f"{n} ", f"{n},{n}")]
        drawn = st.one_of(st.sampled_from((*near, "", "None", "../x", "\n", "0")), any_text)
        if kind.is_list:
            drawn = drawn.filter(lambda text: {part.strip(" ") for part in text.split(",")} - {*kind.names, ""})
        return drawn.filter(lambda text: text not in (*kind.names, "True", "False"))  # of --parallel
    if isinstance(kind, Number):
        texts = st.one_of(not_numbers(kind), out_of_range(kind))
        return texts.map(lambda text: f"{text},3") if kind.is_list else texts
    broken = st.tuples(st.sampled_from(kind.good), st.sampled_from(UNPRINTABLE)).map("".join)
    return st.one_of(broken, *([st.sampled_from(kind.wrong)] if kind.wrong else []))


def edges(kind) -> list[str]:
    """The wrong texts that are nearest to right ones, and the best known others."""
    if kind == BOOL:
        return ["", "1", "yes", "Truee"]
    if isinstance(kind, Choice):
        return ["", kind.names[0] + "x", kind.names[-1].swapcase() + "_"]
    if isinstance(kind, Text):
        return [*kind.wrong, kind.good[-1] + "\x1b", "\ud800"]
    found = ["", "--", "nan", "inf", "-inf", "1e999", "x", "1_0", "٣", *(["1.5", "1e1"] if kind.is_int else [])]
    if kind.low is not None:
        found.append(str(kind.low - 1) if kind.is_int else f"{kind.low - 1e-6:.6f}")
    if kind.above is not None:
        found += [str(kind.above), "-1e-9"]
    if kind.high is not None:
        found.append(str(int(kind.high) + 1) if kind.is_int else f"{kind.high + 1e-6:.6f}")
    return found


def right_values(kind) -> st.SearchStrategy:
    """Values that an option of this kind takes, as a JSON file would hold them."""
    if kind == BOOL:
        return st.booleans()
    if isinstance(kind, Choice):
        one = st.sampled_from(kind.names)
        return st.lists(one, min_size=1, max_size=3, unique=True) if kind.is_list else one
    if isinstance(kind, Text):
        text = st.just({}) if kind is ARGUMENTS else st.sampled_from(kind.good)
        return st.lists(text, min_size=1, max_size=1) if kind.is_list else text
    if kind.is_int:
        one = st.integers(kind.low, min(kind.high or 2**40, 2**63 - 1))
    else:
        low = kind.low if kind.low is not None else kind.above
        one = st.floats(low, kind.high or 1e30, exclude_min=kind.above is not None, allow_infinity=False)
    one = one | st.sampled_from(kind.words) if kind.words else one
    return st.lists(one, min_size=1, max_size=4) if kind.is_list else one


def as_text(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


@st.composite
def right_options(draw, kinds: dict, without: tuple[str, ...] = ()) -> dict:
    """Options of a program with values that they take; `without` are left out."""
    names = sorted(set(kinds) - set(without))
    chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=6))
    return {name: draw(right_values(kinds[name])) for name in chosen}


def harmless_flags(kinds: dict) -> st.SearchStrategy[tuple[str, ...]]:
    """A few flags that contradict nothing."""
    names = ("seed", "patience", "log_every", "proj_name", "amp", "debug", "eval_batch_size")
    few = right_options({name: kind for name, kind in kinds.items() if name in names})
    return few.map(lambda options: tuple(f"--{name}={as_text(value)}" for name, value in options.items()))


# ---- faults of the command line: each is a tuple of arguments and the words of which one must be in the error -------
@st.composite
def wrong_values(draw, kinds: dict):
    name = draw(st.sampled_from(sorted(kinds)))
    text = draw(wrong_texts(kinds[name]))
    flag = f"--{name}"
    if not needs_value(kinds[name]) and text.startswith("-"):  # it would be another flag
        return (f"{flag}={text}",), (flag,)
    return draw(st.sampled_from([((f"{flag}={text}",), (flag,)), ((flag, text), (flag,))]))


@st.composite
def unknown_flags(draw, kinds: dict):
    """Abbreviations, slips of the pen and flags of elsewhere."""
    known = {f"--{name}" for name in (*kinds, *OF_THE_LAUNCH, "config", "help")}
    known |= {f"--no-{name}" for name, kind in kinds.items() if not needs_value(kind)} | {f"--{name}" for name in TRAIN}
    name = draw(st.sampled_from(sorted(kinds)))
    place = draw(st.integers(0, len(name) - 1))
    letter = draw(st.sampled_from("abcxyz_-0é"))
    flag = draw(
        st.sampled_from((
            f"--{name[: place + 1]}", f"--{name[:place]}{name[place + 1 :]}", f"--{name[:place]}{letter}{name[place:]}",
            f"--{name.upper()}", f"--{name.replace('_', '-')}", f"--{name}_", f"-{name}", f"---{name}", f"--no_{name}",
            f"--no-{name}", f"--no-no-{name}", f"—{name}", "-x", "-c", "--res", "--lr_", "--conf", "--mod", "--de",
            "--seed.", "--lr:", "--_", "--é", "--version", "--local_rank", "-n", "--opt.lr", "--\x1b[31m", "--\ud800",
            "--" + "x" * 5000, "--self", "--__class__", "--func", "--hel", "--resume_", "-debug",
        ))
    )  # fmt: skip
    if flag in known or flag.startswith(("-d", "-h")):
        flag = f"--{name}_x"
    value = draw(st.sampled_from(((), ("1",), ("True",), ("nan",))))
    equals = draw(st.booleans())
    shown = repr(flag)[1:60]
    return ((f"{flag}={value[0]}",) if equals and value else (flag, *value)), (shown.rstrip("'"),)


@st.composite
def missing_values(draw, kinds: dict):
    name = draw(st.sampled_from(sorted(name for name, kind in kinds.items() if needs_value(kind))))
    return (f"--{name}", *draw(st.sampled_from(((), ("--seed=1",), ("--debug",))))), (f"--{name}",)


@st.composite
def negations(draw, kinds: dict):
    name = draw(st.sampled_from(sorted(name for name, kind in kinds.items() if not needs_value(kind))))
    text = draw(st.sampled_from(("True", "False", "1", "maybe", "")))
    return draw(st.sampled_from(((f"--no-{name}", text), (f"--no-{name}={text}",)))), (f"--no-{name}", f"--{name}")


def stray_arguments(kinds: dict):
    texts = any_text | st.sampled_from(("train", "1", "", " ", "lr=1", "seed 1", "\n", "-1", "-inf", "–lr", "{}",
    "@file"))
    texts = texts.filter(lambda text: text == "-1" or not text.startswith("-"))
    words = ("unexpected argument", "unknown option '-1'", "argument RUN", "name one thing to evaluate")
    return texts.map(lambda text: ((text,), words))


# What only shows when the parts of a run are put together. A damaged checkpoint is another matter: it has status 3.
CONTRADICTIONS = {
    "trainer_vanilla": (
        ("--logger", "none", "csv"),
        ("--pretrained",), ("--model_path", "vanilla.pth"), ("--pretrained", "--model_path", "nowhere.pth"),
        ("--pretrained", "--model_path", "empty"), ("--pretrained", "--model_path", "seg.pth"),
        ("--lr_scheduler", "step"), ("--lr_decay_epochs", "3"),
        ("--lr_scheduler", "step", "--lr_decay_epochs", "3", "--lr_decay_every", "1"), ("--lr_min", "1"),
        ("--lr_scheduler", "step", "--lr_decay_every", "1e-9"), ("--momentum", "1"), ("--val_split", "601"),
        ("--val_split", "1"), ("--val_split", "1e300"), ("--train_val_sample_rate", "1e300"),
        ("--train_val_sample_rate", "1e-300"), ("--n_channels", "3"), ("--n_classes", "9"), ("--monitor", "dice"),
        ("--monitor", ""), ("--monitor", "__class__"), ("--output_dir", "taken"), ("--output_dir", "taken/deeper"),
        ("--output_dir", "x" * 300), ("--output_dir", "loop"), ("--output_dir", "/dev/null"),
        ("--output_dir", "/proc/none"), ("--resume", "nowhere"), ("--resume", "empty"),
        ("--resume", "loop"), ("--resume", ""), ("--resume", "x" * 5000),
        ("--resume", "seg.pth"), ("--resume", "bare.pth"), ("--resume", "auto", "--config", "nowhere.json"),
        ("--resume", "auto", "--output_dir", "taken"), ("--resume", "odd.pth"), ("--find_lr",), ("--replay", "empty"),
        ("--doctor", "--nproc", "2"),
        ("--resume", "vanilla.pth", "--lr", "0.5"), ("--resume", "a\nb"), ("--resume", "\x00"), ("--config", ""),
        ("--config", "/dev/zero"), ("--config", "fifo"),
        ("--config", "nowhere.json"), ("--config", "empty"), ("--config", "taken"), ("--config", "loop"),
        ("--config", "rubbish.pth"), ("--config", "x" * 300), ("--config", "a\nb"), ("--config", "\x00"),
        ("--config", "/dev/null"), ("--config", "\udcff"), ("--metrics", "acuracy"), ("--metrics", "top11"),
        ("--metrics", "f1"), ("--loss_type", "CE", "CE:0.5"), ("--loss_type", "CE:0"), ("--loss_type", "CE", "Dice"),
        ("--loss_type", "CE:nan"), ("--model_type", "torchvision:resnet19"),
        ("--model_type", "timm:"), ("--monitor", "loss_ce"),
    ),
    "trainer_gan": (
        ("--judge", "nowhere"), ("--judge", "seg.pth"), ("--judge_type", "LeNet"), ("--judge", "bare.pth"),
        ("--monitor", "accuracy"), ("--n_channels", "3"), ("--model_type", "LeNet"), ("--loss_type", "CE"),
        ("--metrics", "f1"), ("--resume", "vanilla.pth"), ("--resume", "gan.pth", "--latent", "3"),
    ),
    "trainer_seg_on_carvana": (
        ("--data_dir", "nowhere"), ("--data_dir", "taken"), ("--data_dir", "empty"), ("--data_dir", "loop"),
        ("--data_dir", "x" * 300), ("--n_channels", "4"), ("--gpu_devices", "0,0"),
        ("--deep_supervision",), ("--test_sample_rate", "100"), ("--val_split", "24"), ("--monitor", "accuracy"),
        ("--resume", "vanilla.pth"), ("--output_dir", "taken"),
        ("--resume", "seg.pth", "--width", "3"), ("--resume", "nowhere"), ("--config", "nowhere.yaml"),
    ),
    "eval_vanilla": (
        ("--model_path", "seg.pth"), ("--model_path", "nowhere"), ("--model_path", "empty"), ("--model_path", "loop"),
        ("--model_path", "bare.pth"), ("--model_path", "odd.pth"),
        ("--model_path", "x" * 300), ("--model_path", "\x00"), ("--model_path", "a\nb"),
        ("--model_path", ""), ("--n_classes", "11"), ("--save_path", "taken"),
        ("--save_path", "loop/x"), ("--val_split", "1e300", "--split", "val"), ("--resume", "vanilla.pth"),
        ("--config", "nowhere.json"), ("--lr", "1e-3"), ("--n_epoch", "3"), ("--augment",), ("--patch_size", "32"),
    ),
    "eval_seg_on_carvana": (
        ("--model_path", "vanilla.pth"), ("--data_dir", "nowhere"), ("--width", "3"),
        ("--data_dir", "empty"), ("--save_path", "taken"), ("--up", "transposed"), ("--n_channels", "1"),
        ("--model_type", "UNetpp"), ("--augment",), ("--gpu_devices", "1,1"), ("--label_smoothing", "0.1"),
    ),
    "eval_gan": (
        ("--model_path", "vanilla.pth"), ("--latent", "3"), ("--judge_type", "LeNet"), ("--batch_norm", "False"),
        ("--judge", "vanilla.pth"), ("--save_path", "taken"),
    ),
    "configcmp": (
        (), ("good.json",), ("good.json", "nowhere"), ("good.json", "empty"), ("rubbish.pth", "good.json"),
        ("good.json", "loop"), ("good.json", "/dev/zero"), ("fifo", "good.json"), ("good.json", "a\nb"),
        ("good.json", "\x00"), ("good.json", "x" * 300), ("--jso", "good.json", "good.json"), ("good.json", "\x1b[31m"),
        ("--json=1", "good.json", "good.json"), ("good.json", "/dev/null"),
    ),
    "make_carvana_like": (
        (), ("--data_dir", "new"), ("--cars", "1"), ("--data_dir", "cars", "--cars", "1"),
        ("--data_dir", "taken", "--cars", "1"), ("--data_dir", "loop", "--cars", "1"),
        ("--data_dir", "x" * 300, "--cars", "1"), ("--data_dir", "\x00", "--cars", "1"),
    ),
    "make_sample": (
        (), ("--source", "nowhere", "--output", "new"), ("--source", "empty", "--output", "new"),
        ("--source", "loop", "--output", "new"), ("--source", "sample", "--output", "sample"),
        ("--source", "sample", "--output", "taken"), ("--source", "sample", "--output", "new", "--train_per_class",
        "601"),
        ("--source", "\x00", "--output", "new"), ("--source", "sample", "--output", "x" * 300),
    ),
    "plot_log": (
        (), ("nowhere",), ("empty",), ("taken",), ("\x00",), ("x" * 300,), ("loop",), ("a\nb",), ("--output", "x.png"),
        ("curves", "--output", "taken/x.png"), ("curves", "--output", "x.doc"),
    ),
    "accuracy": (
        (), ("vanille",), ("vanilla", "carvana"), ("vanilla", "--", "--lr", "nan"), ("vanilla", "--lr", "1"),
        ("vanilla", "--", "--n_epochs", "1"), ("vanilla", "--", "stray"), ("vanilla", "--", "--seed", "-1"),
    ),
}  # fmt: skip


def contradictions(program: str):
    words = {"--pretrained": "--model_path"}

    def with_names(argv: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        names = {word for flag in argv for word in (flag.split("=")[0].lstrip("-"), words.get(flag),
        repr(flag)[1:40].rstrip("'"))}
        return argv, (*sorted(names - {"", None}), *(("required", "two or more",
        ": a run") if program not in TASKS else ()))

    return st.sampled_from(CONTRADICTIONS[program]).map(with_names)


# ---- faults of option files: each is the name of a file, its bytes, and words of which one must be in the error -----
def json_bytes(values) -> bytes:
    return json.dumps(values).encode()


def yaml_bytes(values: dict) -> bytes:
    return "\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()).encode()


@st.composite
def wrong_entries(draw, kinds: dict):
    """One key or value that cannot be, among right ones."""
    values = draw(right_options(kinds))
    name = draw(st.sampled_from(sorted(kinds)))
    kind = kinds[name]
    wrong = draw(st.sampled_from(("text", "type", "key")))
    if wrong == "text":
        values[name] = draw(wrong_texts(kind))
    elif wrong == "type":
        types = [[[1]], [{}], [["x"] * 3] * 3, *([] if kind is ARGUMENTS else [{}, {"a": 1}])]
        is_list = getattr(kind, "is_list", False)
        types += [] if is_list else [[], [1], ["a", "b"], [True]]
        types += [True, False] if isinstance(kind, Number | Choice) else []
        types += [0, 1, 2.5] if kind == BOOL or isinstance(kind, Choice) else []
        types += [None] if name in NEVER_NULL else []
        types += [["3", "--debug"], ["3", "--seed=5"], ["--debug"], [3, "-d"], [3, True], [3, None]]
        values[name] = draw(st.sampled_from(types))
    else:
        keys = ("config", *OF_THE_LAUNCH, "help", "", "-", f"--{name}", f"{name} ", f" {name}", name.upper(),
        name[:-1])
        keys += ("\n", "\x00", "\ud800", "__class__", "x" * 5000, f"{name}\n--lr", "=", "lr=1", "resume_notes", "é")
        name = draw(st.sampled_from(keys).filter(lambda key: key not in kinds and key not in TRAIN) | st.just("lr_"))
        values[name] = draw(st.sampled_from((1, None, "a", True, ["a"])))
    if draw(st.booleans()):
        return "options.json", json_bytes(values), (name, repr(name)[1:40])
    return draw(st.sampled_from(("options.yaml", "options.yml"))), yaml_bytes(values), (name, repr(name)[1:40])


DEPTHS = (10, 900, 2000, 30_000)
BROKEN_JSON = (  # no JSON, or not one object
    b"", b" ", b"null", b"1", b"[]", b"[1, 2]", b'"seed"', b"true", b"NaN", b"{", b"}", b"{,}", b"{]", b"{}{}", b"\x00",
    b"{'seed': 1}", b"{seed: 1}", b'{"seed": 1,}', b'{"seed": 1} /* one', b'{"seed": }', b'{"seed" 1}', b'{"seed": 01}',
    b'{"seed": 1, "seed": 1}', b'{"seed": 1, "\\u0073eed": 2}', b'{"seed": +1}', b"---\nseed: 1", b'{"seed": 1.}',
    b'{"seed": ' + b"9" * 5000 + b"}", b'{"proj_name": "a\nb"}', b"\xef\xbb\xbf\xef\xbb\xbf{}", b"\xff\xfe{}",
    b"{}\x00",
    b"PK\x03\x04", b"\x80\x04].", b"MZ", b"\x1f\x8b\x08\x00", b"[" * 3_000_000,
    *(b'{"a": ' * depth for depth in DEPTHS), *(b"[" * depth for depth in DEPTHS),
    *(b"[" * depth + b"]" * depth for depth in DEPTHS),
)  # fmt: skip
WRONG_JSON = (  # an object, but with values that no option takes
    b'{"seed": 1' + b" " * 3_000_000 + b"}", b'{"seed": NaN}', b'{"seed": Infinity}', b'{"seed": 1e999}',
    b'{"seed": -1E400}', b'{"seed": 1.0}', b'{"seed": -0.5}',
    b'{"seed": 1' + b"0" * 4000 + b"}", b'{"val_split": NaN}', b'{"val_split": -Infinity}', b'{"val_split": 1e999}',
    b'{"proj_name": "\\u0000"}', b'{"proj_name": "../x"}', b'{"model_path": "\\ud800"}', b'{"data_dir": "\\n"}',
    *(b'{"seed": ' + b"[" * depth + b"]" * depth + b"}" for depth in DEPTHS),
    *(b'{"seed": ' + b'{"a": ' * depth + b"1" + b"}" * (depth + 1) for depth in DEPTHS),
)  # fmt: skip


@st.composite
def broken_json(draw) -> bytes:
    good = json_bytes(draw(right_options({"seed": SEED, "lr": POSITIVE, "proj_name": NAME})) | {"seed": 1})
    return draw(st.one_of(
        st.sampled_from(BROKEN_JSON), st.integers(0, len(good) - 1).map(lambda end: good[:end]),
        st.binary(max_size=100).map(lambda data: b"\xff" + data), st.just(good + good), st.just(b"[" + good + b"]"),
        st.sampled_from(("utf-16", "utf-16-le", "utf-32",
        "utf-7")).map(lambda name: ("é" + good.decode()).encode(name)),
        st.just(good.replace(b"seed", "größe".encode("latin-1"))),
    ))  # fmt: skip


@st.composite
def wrong_json(draw, kinds: dict):
    """Files that are no flat JSON object in UTF-8."""
    content = draw(broken_json() | st.sampled_from(WRONG_JSON))
    return draw(st.sampled_from(("options.json", "options", "options.txt"))), content, ()


YAML_DEPTHS = (10, 900, 5000)
YAML_BOMB = b"a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (level, level, b",".join([b"*a%d" % (level - 1)] * 10)) for level in range(1, 8)
)
WRONG_YAML = (
    b"", b"---", b"- seed", b"seed", b"1", b"null", b"~", b"seed: 1\nseed: 2", b"seed: 1\n---\nseed: 2",
    b"seed:\t- 1",
    b"seed: [1", b"seed: {a: 1}", b"seed: 'a", b"\tseed: 1", b"seed: 1\n lr: 2\n", b": 1", b"? [a, b]\n: 1",
    b"1: 2",
    b"null: 1", b"~: 1", b"[seed]: 1", b"{a: b}: 1", b"true: 1", b"<<: {seed: 1}",
    b"base: &b {seed: 1}\n<<: *b",
    b"seed: &s 1\nsplit_seed: *s", b"seed: *nobody", b"seed: &a [*a]", b"&a seed: *a", b"&a {seed: *a}",
    b"&a [*a]",
    b"seed: !!python/object/apply:os.getpid []", b"seed: !!python/object/new:os.system [id]", b"seed: !u 1",
    b"proj_name: !!python/name:os.system", b"proj_name: !!python/name:os.system x", b"!!python/object:os.x {}",
    b"proj_name: !!binary aGFsbG8=", b"!!set {seed}", b"!!omap [seed: 1]", b"proj_name: !local x", b"!!map [1]",
    b"%YAML 3.0\n---\nseed: 1", b"%TAG ! tag:x,2000:\n---\nseed: !a 1",
    b"seed: 1_000", b"seed: 0x10", b"seed: 0o17", b"seed: .nan", b"val_split: .inf", b"val_split: 1e999",
    b"seed: |\n  1\n", b"proj_name: >\n  a\n  b\n", b'proj_name: "a\\0"', b'proj_name: "\\ud800"',
    b"seed: 1:30",
    b"seed: @1", b"seed: `1`", b"seed: 1 # \x00", b"seed: \x07", b"\xff\xfes\x00", b"seed: \xe9",
    b"\xef\xbb\xbf-",
    b"seed: 1\n#" + b"x" * 3_000_000, b"x: 1\n" * 400_000, b"!" * 5000,
    YAML_BOMB, *(text * depth for text in (b"[", b"- ", b"? ", b"a: {") for depth in YAML_DEPTHS),
    *(start + b"[" * depth + b"]" * depth for start in (b"", b"seed: ") for depth in YAML_DEPTHS),
)  # fmt: skip


@st.composite
def wrong_yaml(draw, kinds: dict):
    """Files that are no flat YAML mapping in UTF-8, or that want more than data."""
    content = draw(st.one_of(
        st.sampled_from(WRONG_YAML), st.binary(max_size=100).map(lambda data: b"\xff" + data),
        st.text(max_size=40).map(lambda text: b"seed: [" + text.encode("utf-8", "replace")),
        st.just("größe: 1".encode("utf-16")),
    ))  # fmt: skip
    return draw(st.sampled_from(("options.yaml", "options.yml"))), content, ()


# ---- all together ----------------------------------------------------------------------------------------------------
@st.composite
def wrong_examples(draw, program: str) -> Example:
    """A command line of `program` with one fault in it, or in one of its option files."""
    kinds = KINDS[program]
    fault = draw(st.sampled_from(("flag", "flag", "flag", "file", "file", "contradiction")))
    if program not in TASKS:
        return draw(wrong_examples_of_a_tool(program, fault))
    before, after, files = draw(harmless_flags(kinds)), draw(harmless_flags(kinds)), ()
    if fault == "flag":
        faults = (wrong_values, wrong_values, unknown_flags, missing_values, negations, stray_arguments)
        wrong, names = draw(draw(st.sampled_from(faults))(flags_of(program)))
    elif fault == "file":
        faults = (wrong_entries, wrong_entries, wrong_json, wrong_yaml)
        name, content, names = draw(draw(st.sampled_from(faults))(kinds))
        auto = draw(st.sampled_from(((), ("--resume", "auto")))) if program.startswith("trainer") else ()
        files, wrong, names = ((name, content),), (*auto, "--config", name), (name, *names)
    else:
        wrong, names = draw(contradictions(program))
    return Example(program, (*BASE[program], *before, *wrong, *after), names, files, wrong)


@st.composite
def wrong_examples_of_a_tool(draw, program: str, fault: str) -> Example:
    """The same for the smaller programs, which read no option files, but for `configcmp`, which compares them."""
    kinds, base = KINDS[program], BASE[program]
    if program == "configcmp" and fault != "contradiction":
        files = (("options.json", draw(broken_json())),)
        argv = tuple(draw(st.permutations((*base[:1], "options.json"))))
        return Example(program, argv, ("options.json",), files, argv)
    if fault == "contradiction" or not kinds:
        wrong, names = draw(contradictions(program))
        return Example(program, wrong, names, fault=wrong)
    faults = (wrong_values, wrong_values, unknown_flags, missing_values)
    wrong, names = draw(draw(st.sampled_from(faults))(kinds))
    return Example(program, (*base, *wrong), names, fault=wrong)


def wrong_one_by_one(program: str) -> Iterator[Example]:
    """Every option with the values at the edges of what it takes, and every fault that is listed here."""
    base, kinds = BASE[program], flags_of(program)
    for name, kind in kinds.items():
        for text in edges(kind):
            yield Example(program, (*base, f"--{name}={text}"), (f"--{name}",))
    for argv in CONTRADICTIONS[program]:
        yield Example(program, (*(base if program in TASKS else ()), *argv), ())
    files = [("options.json", content) for content in BROKEN_JSON]
    if program == "configcmp":
        yield from (Example(program, ("good.json", name), (name,), ((name, content),)) for name, content in files)
    if program == "trainer_vanilla":  # the others read them by the same lines
        files += [("options.json", content) for content in WRONG_JSON]
        files += [("options.yaml", content) for content in WRONG_YAML]
        for name, content in files:
            yield Example(program, (*base, "--config", name), (name,), ((name, content),))
        for value in ({}, {"a": 1}, [], ["a"], [{}], None):
            content = json_bytes({"description": value})
            yield Example(program, (*base, "--config", "a.json"), ("description", "a.json"), (("a.json", content),))
    if "lr_decay_epochs" in kinds:
        for entry in ("--debug", "-d", "--seed=5", "--"):
            content = json_bytes({"lr_scheduler": "step", "lr_decay_epochs": [3, entry]})
            yield Example(program, (*base, "--config", "a.json"), ("lr_decay_epochs",), (("a.json", content),))


def any_wrong_example() -> st.SearchStrategy[Example]:
    """Mostly of the four programs that train and evaluate."""
    return st.sampled_from((*TASKS, *TASKS, *TASKS, *KINDS)).flatmap(wrong_examples)
