"""One registry for everything that an option names: data, networks, losses, optimizers, metrics, callbacks, ...

A name is one of the template's own (`BUILT_INS`), one that is registered with a decorator, or ``MODULE:NAME``:

    @register_model("mynet")        # in my_module.py; then --import my_module --model_type mynet
    class MyNet(nn.Module): ...

Nothing is imported until it is made, so that a parser can list all names without torch. User code is imported only
because a person has named it, on the command line, in an option file or in the task. A checkpoint alone cannot name it,
see engine/options/foreign.py.
"""

import importlib
import inspect
import json
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from utils.errors import UserError, nearest, shown

# Each kind with the option that selects a component, and the option with its arguments.
KINDS = {
    "data": ("data_type", "data_args"), "model": ("model_type", "model_args"), "loss": ("loss_type", "loss_args"),
    "optimizer": ("optim", "optim_args"), "scheduler": ("lr_scheduler", "scheduler_args"),
    "metric": ("metrics", "metric_args"), "callback": ("callbacks", None), "logger": ("logger", None),
    "augmentation": ("augment", None),
}  # fmt: skip

# To add a component to the template: write it in a file of its own, and name it here. A row has its kind, its name,
# where it is, and the tasks that it is for; without a task, it is for all of them.
TABLE = """
    data       FashionMNISTSample  data.FashionMNIST:build_fashion_mnist_sample   classification generation
    data       FashionMNIST        data.FashionMNIST:build_fashion_mnist          classification generation
    data       ImageFolder         extras.own_data.folder:build_image_folder      classification
    data       ImageTable          extras.own_data.image_table:build_image_table  classification
    data       Table               extras.own_data.table:build_table              table
    data       Carvana             data.Carvana:build_carvana                     segmentation
    data       CarvanaShards       extras.shards.dataset:build_carvana_shards     segmentation
    data       MultiImage          extras.multi_image:build_multi_image           segmentation
    model      Vanilla             model.vanilla_model:VanillaModel               classification
    model      LeNet               model.LeNet:LeNet                              classification
    model      ResNet18            model.ResNet:ResNet18                          classification
    model      UNet                model.UNet:UNet                                segmentation
    model      UNetpp              model.UNetpp:UNetpp                            segmentation
    model      MLP                 extras.own_data.table_network:MLP              table
    model      DCGAN               extras.gan.DCGAN:build_dcgan                   generation
    loss       CE                  loss.classification_loss:CrossEntropyLoss      classification
    loss       Focal               extras.classification_losses:FocalLoss         classification
    loss       Brier               extras.classification_losses:BrierLoss         classification
    loss       CEDice              loss.dice_loss:CEDiceLoss                      segmentation
    loss       PixelCE             loss.dice_loss:PixelCELoss                     segmentation
    loss       Dice                loss.dice_loss:DiceLoss                        segmentation
    loss       BCE                 torch.nn:BCEWithLogitsLoss                     generation   # Goodfellow et al. 2014
    loss       LeastSquares        torch.nn:MSELoss                               generation   # Mao et al. 2017
    optimizer  adam                torch.optim:Adam      # Kingma and Ba 2015; weight decay is added to the gradient
    optimizer  adamW               torch.optim:AdamW     # Loshchilov and Hutter 2019; weight decay beside the gradient
    optimizer  nadam               torch.optim:NAdam     # Dozat 2016: Adam with Nesterov momentum
    optimizer  radam               torch.optim:RAdam     # Liu et al. 2020: holds back until the variance is known
    optimizer  sgd                 torch.optim:SGD       # with momentum (Polyak 1964)
    optimizer  nesterov            torch.optim:SGD       # with Nesterov momentum (Sutskever et al. 2013)
    optimizer  rmsprop             torch.optim:RMSprop   # Tieleman and Hinton 2012, without momentum, as they gave it
    optimizer  adagrad             torch.optim:Adagrad   # Duchi, Hazan and Singer 2011
    optimizer  Muon                extras.muon:muon      # Jordan et al. 2024, for matrices; AdamW for all others
    scheduler  constant            utils.scheduler:constant
    scheduler  step                utils.scheduler:step
    scheduler  cosine              utils.scheduler:cosine
    scheduler  linear              utils.scheduler:linear
    scheduler  exponential         utils.scheduler:exponential
    metric     accuracy            utils.metrics:Accuracy                         classification
    metric     precision           extras.precision_recall:Precision              classification
    metric     recall              extras.precision_recall:Recall                 classification
    metric     f1                  extras.precision_recall:F1                     classification
    metric     dice                utils.overlap:Dice                             segmentation
    metric     iou                 utils.overlap:IoU                              segmentation
    metric     mean_image_dice     utils.overlap:MeanImageDice                    segmentation
    logger     tensorboard         callbacks.tensorboard:TensorBoard
    logger     csv                 callbacks.csv_logger:CSVLogger
    logger     wandb               extras.callbacks.wandb_logger:WandB
    logger     report              extras.callbacks.report:Report
    augmentation  light            extras.augmentation:light
    augmentation  trivial          extras.augmentation:trivial
    augmentation  randaugment      extras.augmentation:randaugment
"""
ROWS = [row.partition("#")[0].split() for row in TABLE.strip().splitlines()]
BUILT_INS = {kind: {name: rest for of_kind, name, *rest in ROWS if of_kind == kind} for kind in KINDS}

