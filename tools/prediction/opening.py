"""Make an evaluator from a checkpoint, for programs that need its networks and neither data nor a loss."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from data.masks import code_of
from engine.checkpoints.file import load_checkpoint, options_of, weights_of
from engine.checkpoints.restore import set_state
from engine.devices.setup import place_network, select_devices
from engine.options.foreign import harmless_options
from engine.options.parser import Options
from engine.registry import BUILT_INS, EVALUATORS, LIBRARIES, import_module, load
from eval import EvaluatorBase
from model.model_entry import NETWORK_OPTIONS
from options import OF_THE_LAUNCH, import_asked, refuse_change, test_parser, with_new_names
from tools.task_program import load_class, load_file
from utils.errors import UserError, shown
from utils.precision import Precision

RESULTS = "./Results/"  # where `latest` looks
# Older checkpoints do not say which evaluator made them: an option that only this one has.
BY_OPTION = {"mask_values": EVALUATORS[1], "deep_supervision": EVALUATORS[1], "label_smoothing": EVALUATORS[0]}
NOT_NEEDED = ("loss_type", "loss_args", "metrics", "metric_args", "data_dir")
OF_INPUTS = ("white", "background", "missing", "decimal")  # the arguments of data that say how a file is read


def open_evaluator(
    run: str | Path, task: str | None = None, flags: Sequence[str] = (), use_average: bool = True, devices: str = "0"
) -> tuple[EvaluatorBase, Path]:
    """Return an evaluator with the networks of a checkpoint, in eval mode on their device, and the checkpoint's path.

    Args:
        run: a checkpoint, the directory of a run, or latest.
        task: the program of a task of one's own; None for the evaluator that the checkpoint names.
        flags: options that change those of the checkpoint, as a command line.
        use_average: whether to take the averages of the weights, where there are any.
        devices: see `engine.devices.setup.select_devices`.

    Raises:
        UserError: it cannot be opened, or names code that `task` and `flags` do not name.
    """
    path = load("extras.named_run:checkpoint_of", "model_path")(run, RESULTS)
    state = load_checkpoint(path, tensors_of=("networks", "averaging"))
    import_asked(flags)
    evaluator_class = class_of(state, path, task)
    opt = resolved(evaluator_class, state, path, flags)
    (device, *_), _ = select_devices(devices)
    networks = dict(evaluator_class.build_networks(opt))
    set_state(networks, weights_of(state, use_average), f"The checkpoint {path}")
    for name, network in networks.items():
        networks[name] = place_network(network.eval(), device, opt.channels_last)
    return evaluator_class(opt, networks, nn.Identity(), device, Precision(opt.amp, device)), path


def class_of(state: Mapping[str, Any], path: Path, task: str | None) -> type[EvaluatorBase]:
    """Return the class of the evaluator that made a checkpoint: that of `task`, one that ships, or of an own run."""
    if task is not None:
        return load_class(task, EvaluatorBase, "task")
    saved = options_of(dict(state), path)
    name = state.get("evaluator", next((BY_OPTION[option] for option in BY_OPTION if option in saved), None))
    if name in EVALUATORS:
        return load(name, "task")
    if load("extras.own_runs:signed_values", "task")(path, {"evaluator": name}):  # by a run of this user
        return own_class(name)
    raise UserError(
        f"The checkpoint {path} is of a task of its own ({shown(name)}), whose code is used only when you name "
        f"it yourself. If you trust it: --task FILE.py, the program of the task."
    )


def own_class(name: str) -> type[EvaluatorBase]:
    """Import the class that `engine.runs.provenance.name_of_class` has named."""
    program, _, attribute = name.rpartition(":")
    module = load_file(program) if program.endswith(".py") else import_module(program, f"--task {program}")
    found = getattr(module, attribute, None)
    if isinstance(found, type) and issubclass(found, EvaluatorBase):
        return found
    raise UserError(f"{program} has no evaluator {attribute} any more: name the program of the task, --task FILE.py.")


def resolved(
    evaluator_class: type[EvaluatorBase], state: Mapping[str, Any], path: Path, flags: Sequence[str]
) -> Namespace:
    """Return the options of an evaluation of a checkpoint, without those of a loss, metrics and the place of data."""
    new_parser = partial(test_parser, evaluator_class)
    saved = with_new_names(options_of(dict(state), path))
    saved = {name: value for name, value in saved.items() if name not in (*OF_THE_LAUNCH, *NOT_NEEDED)}
    data_type = saved.pop("data_type", None)  # a text that says how to read an image; nothing is made of it
    data_args = saved.pop("data_args", None)
    model_type = str(saved.get("model_type"))
    if model_type in BUILT_INS["model"] or model_type.partition(":")[0] in LIBRARIES["model"]:
        saved.pop("import", None)  # it registered other things
    harmless = harmless_options(saved, path, new_parser, flags, notes=[])
    if isinstance(data_type, str):
        harmless["data_type"] = data_type
    if isinstance(data_args, Mapping):
        harmless["data_args"] = {name: data_args[name] for name in OF_INPUTS if name in data_args}
    parser = new_parser()
    opt = parser.resolve(flags, [(harmless, str(path))])
    if "mask_values" in parser.asked:
        check_values(opt.mask_values, saved.get("mask_values"), opt.n_classes)
    for name in parser.asked & set(NETWORK_OPTIONS):
        refuse_change(name, vars(opt)[name], saved.get(name), f"checkpoint {path}")
    return Options(**vars(opt) | {"model_path": str(path)})


def check_values(values: Sequence[int | str], trained: Sequence[int | str] | None, num_classes: int) -> None:
    """Raise UserError unless --mask_values gives each class of a checkpoint a value of its own.

    Args:
        values: those that are asked for.
        trained: those of the checkpoint, which may be fewer than its classes; None if it has none.
        num_classes: of the network; 1 and 2 both mean two.
    """
    text = " ".join(map(str, values))
    count = len(trained) if trained else max(num_classes, 2)
    if len(values) != count:
        own = f" instead of {' '.join(map(str, trained))}" if trained else ""
        raise UserError(f"--mask_values {text} has {len(values)} values: give {count}{own}, one for each class.")
    if len(set(map(code_of, values))) != count:
        raise UserError(f"--mask_values {text} has a value twice: the masks would not tell these classes apart.")
