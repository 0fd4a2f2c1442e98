"""Export the network of a checkpoint, or of the best one of a run, to a file that other programs read.

    python -m tools.export Results/Vanilla/TIMESTAMP --to onnx
    python -m tools.export Results/Carvana/TIMESTAMP --to safetensors --push owner/name

The file is compared with the network before it gets its name.
"""

from collections.abc import Sequence

from engine.options.parser import BoolAction, OptionParser, file_path, one_of, run_main, text_like
from tools.prediction.command import add_changes, changes

FORMATS = ("onnx", "pt2", "safetensors")
CHANGING = ("image_size", "patch_size", "model_type", "model_args", "import", "set")
REPOSITORY = text_like(r"[\w.-]{1,96}/[\w.-]{1,96}", "OWNER/NAME")


def make_parser() -> OptionParser:
    parser = OptionParser(prog="export", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("run", type=file_path, metavar="RUN", help="a checkpoint, the directory of a run, or latest")
    add(
        "--to",
        type=one_of(FORMATS),
        required=True,
        metavar="FORMAT",
        help="onnx; pt2: a program of torch.export; safetensors: the weights",
    )
    add("--output", type=file_path, default=None, metavar="FILE", help="(default: beside the checkpoint)")
    add(
        "--push",
        type=REPOSITORY,
        default=None,
        metavar="OWNER/NAME",
        help="also upload it to this repository of the Hugging Face Hub, which is private unless --public is given",
    )
    add("--public", action="store_true", help="let anybody see a repository that --push makes")
    add("--use_average", action=BoolAction, default=True, help="take the average of the weights, if there is one")
    add_changes(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Export a network, compare the file with it, and upload it if asked."""
    parser = make_parser()
    opt = parser.parse_args(argv)
    flags = changes(parser, opt, CHANGING)
    for name in ("mode", "mask_values"):
        if getattr(opt, name) is not None:
            parser.error(f"--{name} has no effect on a network: leave it out")
    if opt.public and not opt.push:
        parser.error("--public has no effect without --push")

    from tools.exporting.write import export  # here, as it imports torch

    path, metadata = export(opt, flags)
    print(f"Saved {path}")
    if opt.push:
        from tools.exporting.hub import push

        print(f"Uploaded to {push(path, metadata, opt.push, private=not opt.public)}")


if __name__ == "__main__":
    run_main(main)