# Names of torch that need no module before them. Optimizers whose step needs a closure are left out: the loop gives
# none. So are schedulers that take functions or other schedulers.
OF_TORCH = {
    "optimizer": ("torch.optim", (
        "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop",
        "Rprop", "SGD", "SparseAdam",
    )),
    "scheduler": ("torch.optim.lr_scheduler", (
        "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR", "LinearLR",
        "MultiStepLR", "OneCycleLR", "PolynomialLR", "ReduceLROnPlateau", "StepLR",
    )),
}  # fmt: skip
EVALUATORS = (  # a checkpoint may name these
    "eval_vanilla:EvaluatorVanilla", "eval_seg_on_carvana:EvaluatorSeg", "examples.eval_table:EvaluatorTable",
    "examples.text_task:EvaluatorText",
)  # fmt: skip
LIBRARIES = {
    "model": {"torchvision": "extras.library_models:from_torchvision", "timm": "extras.library_models:from_timm"},
    "data": {"torchvision": "extras.own_data.library:from_torchvision"},
}

MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
REFERENCE = re.compile(rf"(?P<module>{MODULE.pattern}):(?P<name>[^\W\d]\w*)")
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
BAD_VALUES = (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, AttributeError)
PLAIN = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}  # the types of values, by annotation
REGISTERED: dict[str, dict[str, Callable]] = {kind: {} for kind in KINDS}


# ---- names -----------------------------------------------------------------------------------------------------------
def names(kind: str, task: str | None = None) -> list[str]:
    """Return the names of a kind that fit a task (all of them for None), registered ones last.

    >>> names("model", "segmentation")
    ['UNet', 'UNetpp']
    """
    fitting = [name for name, (_, *tasks) in BUILT_INS[kind].items() if not (task and tasks) or task in tasks]
    return [*fitting, *REGISTERED[kind]]


def is_reference(text: Any) -> bool:
    """Whether a text is ``MODULE:NAME``.

    >>> is_reference("my_package.nets:MyNet"), is_reference("ce:0.5"), is_reference("torchvision:resnet18")
    (True, False, False)
    """
    match = REFERENCE.fullmatch(text) if isinstance(text, str) and len(text) <= 200 else None
    return bool(match) and match["module"] not in LIBRARIES["model"]


def reference_in(text: Any) -> str | None:
    """Return the ``MODULE:NAME`` that a text is, or begins with: a loss may have a weight behind it.

    >>> reference_in("my_losses:Focal:0.5"), reference_in("my_losses:Focal"), reference_in("Dice:0.5")
    ('my_losses:Focal', 'my_losses:Focal', None)
    """
    first = ":".join(text.split(":")[:2]) if isinstance(text, str) else None
    return first if is_reference(first) else None


def short_name(text: str) -> str:
    """Return the part behind the colon, for the names of files and values."""
    return text.rpartition(":")[2]


def module_name(text: str) -> str:
    """An argparse type for the name of a module."""
    if not MODULE.fullmatch(text) or len(text) > 200:
        raise ArgumentTypeError(f"{shown(text)} is not the name of a module, such as my_package.my_module")
    return text


def listed(kind: str, task: str | None = None, more: Iterable[str] = ()) -> str:
    """Return the names of a kind in words, with all other ways to name a component.

    >>> listed("model", "segmentation")
    'one of UNet, UNetpp; or MODULE:NAME of your own'

    Args:
        more: describes further names.
    """
    known = names(kind, task)
    ways = [f"one of {', '.join(known)}"] if known else []
    if kind in OF_TORCH:
        module, of_torch = OF_TORCH[kind]
        ways.append(f"of {module}: {', '.join(of_torch)}")
    if task == "classification":
        ways += [f"{library}:NAME" for library in LIBRARIES.get(kind, ())]
    return "; or ".join([*ways, *more, "MODULE:NAME of your own"])


