"""Predict on files of one's own, with a checkpoint or the best one of a run.

    python predict.py Results/Vanilla/TIMESTAMP photos/
    python predict.py Results/Carvana/TIMESTAMP a.jpg b.png --tta flip

Nothing here imports torch before the command line is checked.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from engine import registry
from engine.options.parser import (
    BoolAction,
    ListAction,
    OptionParser,
    as_flags,
    file_path,
    list_of,
    mapping,
    mask_value,
    number,
    one_of,
    setting,
)
from tools.prediction.devices import device

CHANGING = (  # options of the checkpoint that a prediction can have in another way
    "image_size", "mode", "patch_size", "mask_values", "model_type", "model_args", "import", "set",
)  # fmt: skip
SETTABLE = ("data_args", "model_args")  # mappings of which --set can change an argument


def make_parser() -> OptionParser:
    """Return the parser of this program, without the options of the task, which the checkpoint decides."""
    parser = OptionParser(prog="predict.py", description=__doc__.partition("\n")[0], epilog=STATUSES)
    add = parser.add_argument
    add("run", type=file_path, metavar="RUN", help="a checkpoint, the directory of a run, or latest")
    add("files", type=file_path, nargs="+", metavar="FILE", help="files, and directories with all that is below them")
    add(
        "--output_dir",
        type=file_path,
        default="./Results/Prediction/",
        metavar="DIR",
        help="results go to DIR/TIMESTAMP",
    )
    add(
        "--batch_size",
        type=number(int, low=1),
        default=None,
        metavar="N",
        help="inputs that go through the network at once. Changes no result",
    )
    add(
        "--tta",
        type=one_of(("none", "flip")),
        default="none",
        metavar="HOW",
        help="flip: the mean of what is predicted for an image and for its mirror image",
    )
    add("--use_average", action=BoolAction, default=True, help="take the average of the weights, if there is one")
    add("--gpu_devices", "--device", type=device, default="0", metavar="ID", help="the GPU, as 0 or cuda:0; or cpu")
    add_changes(parser)
    return parser


STATUSES = (
    "Exit status: 0, all files were predicted; 1, some could not be read, each with a line; 2, none could, or an "
    "option is wrong; 3, the checkpoint is damaged."
)


def add_changes(parser: OptionParser) -> None:
    """Add the options that change those of the checkpoint, and those that allow its code; without defaults."""
    add = parser.add_argument_group("in another way than the checkpoint says").add_argument
    add(
        "--image_size",
        type=number(int, low=1, high=2**15),
        default=None,
        metavar="N",
        help="classification: side of the square that images are resized to",
    )
    add(
        "--mode",
        type=one_of(("direct", "padding")),
        default=None,
        metavar="MODE",
        help="segmentation: direct resizes to --patch_size and the prediction back, padding keeps the image's size",
    )
    add(
        "--patch_size", type=number(int, low=16, high=2**15), default=None, metavar="N", help="segmentation: see --mode"
    )
    add(
        "--mask_values",
        type=list_of(mask_value),
        action=ListAction,
        nargs="+",
        default=None,
        metavar="VALUE",
        help="segmentation: the values of the classes in the masks that are written (default: those of training)",
    )
    add(
        "--set",
        type=setting,
        action="extend",
        nargs="+",
        default=None,
        metavar="NAME=VALUE",
        help="an argument of data_args or model_args, such as data_args.white=4095",
    )
    add = parser.add_argument_group("what a checkpoint names only if you name it, too").add_argument
    add("--task", type=file_path, default=None, metavar="FILE", help="the program of a task of your own")
    add("--import", type=registry.module_name, nargs="+", default=None, metavar="MODULE", help="see docs/options.md")
    add("--model_type", type=registry.name_type("model"), default=None, metavar="NAME", help="MODULE:NAME")
    add("--model_args", type=mapping, default=None, metavar="JSON", help="further arguments of --model_type")


def changes(parser: OptionParser, opt: Namespace, names: Sequence[str] = CHANGING) -> list[str]:
    """Return the given options that change those of the checkpoint, as a command line for the parser of the task."""
    given = {name: getattr(opt, name) for name in names if getattr(opt, name) is not None}
    for name, _ in given.get("set", ()):
        if name.partition(".")[0] not in SETTABLE or "." not in name:
            parser.error(f"--set {name} has no effect on a prediction: it takes {' and '.join(SETTABLE)}.NAME")
    flags = [flag for name, value in given.items() if name != "set" for flag in as_flags(name, value)]
    return [*flags, *(word for name, value in given.get("set", ()) for word in ("--set", f"{name}={value}"))]


def main(argv: Sequence[str] | None = None) -> None:
    """Predict the files of the command line; the help says with which exit statuses."""
    parser = make_parser()
    opt = parser.parse_args(argv)
    flags = changes(parser, opt)

    from tools.prediction.run import predict_files  # here, as it imports torch

    sys.exit(predict_files(opt, flags))


def load_predictor(run: str, **settings: Any) -> Any:
    """Return a function that predicts images, for notebooks; see `tools.prediction.predictor.load_predictor`."""
    from tools.prediction.predictor import load_predictor

    return load_predictor(run, **settings)
