"""Look at the data of a task before training: what the network gets, what each part holds, and what is there twice.

    python -m tools.look trainer_vanilla.py
    python -m tools.look --samples 64 trainer_vanilla.py --data_type ImageFolder --data_dir photos

Options of the tool stand before the program, options of the task after it. data.png has the first training samples with
their classes or masks. See docs/own_data.md.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.options.parser import OptionParser, number, run_main
from engine.registry import load
from tools.looking.inputs import Samples, description, rows, to_show
from tools.looking.parts import copies, shared_groups, sizes_of_parts, targets_of_parts
from tools.tables import aligned
from tools.task import read_command, run_tool, trial
from trainer import TrainerBase
from utils.files import full_disk_explained


def main(argv: Sequence[str] | None = None) -> None:
    parser = OptionParser(prog="python -m tools.look", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--samples", type=number(int, low=1, high=1024), default=32, metavar="N", help="number of samples in data.png"
    )
    own, task, options = read_command(parser, argv)

    def look(trainer: TrainerBase) -> None:
        examine(trainer, own.samples)

    run_tool(trial(task, look, beside_the_runs), options)


def beside_the_runs(opt: Namespace) -> dict[str, Any]:
    """Write to a directory that --resume auto does not take for a run, in one process whose networks call hooks.

    Groups that parts share are listed, and not refused.
    """
    alone = {"nproc": 1, "parallel": "none", "compile": False, "allow_shared": True}
    return {"output_dir": str(Path(opt.output_dir) / "look"), **alone}


def examine(trainer: TrainerBase, num_samples: int) -> None:
    """Report on the data in the log, and save the picture in the run's directory."""
    datasets, classes = trainer.datasets, trainer.evaluator.classes
    note = trainer.run_dir.note
    note("\n".join(["The parts:", *aligned(sizes_of_parts(datasets), "  ")]))
    table, errors = targets_of_parts(datasets, trainer.opt, classes)
    if table:
        note("\n".join(["", *aligned(table, "  ")]))
    note("\n".join(["", *errors, *shared_groups(datasets), *copies(datasets)]))
    trainer.set_train_mode()
    samples = Samples(trainer, num_samples)
    note("\n".join(description(samples)))
    path = trainer.run_dir.path / "data.png"
    if draw(trainer, samples, num_samples, path):
        note(f"The samples as they are trained on: {path}")
    else:
        caption = load("extras.data_picture:caption", "data_type")
        note("\n".join(["They are no pictures:", *rows(samples, caption, classes)]))


def draw(trainer: TrainerBase, samples: Samples, num_samples: int, path: Path) -> bool:
    """Save a picture of the samples; return False if they are no pictures."""
    sample_cells = load("extras.data_picture:sample_cells", "data_type")
    legend_cells = load("extras.data_picture:legend_cells", "data_type")
    is_picture = load("extras.data_picture:is_picture", "data_type")
    if not all(map(is_picture, samples.inputs)):
        return False
    classes = trainer.evaluator.classes
    network = next(iter(trainer.networks.values()))
    cells, legend, names = [], [], samples.names
    for inputs, targets in zip(samples.inputs, samples.targets, strict=True):
        shown = to_show(inputs.detach().float().cpu(), samples.scale, network)
        cells += sample_cells(shown, targets, classes, names[len(cells) : len(cells) + len(inputs)])
        if isinstance(targets, Tensor) and len(legend) < len(found := legend_cells(targets, classes)):
            legend = found
    with full_disk_explained("The picture of the data", path.parent):
        load("extras.data_picture:draw", "data_type")(cells[:num_samples], legend, path)
    return True


if __name__ == "__main__":
    run_main(main)