def name_type(kind: str, task: str | None = None, more: Iterable[str] = ()) -> Callable[[str], str]:
    """Return an argparse type for the name of a component; for `more` see `listed`."""
    _, of_torch = OF_TORCH.get(kind, ("", ()))
    known = [*of_torch, *names(kind, task)]

    def convert(text: str) -> str:
        is_of_library = task == "classification" and text.partition(":")[0] in LIBRARIES.get(kind, ())
        if text not in known and not is_of_library and not is_reference(text):
            hint = load("extras.wrong_names:of_component", KINDS[kind][0])(kind, text[:60], known, task)
            raise ArgumentTypeError(f"{shown(text)} is not {listed(kind, task, more)}{hint}")
        return text

    return convert


# ---- register --------------------------------------------------------------------------------------------------------
def register(kind: str, name: str) -> Callable:
    """Return a decorator that makes `name` a choice of the option that selects a `kind`.

    Raises:
        ValueError: when the name has other letters than a name may have, or belongs to another component.
    """
    if not re.fullmatch(r"\w[\w.-]*", name) or len(name) > 100:
        raise ValueError(f"register_{kind}({name!r}): a name has letters, digits, _ . and -, at most 100")
    if name in BUILT_INS[kind]:
        raise ValueError(f"register_{kind}({name!r}): the template has a {kind} of this name, choose another")

    def decorate(component: Callable) -> Callable:
        before = REGISTERED[kind].get(name, component)
        if (before.__module__, before.__qualname__) != (component.__module__, component.__qualname__):
            raise ValueError(f"register_{kind}({name!r}): {before.__module__}.{before.__qualname__} has this name")
        REGISTERED[kind][name] = component
        return component

    return decorate


register_data = partial(register, "data")  # a function that returns all parts, or a Dataset that takes `part`
register_model = partial(register, "model")
register_loss = partial(register, "loss")
register_optimizer = partial(register, "optimizer")
register_scheduler = partial(register, "scheduler")
register_metric = partial(register, "metric")
register_callback = partial(register, "callback")
register_logger = partial(register, "logger")


# ---- import ----------------------------------------------------------------------------------------------------------
def import_module(name: str, source: str) -> Any:
    """Import a module from the Python path, then from the current directory.

    Args:
        name: the module.
        source: the option that names it, for messages.

    Raises:
        UserError: when there is none, or importing it raises.
    """
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that no file here replaces a package
    try:
        return importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        package = name.partition(".")[0]
        if missing == package and package in (*LIBRARIES["model"], "torchmetrics"):
            raise UserError(f"{source} needs the package {package}, which is missing: pip install {package}") from None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise UserError(f"{source}: there is no module {missing!r} on the Python path or in {here}.") from None
        raise UserError(f"{source}: the module {name} cannot be imported: {error_line(error)}") from error


def load(reference: str, option: str) -> Callable:
    """Import the class or function that a ``MODULE:NAME`` names; UserError when there is none."""
    match, source = REFERENCE.fullmatch(reference), f"--{option} {reference}"
    module = import_module(match["module"], source)
    if not hasattr(module, match["name"]):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        listed = f"; it has {', '.join(known[:20])}" if known else ""
        hint = nearest(match["name"], known)
        raise UserError(f"{source}: the module {module.__name__} has no {match['name']!r}{hint}{listed}.")
    component = getattr(module, match["name"])
    if not callable(component):
        raise UserError(f"{source} is neither a class nor a function, but of type {type(component).__name__}.")
    return component


def find(kind: str, name: str) -> Callable:
    """Import the class or function that a name of `kind` stands for; UserError when there is none."""
    option = KINDS[kind][0]
    if name in REGISTERED[kind]:
        return REGISTERED[kind][name]
    if name in BUILT_INS[kind]:
        return load(BUILT_INS[kind][name][0], option)
    library, _, rest = name.partition(":")
    if library in LIBRARIES.get(kind, ()):
        return load(LIBRARIES[kind][library], option)(rest)
    try:
        name_type(kind)(name)
    except ArgumentTypeError as error:
        raise UserError(f"--{option}: {error}") from None
    return load(name if is_reference(name) else f"{OF_TORCH[kind][0]}:{name}", option)


# ---- make ------------------------------------------------------------------------------------------------------------
def make(kind: str, spec: str | Mapping[str, Any], offered: Mapping[str, Any] | None = None, option: str = "") -> Any:
    """Make a component from ``{"name": ..., "args": {...}}``, for components that are made of others.

    A class that takes another component as an argument gets its mapping, and makes it with this function, see
    `TemperatureLoss` in examples/own_parts.py.

    >>> make("loss", {"name": "Focal", "args": {"gamma": 1.0}}).gamma
    1.0

    Args:
        kind: a key of `KINDS`.
        spec: the mapping, of which "args" may be left out; or the name alone.
        offered: further arguments, of which the component gets those that it names.
        option: the option of the arguments, for messages; by default that of the kind.

    Raises:
        UserError: when the name is unknown, or the component cannot be made with its arguments.
    """
    spec = {"name": spec} if isinstance(spec, str) else spec
    arguments = spec.get("args", {}) if isinstance(spec, Mapping) else None
    if not isinstance(arguments, Mapping) or not isinstance(spec.get("name"), str) or set(spec) - {"name", "args"}:
        raise UserError(f'A {kind} is given as {{"name": ..., "args": {{...}}}}, not as {shown(json.dumps(spec))}.')
    option = option or f"--{KINDS[kind][1] or KINDS[kind][0]}"
    return call(find(kind, spec["name"]), offered or {}, arguments, option)


def parameters_of(component: Callable) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class or function that can be given by name; UserError when it does not tell them."""
    try:
        parameters = inspect.signature(component).parameters
    except (TypeError, ValueError):
        raise UserError(f"{name_of(component)} does not say what it takes: wrap it in a function.") from None
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in NAMED}


def taken(component: Callable, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `offered` that a class or function names among its parameters; ``**kwargs`` takes none of them.

    >>> taken(lambda width, **more: None, {"width": 64, "depth": 3})
    {'width': 64}
    """
    return {name: value for name, value in offered.items() if name in parameters_of(component)}


def call(
    component: Callable,
    offered: Mapping[str, Any],
    arguments: Mapping[str, Any],
    option: str,
    first: Sequence[Any] = (),
) -> Any:
    """Call a class or function, with errors in one line that names the option.

    Args:
        component: the class or function.
        offered: arguments of the template, of which it gets those that it names.
        arguments: those that a person has given by `option`; they win over `offered`.
        option: for messages.
        first: positional arguments.

    Raises:
        UserError: when it does not take one of the arguments, needs another, or raises because of a value.
    """
    parameters = dict(list(parameters_of(component).items())[len(first) :])
    takes_all = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(component).parameters.values())
    for name, value in arguments.items():
        if name in parameters:
            check_type(component, parameters[name], value, option)
        elif not takes_all:
            raise UserError(
                f"{option}: {name_of(component)} takes no argument {shown(name)}{nearest(name[:60], parameters)}; "
                f"it takes {', '.join(parameters) or 'none'}."
            )
    given = {name: value for name, value in offered.items() if name in parameters} | dict(arguments)
    needed = [name for name, p in parameters.items() if p.default is p.empty and name not in given]
    if needed:
        raise UserError(f"{name_of(component)} needs the argument {', '.join(needed)}: give it by {option}.")
    try:
        return component(*first, **given)
    except UserError:
        raise
    except BAD_VALUES as error:
        values = f" with {option} {shown(json.dumps(dict(arguments), default=str))}" if arguments else ""
        raise UserError(f"{name_of(component)} cannot be made{values}: {error_line(error)}") from error


def check_type(component: Callable, parameter: inspect.Parameter, value: Any, option: str) -> None:
    """Raise UserError when a parameter is annotated with a plain type and the value has another one."""
    is_union = get_origin(parameter.annotation) in (Union, UnionType)  # such as int | None, and unlike Sequence[int]
    union = get_args(parameter.annotation) if is_union else (parameter.annotation,)
    kinds = {getattr(kind, "__name__", kind) for kind in union} - {"NoneType"}  # the text "int" is a kind, too
    annotation = kinds.pop() if len(kinds) == 1 else None
    is_none = value is None and parameter.default is None
    if annotation in PLAIN and type(value) not in PLAIN[annotation] and not is_none:
        given = shown(json.dumps(value))
        raise UserError(f"{option}: {parameter.name} of {name_of(component)} is of type {annotation}, not {given}.")


def split_arguments(arguments: Mapping[str, Any], parts: Iterable[str], option: str, kind: str) -> dict[str, dict]:
    """Return the arguments of each of several components, from a mapping with a mapping for each.

    >>> split_arguments({"Dice": {"smooth": 2}}, ["CE", "Dice"], "--loss_args", "loss")
    {'CE': {}, 'Dice': {'smooth': 2}}
    """
    known = list(parts)
    for name, own in arguments.items():
        if name not in known:
            hint = nearest(name[:60], known)
            raise UserError(f"{option}: there is no {kind} {shown(name)}{hint}; there are {', '.join(known)}.")
        if not isinstance(own, dict):
            raise UserError(f'{option}: give the arguments of {name} as {{"{name}": {{...}}}}, not {shown(own)}.')
    return {name: dict(arguments.get(name, {})) for name in known}


def as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def name_of(component: Callable) -> str:
    return getattr(component, "__name__", None) or type(component).__name__


def error_line(error: BaseException) -> str:
    """Return an exception in one line, with the file and line that raised it."""
    import traceback  # here, as only an error needs it

    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text} ({frame.filename}:{frame.lineno})"
